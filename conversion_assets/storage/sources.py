"""Rows of the system of record as Polars frames: all of them, or what changed since a watermark.

How a change is found, whoever wrote it
    Every row of clients, leads and activities carries `change_id`, the number of the transaction
    that wrote it last; triggers record the keys of deleted rows with the number of theirs.

    On SQLite writers take turns, so numbers become visible in their order: all rows above the
    counter seen last are new.

    On PostgreSQL the number is the transaction id, and a transaction with a lower id may commit
    after one with a higher id. "Greater than the highest seen" would lose its rows for ever. The
    watermark is therefore the lower end of the snapshot, `pg_snapshot_xmin`: every transaction
    below it had ended when we read, so its rows were either seen or never will exist; rows from it
    upwards are read again next time, a few of them twice. Readers must take a row twice without
    harm. A long writing transaction anywhere on the server makes re-reads larger, never wrong.

    A watermark belongs to one database in one life: after a restore into another server, or of an
    older state, numbers mean something else. Then everything is read, and the set says so.
"""

# ruff: noqa: S608 - names in queries are literals of this file; values pass `_literal` or are numbers
import json
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, LifoQueue
from typing import Any, Literal, Protocol

import polars as pl
from sqlalchemy import Engine

from conversion_assets.domain.contracts import CONTRACTS, KEYS, json_columns
from conversion_assets.domain.errors import InputError, UnreachableError
from conversion_assets.domain.terms import BOOKING_ACTION, LeadStatus, SubscriptionStatus
from conversion_assets.storage.database import (
    CONNECT_TIMEOUT_S,
    describe_failure,
    read_transaction,
    reported_connection_errors,
)

SourceTable = Literal["clients", "leads", "activities"]

FETCH_ROWS = 20_000
"""Rows of one fetch on SQLite: Python objects of a fetch take about 40 MB, and larger fetches are
no faster."""

KEYS_PER_QUERY = 20_000
"""Lead keys of one query, as one JSON parameter of about 1 MB."""

_TRANSIENT_STATES = ("08", "40", "53", "57")
"""Classes of SQLSTATE that pass: connection, rollback by a rival, resources, server restart."""

_SQLITE_TIME = "%Y-%m-%dT%H:%M:%S%.6fZ"


@dataclass(frozen=True)
class Watermark:
    """Up to where changes have been read: rows numbered `position` or higher are yet to be read.

    Attributes:
        epoch: Which database, in which life, `position` belongs to.
        position: Lowest number that may still be unseen.
    """

    epoch: str
    position: int

    def __str__(self) -> str:
        """Text to keep; `parse` reads it back."""
        return f"{self.epoch}/{self.position}"

    @classmethod
    def parse(cls, text: str) -> "Watermark":
        """Read the text of a watermark.

        Raises:
            InputError: it is none.

        Example:
            >>> Watermark.parse("7f3a/42")
            Watermark(epoch='7f3a', position=42)
        """
        epoch, _, position = text.rpartition("/")
        if not epoch or not position.isdecimal():
            raise InputError(f"watermark {text!r} cannot be read; it looks like 7f3a/42")
        return cls(epoch, int(position))


@dataclass(frozen=True)
class ChangeSet:
    """What changed in one table since a watermark.

    Attributes:
        rows: New and changed rows, canonical columns, sorted by key. Rows may come again that
            were read before. Activities are listed whether or not their lead was deleted softly.
        deleted: Keys (client_id, id) that are gone, by deletion, a new key, or `deleted_at`.
        watermark: Where the next read starts.
        is_complete: `rows` is the whole table and replaces everything read before; `deleted` is
            then empty.
    """

    rows: pl.DataFrame
    deleted: pl.DataFrame
    watermark: Watermark
    is_complete: bool


class _Reader(Protocol):
    """Runs queries within one read-only snapshot."""

    def query(self, sql: str, schema: dict[str, pl.DataType]) -> pl.DataFrame: ...

    def value(self, sql: str) -> Any: ...


