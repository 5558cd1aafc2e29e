"""Bulk insert-or-update: a row that is the same is not touched, so its change id stays."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
from sqlalchemy import Column, Connection, Engine, Table, case, false, func, or_, select, text
from sqlalchemy import column as sql_column
from sqlalchemy import table as sql_table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import ColumnElement

from conversion_assets.domain.contracts import CONTRACTS, KEPT_COLUMNS, KEYS
from conversion_assets.storage import tables
from conversion_assets.storage.database import write_transaction

BATCH_ROWS = 50_000
"""Rows handed to the database at once: Python objects of one batch take about 60 MB, and the
progress bar moves several times a second."""

SQLITE_CACHE_KIB = 256 * 1024
"""Page cache while rows are stored. SQLite's own 2 MB spill to disk again and again, because ids
land anywhere in an index: 200,000 activities took twice the time with it."""

_SQLITE_TIME = "%Y-%m-%dT%H:%M:%S%.6fZ"
"""The text of `tables.sqlite_time`, as Polars writes it."""


def upsert_rows(
    connection: Connection,
    table: str,
    rows: pl.DataFrame,
    provided: Sequence[str],
    *,
    change_id: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> int:
    """Insert new rows and update changed ones, inside the caller's transaction.

    Args:
        connection: In a transaction that may write.
        table: clients, leads or activities.
        rows: Checked rows in the contract's columns, one per key.
        provided: Columns the source has. The others hold defaults for new rows; in rows that
            exist already they are left as they are.
        change_id: Number of the transaction, see `database.next_change_id`.
        progress: Told table, rows so far and all rows after each batch.

    Returns:
        How many rows were new or changed.
    """
    if rows.height == 0:
        return 0
    target = tables.metadata.tables[table]
    names = [*CONTRACTS[table].column_names(), "change_id"]
    # In the order of the key the database appends to its index instead of jumping about in it.
    key = [name for name in KEYS[table] if rows[name].n_unique() > 1] or ["id"]
    ordered = rows.sort(key).with_columns(pl.lit(change_id, dtype=pl.Int64).alias("change_id"))
    batches = _report(ordered.select(names).iter_slices(BATCH_ROWS), table, rows.height, progress)
    if connection.dialect.name == "postgresql":
        return _upsert_postgresql(connection, target, names, batches, provided)
    return _upsert_sqlite(connection, target, names, batches, provided)


@contextmanager
def checked_write_transaction(engine: Engine) -> Iterator[Connection]:
    """`database.write_transaction` for a caller that checks all references itself, in bulk.

    SQLite then does not look up the parent of every row once more. The transaction holds the only
    write lock, so what the caller found stays true until it commits.
    """
    if engine.dialect.name != "sqlite":
        with write_transaction(engine) as connection:
            yield connection
        return
    with engine.connect().execution_options(sqlite_begin="IMMEDIATE") as connection:
        driver: Any = connection.connection.driver_connection
        # Inside a transaction SQLite ignores this setting.
        driver.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                yield connection
        finally:
            driver.execute("PRAGMA foreign_keys = ON")


def _report(
    batches: Iterator[pl.DataFrame],
    table: str,
    total: int,
    progress: Callable[[str, int, int], None] | None,
) -> Iterator[pl.DataFrame]:
    done = 0
    for batch in batches:
        yield batch
        done += batch.height
        if progress:
            progress(table, done, total)


def _upsert_sqlite(
    connection: Connection,
    target: Table,
    names: Sequence[str],
    batches: Iterator[pl.DataFrame],
    provided: Sequence[str],
) -> int:
    statement = sqlite.insert(target).values(dict.fromkeys(names))
    set_, where = _changes(target, statement.excluded, provided)
    upsert = statement.on_conflict_do_update(
        index_elements=list(KEYS[target.name]), set_=set_, where=where
    )
    compiled = upsert.compile(dialect=connection.dialect)
    order = compiled.positiontup or []
    written = 0
    cache = connection.exec_driver_sql("PRAGMA cache_size").scalar_one()
    connection.exec_driver_sql(f"PRAGMA cache_size = -{SQLITE_CACHE_KIB}")
    with _bare_while_filled(connection, target.name):
        for batch in batches:
            stored = batch.with_columns(pl.selectors.datetime().dt.to_string(_SQLITE_TIME)).select(
                order
            )
            written += connection.exec_driver_sql(str(compiled), stored.rows()).rowcount
    connection.exec_driver_sql(f"PRAGMA cache_size = {cache}")
    return written


@contextmanager
def _bare_while_filled(connection: Connection, table: str) -> Iterator[None]:
    """Take indexes and triggers off an empty SQLite table, and put them back when it is filled.

    Sorting once beats a million insertions into an index, and our rows carry the change id that
    the triggers would give. It is part of the transaction as everything else. The key's index
    stays, the upsert needs it.
    """
    parts: list[Any] = []
    if _is_empty(connection, table):
        parts = list(
            connection.exec_driver_sql(
                "SELECT type, name, sql FROM sqlite_master WHERE type IN ('index', 'trigger')"
                " AND tbl_name = ? AND sql IS NOT NULL ORDER BY type",
                (table,),
            )
        )
    for kind, name, _ in parts:
        connection.exec_driver_sql(f'DROP {kind} "{name}"')
    yield
    for _, _, sql in parts:
        connection.exec_driver_sql(sql)


def _is_empty(connection: Connection, table: str) -> bool:
    return connection.execute(select(tables.metadata.tables[table].c.id).limit(1)).first() is None


def _upsert_postgresql(
    connection: Connection,
    target: Table,
    names: Sequence[str],
    batches: Iterator[pl.DataFrame],
    provided: Sequence[str],
) -> int:
    # Readers go on reading; another writer waits, and then finds these rows.
    connection.execute(text(f"LOCK TABLE {target.name} IN SHARE ROW EXCLUSIVE MODE"))
    if _is_empty(connection, target.name):
        return sum(copy_rows(connection, target.name, batch) for batch in batches)
    staged_name = f"staged_{target.name}"
    connection.execute(text(f"CREATE TEMP TABLE {staged_name} (LIKE {target.name}) ON COMMIT DROP"))
    for batch in batches:
        copy_rows(connection, staged_name, batch)
    staged = sql_table(staged_name, *(sql_column(name) for name in names))
    statement = postgresql.insert(target).from_select(
        list(names), select(*(staged.c[name] for name in names))
    )
    set_, where = _changes(target, statement.excluded, provided)
    upsert = statement.on_conflict_do_update(
        index_elements=list(KEYS[target.name]), set_=set_, where=where
    )
    written = connection.execute(upsert, execution_options={"preserve_rowcount": True}).rowcount
    connection.execute(text(f"DROP TABLE {staged_name}"))
    return written


def copy_rows(connection: Connection, table: str, batch: pl.DataFrame) -> int:
    """Append rows to a PostgreSQL table by COPY; a blank text becomes null."""
    driver: Any = connection.connection.driver_connection
    command = f"COPY {table} ({', '.join(batch.columns)}) FROM STDIN (FORMAT csv)"
    with driver.cursor() as cursor, cursor.copy(command) as stream:
        # An empty field is null: the contracts leave no empty text.
        stream.write(batch.write_csv(include_header=False, quote_style="non_numeric").encode())
    return batch.height


def _changes(
    target: Table, given: Any, provided: Sequence[str]
) -> tuple[dict[str, Any], ColumnElement[bool]]:
    """What an update sets, and the condition that it changes anything."""
    values = {
        name: value
        for name in CONTRACTS[target.name].column_names()
        if name not in KEYS[target.name]
        and (value := _new_value(target.c[name], given, provided)) is not None
    }
    differs = or_(
        false(), *(target.c[name].is_distinct_from(value) for name, value in values.items())
    )
    return {**values, "change_id": given.change_id}, differs


def _new_value(
    column: Column[Any], given: Any, provided: Sequence[str]
) -> ColumnElement[Any] | None:
    """Value of a column in a row that exists already; None leaves it alone."""
    name, table = column.name, column.table.name
    if table == "clients" and name in KEPT_COLUMNS:
        return func.coalesce(column, given[name]) if name in provided else None
    if name in provided:
        return given[name]  # type: ignore[no-any-return]
    if table == "leads" and name in ("status", "updated_at") and "converted_at" in provided:
        # A conversion tells the status and the time of the change; an open lead tells neither.
        return case((given.converted_at.is_not(None), given[name]), else_=column)
    return None