class SourceSnapshot:
    """One unchanging state of the source tables; make it with `open_snapshot`.

    Leads and activities read from one snapshot belong together: no activity without its lead, and
    one watermark for both.
    """

    def __init__(self, reader: _Reader, *, is_postgresql: bool) -> None:
        self._reader = reader
        self._is_postgresql = is_postgresql
        self._last, self.watermark = self._position()

    def _position(self) -> tuple[int, Watermark]:
        if self._is_postgresql:
            sql = """
                SELECT (SELECT system_identifier FROM pg_control_system())
                    || '.' || (SELECT timeline_id FROM pg_control_checkpoint())
                    || '.' || (SELECT oid FROM pg_database WHERE datname = current_database())
                    || ' ' || pg_snapshot_xmin(pg_current_snapshot())
                    || ' ' || pg_snapshot_xmax(pg_current_snapshot())"""
        else:
            sql = "SELECT epoch || ' ' || (value + 1) || ' ' || (value + 1) FROM change_counter"
        epoch, low, high = str(self._reader.value(sql)).split(" ")
        return int(high), Watermark(epoch, int(low))

    def clients(self, client_ids: Sequence[str] | None = None) -> pl.DataFrame:
        """All or some clients, deleted ones too, canonical columns, sorted by id."""
        where = self.in_clients("id", client_ids)
        return self._rows("clients", f"FROM clients t WHERE {where}")

    def changes(
        self,
        table: Literal["leads", "activities"],
        since: Watermark | None,
        client_ids: Sequence[str] | None = None,
        columns: Collection[str] | None = None,
    ) -> ChangeSet:
        """Rows that changed since a watermark, and keys that are gone.

        Args:
            table: leads or activities.
            since: Watermark of an earlier read of this table for the same clients; None for all.
            client_ids: Only these clients.
            columns: Only these of the canonical columns, and the key.
        """
        where = self.in_clients("t.client_id", client_ids)
        alive = f"{where} AND t.deleted_at IS NULL" if table == "leads" else where
        if since is None or not self.knows(since):
            rows = self._rows(table, f"FROM {table} t WHERE {alive}", columns)
            return ChangeSet(rows, _no_keys(), self.watermark, is_complete=True)
        moved = f"t.change_id >= {since.position}"
        rows = self._rows(table, f"FROM {table} t WHERE {moved} AND {alive}", columns)
        gone = f"""SELECT t.client_id, t.id FROM row_deletions t
            WHERE t.table_name = '{table}' AND {moved} AND {where} AND NOT EXISTS (
                SELECT 1 FROM {table} k WHERE k.client_id = t.client_id AND k.id = t.id)"""
        if table == "leads":
            gone += f""" UNION ALL SELECT t.client_id, t.id FROM leads t
                WHERE {moved} AND {where} AND t.deleted_at IS NOT NULL"""
        deleted = self._reader.query(gone, _KEY_SCHEMA).sort("client_id", "id")
        return ChangeSet(rows, deleted, self.watermark, is_complete=False)

    def knows(self, since: Watermark) -> bool:
        """Whether what changed since a watermark can be told: it is of this database's life."""
        return since.epoch == self.watermark.epoch and since.position <= self._last

    def rows_of_clients(
        self,
        table: Literal["leads", "activities"],
        client_ids: Sequence[str],
        columns: Collection[str] | None = None,
    ) -> pl.DataFrame:
        """All rows of some clients but those of deleted leads, in no order.

        Args:
            table: leads, or activities whether or not their lead was deleted softly.
            client_ids: The clients.
            columns: Only these of the canonical columns, and the key.
        """
        where = self.in_clients("t.client_id", client_ids)
        if table == "leads":
            where += " AND t.deleted_at IS NULL"
        return self._unsorted(table, f"FROM {table} t WHERE {where}", columns)

    def leads_of(self, keys: pl.DataFrame, columns: Collection[str] | None = None) -> pl.DataFrame:
        """The given leads that are not deleted, in no order.

        Args:
            keys: Columns client_id and lead_id.
            columns: Only these of the canonical columns, and the key.
        """
        return self._keyed(
            "leads", "id", keys.select("client_id", "lead_id"), columns, "t.deleted_at IS NULL"
        )

    def activities_of(
        self, keys: pl.DataFrame, columns: Collection[str] | None = None
    ) -> pl.DataFrame:
        """All activities of the given leads, sorted by (client_id, id).

        Args:
            keys: Columns client_id and lead_id.
            columns: Only these of the canonical columns, and the key.
        """
        pairs = keys.select("client_id", "lead_id")
        return self._keyed("activities", "lead_id", pairs, columns).sort(KEYS["activities"])

    def activities_by_id(
        self, keys: pl.DataFrame, columns: Collection[str] | None = None
    ) -> pl.DataFrame:
        """The given activities, in no order.

        Args:
            keys: Columns client_id and id.
            columns: Only these of the canonical columns, and the key.
        """
        return self._keyed("activities", "id", keys.select("client_id", "id"), columns)

    def _keyed(
        self,
        table: Literal["leads", "activities"],
        name: str,
        keys: pl.DataFrame,
        columns: Collection[str] | None,
        where: str = "1 = 1",
    ) -> pl.DataFrame:
        """Rows whose client and column `name` are among the keys."""
        # Not by Polars: its threads may be at work on the store, and the database would wait.
        # Keys mostly come in order, which a set would lose and sorting would have to find again.
        pairs = sorted(dict.fromkeys(keys.rows()))
        parts = [pairs[at : at + KEYS_PER_QUERY] for at in range(0, len(pairs), KEYS_PER_QUERY)]
        frames = [
            self._unsorted(table, f"{self._chosen(table, name, part)} WHERE {where}", columns)
            for part in parts
        ]
        empty = pl.DataFrame(schema=_schema(table, columns))
        return pl.concat(frames) if frames else empty

    def _chosen(self, table: str, name: str, pairs: list[tuple[str, ...]]) -> str:
        listed = _literal(pairs)
        if self._is_postgresql:
            chosen = f"SELECT e ->> 0, e ->> 1 FROM jsonb_array_elements({listed}::jsonb) e"
        else:
            chosen = (
                "SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]')"
                f" FROM json_each({listed})"
            )
        return f"""FROM (WITH chosen(of_client, named) AS ({chosen}) SELECT a.* FROM chosen
            JOIN {table} a ON a.client_id = chosen.of_client AND a.{name} = chosen.named) t"""

    def count_rows(self, table: SourceTable) -> pl.DataFrame:
        """Rows per client (client_id, rows), as a complete read would return them."""
        key = "id" if table == "clients" else "client_id"
        alive = "WHERE deleted_at IS NULL" if table == "leads" else ""
        sql = f"SELECT {key} AS client_id, count(*) AS rows FROM {table} {alive} GROUP BY {key}"
        schema = {"client_id": pl.String(), "rows": pl.Int64()}
        return self._reader.query(sql, schema).sort("client_id")

    def source_version(self, table: SourceTable) -> str:
        """Data version that moves exactly when rows of the table were written or deleted.

        The highest change id alone would miss a transaction with a lower id that commits later;
        count and sum see it.
        """
        live = self._reader.value(
            f"SELECT count(*) || '-' || COALESCE(sum(change_id), 0) FROM {table}"
        )
        gone = self._reader.value(
            "SELECT count(*) || '-' || COALESCE(sum(change_id), 0) FROM row_deletions"
            f" WHERE table_name = '{table}'"
        )
        return f"{live}-{gone}"

    def query(self, sql: str, schema: dict[str, pl.DataType]) -> pl.DataFrame:
        """Rows of a query of this room's other modules, of the same state as everything here."""
        return self._reader.query(sql, schema)

    def count(self, sql: str) -> int:
        """The one number of a query of this room's other modules."""
        return int(self._reader.value(sql))

    @property
    def is_postgresql(self) -> bool:
        """Which of the two kinds of SQL it speaks."""
        return self._is_postgresql

    def quote_text(self, value: str) -> str:
        """A text as an expression of SQL."""
        listed = _literal([(value,)])
        if self._is_postgresql:
            return f"({listed}::jsonb -> 0 ->> 0)"
        return f"json_extract({listed}, '$[0][0]')"

    def json_text(self, column: str) -> str:
        """A JSON column as text."""
        return f"{column}::text" if self._is_postgresql else column

    def active_client_ids(self) -> list[str]:
        """Clients to learn for: active, not paused, not deleted, with a converted lead; sorted.

        A lead converted when its status says so and has a time, or when a meeting was booked.
        """
        live = "l.client_id = c.id AND l.deleted_at IS NULL"
        sql = f"""SELECT c.id FROM clients c
            WHERE c.subscription_status = '{SubscriptionStatus.ACTIVE}'
            AND NOT c.is_paused AND c.deleted_at IS NULL AND (
                EXISTS (SELECT 1 FROM leads l WHERE {live} AND l.converted_at IS NOT NULL
                    AND l.status = '{LeadStatus.CONVERTED}')
                OR EXISTS (SELECT 1 FROM activities a
                    JOIN leads l ON l.client_id = a.client_id AND l.id = a.lead_id
                    WHERE a.client_id = c.id AND a.action = '{BOOKING_ACTION}' AND {live}))"""
        return self._reader.query(sql, {"id": pl.String()})["id"].sort().to_list()

    def _rows(
        self, table: SourceTable, source: str, columns: Collection[str] | None = None
    ) -> pl.DataFrame:
        # Sorted here: the databases' own text orders differ.
        return self._unsorted(table, source, columns).sort(KEYS[table])

    def _unsorted(
        self, table: SourceTable, source: str, columns: Collection[str] | None
    ) -> pl.DataFrame:
        schema = _schema(table, columns)
        as_text = set(json_columns(table)) if self._is_postgresql else set()
        named = ", ".join(f"t.{c}::text AS {c}" if c in as_text else f"t.{c}" for c in schema)
        return self._reader.query(f"SELECT {named} {source}", schema)

    def in_clients(self, column: str, client_ids: Sequence[str] | None) -> str:
        """Condition that a column names one of the clients; None for any."""
        if client_ids is None:
            return "1 = 1"
        listed = _literal([(client_id,) for client_id in sorted(set(client_ids))])
        if self._is_postgresql:
            # One array, known before the scan, where a join would be planned for a hundred clients.
            ids = f"ARRAY(SELECT e ->> 0 FROM jsonb_array_elements({listed}::jsonb) e)"
            return f"{column} = ANY ({ids})"
        return f"{column} IN (SELECT json_extract(value, '$[0]') FROM json_each({listed}))"


@contextmanager
def open_snapshot(engine: Engine, *, connections: int = 1) -> Iterator[SourceSnapshot]:
    """One state of the source tables, held while the block runs.

    Args:
        engine: System of record.
        connections: So many threads may wait for PostgreSQL at a time, all seeing the same state;
            others wait for them. SQLite works for one at a time.

    Raises:
        UnreachableError: the database cannot be reached or broke off.
        InputError: a stored value is not of its column's type.

    Example:
        with open_snapshot(engine) as snapshot:
            leads = snapshot.changes("leads", since)
            activities = snapshot.changes("activities", since)
    """
    if engine.dialect.name == "postgresql":
        with _adbc_reader(engine, connections) as reader:
            yield SourceSnapshot(reader, is_postgresql=True)
        return
    with reported_connection_errors(engine), read_transaction(engine) as connection:
        driver = connection.connection.driver_connection
        try:
            yield SourceSnapshot(_SqliteReader(driver), is_postgresql=False)
        except sqlite3.OperationalError as error:
            raise UnreachableError(describe_failure(engine, error)) from None
        except sqlite3.Error as error:
            raise InputError(describe_failure(engine, error)) from None


def read_clients(engine: Engine, client_ids: Sequence[str] | None = None) -> pl.DataFrame:
    """All or some clients in a snapshot of their own; see `SourceSnapshot.clients`."""
    with open_snapshot(engine) as snapshot:
        return snapshot.clients(client_ids)


def read_changes(
    engine: Engine,
    table: Literal["leads", "activities"],
    since: Watermark | None,
    client_ids: Sequence[str] | None = None,
) -> ChangeSet:
    """Changes of one table in a snapshot of its own; see `SourceSnapshot.changes`."""
    with open_snapshot(engine) as snapshot:
        return snapshot.changes(table, since, client_ids)


def read_activities_of(engine: Engine, keys: pl.DataFrame) -> pl.DataFrame:
    """All activities of some leads in a snapshot of its own; see `SourceSnapshot.activities_of`."""
    with open_snapshot(engine) as snapshot:
        return snapshot.activities_of(keys)


def count_rows(engine: Engine, table: SourceTable) -> pl.DataFrame:
    """Rows per client; see `SourceSnapshot.count_rows`."""
    with open_snapshot(engine) as snapshot:
        return snapshot.count_rows(table)


def source_version(engine: Engine, table: SourceTable) -> str:
    """Data version of one table; see `SourceSnapshot.source_version`."""
    with open_snapshot(engine) as snapshot:
        return snapshot.source_version(table)


def active_client_ids(engine: Engine) -> list[str]:
    """Clients to learn for; see `SourceSnapshot.active_client_ids`."""
    with open_snapshot(engine) as snapshot:
        return snapshot.active_client_ids()


def _literal(keys: Sequence[tuple[str, ...]]) -> str:
    """Keys as one SQL literal that holds a JSON array of arrays.

    json.dumps writes printable ASCII only, of which the quote alone is special in a literal. No
    stored id holds a NUL, and PostgreSQL would refuse to look for one.
    """
    listed = json.dumps(keys)
    if "\\u0000" in listed:
        listed = json.dumps([key for key in keys if not any("\0" in part for part in key)])
    return "'" + listed.replace("'", "''") + "'"


_KEY_SCHEMA: dict[str, pl.DataType] = {"client_id": pl.String(), "id": pl.String()}


def _no_keys() -> pl.DataFrame:
    return pl.DataFrame(schema=_KEY_SCHEMA)


def _schema(table: SourceTable, columns: Collection[str] | None = None) -> dict[str, pl.DataType]:
    chosen = None if columns is None else {*columns, *KEYS[table]}
    return {
        name: column.dtype
        for name, column in CONTRACTS[table].columns().items()
        if chosen is None or name in chosen
    }


class _SqliteReader:
    """Plain driver cursor: the one connection holds the snapshot, and nothing guesses types."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._turn = threading.Lock()

    def value(self, sql: str) -> Any:
        with self._turn:
            return self._connection.execute(sql).fetchone()[0]

    def query(self, sql: str, schema: dict[str, pl.DataType]) -> pl.DataFrame:
        with self._turn:
            return pl.concat(self._read(sql, schema), rechunk=True)

    def _read(self, sql: str, schema: dict[str, pl.DataType]) -> Iterator[pl.DataFrame]:
        cursor = self._connection.execute(sql)
        yield pl.DataFrame(schema=schema)
        while rows := cursor.fetchmany(FETCH_ROWS):
            columns = zip(*rows, strict=True)
            yield pl.DataFrame(
                [
                    _sqlite_column(name, dtype, values)
                    for (name, dtype), values in zip(schema.items(), columns, strict=True)
                ]
            )


def _sqlite_column(name: str, dtype: pl.DataType, values: tuple[Any, ...]) -> pl.Series:
    try:
        if isinstance(dtype, pl.Datetime):
            text = pl.Series(name, values, dtype=pl.String)
            return text.str.to_datetime(_SQLITE_TIME, time_unit="us", time_zone="UTC")
        if dtype == pl.Boolean:
            return pl.Series(name, values, dtype=pl.Int64).cast(pl.Boolean)
        return pl.Series(name, values, dtype=dtype)
    except (TypeError, pl.exceptions.PolarsError) as error:
        line = " ".join(str(error).split())
        raise InputError(f"column {name} holds a value that is no {dtype}: {line}") from None


@contextmanager
def _adbc_reader(engine: Engine, connections: int) -> Iterator["_AdbcReader"]:
    # Optional drivers: the embedded installation has neither.
    # Not their `dbapi`: it imports pandas, which takes longer than a refresh without changes.
    import adbc_driver_postgresql  # noqa: PLC0415
    from adbc_driver_manager import AdbcConnection, Error  # noqa: PLC0415
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415

    _, given = engine.dialect.create_connect_args(engine.url)
    # The rest is for the Python driver only.
    named = {name: str(value) for name, value in given.items() if isinstance(value, str | int)}
    conninfo = make_conninfo("", **{"connect_timeout": str(CONNECT_TIMEOUT_S)} | named)
    try:
        with adbc_driver_postgresql.connect(conninfo) as database, ExitStack() as opened:
            yield _AdbcReader(lambda: opened.enter_context(AdbcConnection(database)), connections)
    except Error as error:
        # A server that answered with any other state would refuse again.
        is_transient = (error.sqlstate or "08")[:2] in _TRANSIENT_STATES
        kind = UnreachableError if is_transient else InputError
        raise kind(describe_failure(engine, error)) from None


class _AdbcReader:
    """ADBC: binary COPY into Arrow, about five times as fast as a driver's rows.

    Args:
        connect: Opens another connection.
        connections: How many at most; the second is opened when two threads ask at once.
    """

    def __init__(self, connect: Callable[[], Any], connections: int) -> None:
        self._connect = connect
        self._idle: LifoQueue[Any] = LifoQueue()
        self._state: str | None = None
        self._left = threading.Semaphore(connections - 1)
        self._idle.put(self._begin(None))
        if connections > 1:
            self._state = str(self.value("SELECT pg_export_snapshot()"))

    def _begin(self, state: str | None) -> Any:
        """A connection in a transaction that sees the given state, or the present one."""
        connection = self._connect()
        connection.set_autocommit(False)
        # The driver has opened a transaction; nothing was read in it yet.
        _execute(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        if state is not None:
            _execute(connection, f"SET TRANSACTION SNAPSHOT '{state}'")
        return connection

    @contextmanager
    def _borrow(self) -> Iterator[Any]:
        connection = self._find()
        try:
            yield connection
        finally:
            self._idle.put(connection)

    def _find(self) -> Any:
        """An idle connection, or a new one, or the next that becomes idle."""
        from adbc_driver_manager import Error  # noqa: PLC0415

        try:
            return self._idle.get_nowait()
        except Empty:
            pass
        if self._state is not None and self._left.acquire(blocking=False):
            # One connection is enough: a server may have no other to give, and a pooler between
            # may lead to another server, which does not know the state.
            with suppress(Error):
                return self._begin(self._state)
        return self._idle.get()

    def _run(self, sql: str) -> pl.DataFrame:
        from adbc_driver_manager import AdbcStatement  # noqa: PLC0415

        with self._borrow() as connection, AdbcStatement(connection) as statement:
            statement.set_sql_query(sql)
            stream, _ = statement.execute_query()
            return pl.DataFrame(stream)

    def value(self, sql: str) -> Any:
        return self._run(sql).item()

    def query(self, sql: str, schema: dict[str, pl.DataType]) -> pl.DataFrame:
        return self._run(sql).select(pl.col(name).cast(dtype) for name, dtype in schema.items())


def _execute(connection: Any, sql: str) -> None:
    from adbc_driver_manager import AdbcStatement  # noqa: PLC0415

    with AdbcStatement(connection) as statement:
        statement.set_sql_query(sql)
        statement.execute_update()
