"""Lead scores: what they are computed from, read some leads at a time, and written back in bulk."""

# ruff: noqa: S608 - names in queries are literals of this file; values pass `quote_text`
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl
from sqlalchemy import Connection, text

from conversion_assets.domain.contracts import CONTRACTS
from conversion_assets.domain.errors import NotFoundError
from conversion_assets.domain.terms import PatternType
from conversion_assets.scoring.lead_score import COMPONENT_NAMES, SCORE_COLUMNS, SCORED_COLUMNS
from conversion_assets.storage.database import next_change_id
from conversion_assets.storage.sources import SourceSnapshot
from conversion_assets.storage.tables import sqlite_time
from conversion_assets.storage.upsert import copy_rows

SETTING_SCHEMA: dict[str, pl.DataType] = {
    "client_id": pl.String(),
    "ideal_profile": pl.String(),
    "who_document": pl.String(),
    "valid_until": pl.Datetime("us", "UTC"),
    "client_weights": pl.String(),
}
"""Columns of `load_settings`."""

STORED_COLUMNS = tuple(name for name in SCORE_COLUMNS if name != "scored_at")
"""What tells whether a lead's score changed; the time alone is no change."""

_JSON = ("als_components", "als_weights_used")
_TYPES = {
    "client_id": "text",
    "id": "text",
    "als_score": "double precision",
    "als_tier": "text",
    "als_components": "jsonb",
    "als_weights_used": "jsonb",
    "scored_at": "timestamptz",
    "change_id": "bigint",
}


@dataclass(frozen=True)
class LeadRange:
    """Leads that follow each other: whole clients, or some of one client behind an id.

    Attributes:
        client_ids: The clients; one where `after` or `most` is given.
        after: Id behind which the leads begin.
        most: Rows at most.
    """

    client_ids: tuple[str, ...]
    after: str | None = None
    most: int | None = None


def load_settings(
    snapshot: SourceSnapshot, client_ids: Sequence[str] | None = None
) -> pl.DataFrame:
    """What scoring needs to know of each client, in one query.

    Args:
        snapshot: State of the database.
        client_ids: Only these; None for all that are not deleted.

    Returns:
        Columns of `SETTING_SCHEMA`, one row per client, sorted by it. JSON as text;
        `who_document` holds recommended_weights and score_evaluation only.

    Raises:
        NotFoundError: one of the clients does not exist.
    """
    live = " AND c.deleted_at IS NULL" if client_ids is None else ""
    found = snapshot.query(
        f"""SELECT c.id AS client_id, {snapshot.json_text("c.ideal_profile")} AS ideal_profile,
        {_who_document(snapshot)} AS who_document, p.valid_until,
        {snapshot.json_text("c.als_learned_weights")} AS client_weights
        FROM clients c LEFT JOIN conversion_patterns p
        ON p.client_id = c.id AND p.pattern_type = '{PatternType.WHO}'
        WHERE {snapshot.in_clients("c.id", client_ids)}{live}""",
        SETTING_SCHEMA,
    ).sort("client_id")
    missing = sorted(set(client_ids or ()) - set(found["client_id"]))
    if missing:
        raise NotFoundError(f"there is no client {missing[0]!r}")
    return found


def _who_document(snapshot: SourceSnapshot) -> str:
    """The two members of a WHO pattern that weights depend on: the rest is a thousand times it."""
    names = ("recommended_weights", "score_evaluation")
    if snapshot.is_postgresql:
        members = ", ".join(f"'{name}', p.patterns -> '{name}'" for name in names)
        made = f"jsonb_build_object({members})::text"
    else:
        # A member that is no object is none: a number of its own may be too large to write again.
        members = ", ".join(
            f"'{name}', CASE WHEN json_type(p.patterns, '$.{name}') = 'object'"
            f" THEN json(json_extract(p.patterns, '$.{name}')) END"
            for name in names
        )
        made = f"json_object({members})"
    kind = "jsonb_typeof" if snapshot.is_postgresql else "json_type"
    return f"CASE WHEN {kind}(p.patterns) = 'object' THEN {made} END"


def count_leads(
    snapshot: SourceSnapshot,
    client_ids: Sequence[str],
    now: datetime,
    *,
    only_missing: bool = False,
) -> dict[str, int]:
    """Leads of each client that a scoring as of `now` looks at; clients without any are left out.

    Args:
        snapshot: State of the database.
        client_ids: The clients.
        now: Time of scoring. Leads created later, or scored later already, are none of them.
        only_missing: Only leads that lack a component, whatever else they hold.
    """
    where = _where(snapshot, now, only_missing=only_missing)
    chosen = snapshot.in_clients("client_id", client_ids)
    counted = snapshot.query(
        f"SELECT client_id, count(*) AS rows FROM leads WHERE {chosen} AND {where}"
        " GROUP BY client_id",
        {"client_id": pl.String(), "rows": pl.Int64()},
    )
    return dict(counted.sort("client_id").iter_rows())


def divide_leads(counts: dict[str, int], most: int) -> Iterator[LeadRange]:
    """Cut clients into ranges of about `most` leads: small clients together, a large one alone.

    Example:
        >>> [part.client_ids for part in divide_leads({"a": 3, "b": 4, "c": 9}, 8)]
        [('a', 'b'), ('c',)]
    """
    together: list[str] = []
    rows = 0
    for client_id, count in sorted(counts.items()):
        if together and rows + count > most:
            yield LeadRange(tuple(together))
            together, rows = [], 0
        if count > most:
            yield LeadRange((client_id,), most=most)
        else:
            together.append(client_id)
            rows += count
    if together:
        yield LeadRange(tuple(together))


def read_leads(
    snapshot: SourceSnapshot, part: LeadRange, now: datetime, *, only_missing: bool = False
) -> pl.DataFrame:
    """Leads of a range with what their score depends on, and the score they have.

    Returns:
        `SCORED_COLUMNS`, `STORED_COLUMNS` and change_id. Of a part of one client in the
        database's order of ids, so that the last row is where the next part begins.
    """
    columns = CONTRACTS["leads"].columns()
    names = [*SCORED_COLUMNS, *STORED_COLUMNS]
    schema = {name: columns[name].dtype for name in names} | {"change_id": pl.Int64()}
    listed = ", ".join(
        f"{snapshot.json_text(name)} AS {name}" if name in _JSON else name for name in schema
    )
    # One client by equality: the key's index then gives its rows in order, without a sort.
    only = part.client_ids[0] if len(part.client_ids) == 1 else None
    where = [
        snapshot.in_clients("client_id", part.client_ids)
        if only is None
        else f"client_id = {snapshot.quote_text(only)}",
        _where(snapshot, now, only_missing=only_missing),
    ]
    if part.after is not None:
        where.append(f"id > {snapshot.quote_text(part.after)}")
    order = f" ORDER BY client_id, id LIMIT {part.most}" if part.most is not None else ""
    return snapshot.query(f"SELECT {listed} FROM leads WHERE {' AND '.join(where)}{order}", schema)


def _where(snapshot: SourceSnapshot, now: datetime, *, only_missing: bool) -> str:
    moment = snapshot.quote_text(sqlite_time(now))
    if snapshot.is_postgresql:
        moment = f"{moment}::timestamptz"
    known = f"deleted_at IS NULL AND created_at <= {moment}"
    if only_missing:
        return f"{known} AND NOT ({_has_components(snapshot)})"
    # A score that is newer stands: two scorers may meet, and a repeated old one must not win.
    return f"{known} AND (scored_at IS NULL OR scored_at <= {moment})"


def _has_components(snapshot: SourceSnapshot) -> str:
    if snapshot.is_postgresql:
        tests = [
            f"COALESCE(jsonb_typeof(als_components -> '{name}') = 'number', false)"
            for name in COMPONENT_NAMES
        ]
    else:
        tests = [
            f"COALESCE(json_type(als_components, '$.{name}') IN ('integer', 'real'), 0)"
            for name in COMPONENT_NAMES
        ]
    return " AND ".join(tests)


def find_changed(leads: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """Rows of `write_scores` for the leads whose score differs from the stored one.

    Args:
        leads: Of `read_leads`.
        scores: Of `compute_lead_scores`, in the same order.
    """
    differs = pl.any_horizontal(
        leads[name].ne_missing(scores[name]).alias(name) for name in STORED_COLUMNS
    )
    return scores.with_columns(leads["change_id"]).filter(differs)


def write_scores(connection: Connection, rows: pl.DataFrame) -> int:
    """Store scores inside the caller's transaction.

    A lead that somebody changed since it was read is left alone: its score would be of old data.
    `updated_at` stays: it tells when a failed lead failed.

    Args:
        connection: In a transaction that may write.
        rows: client_id, id, `SCORE_COLUMNS`, and change_id as read.

    Returns:
        How many were stored.
    """
    if rows.is_empty():
        return 0
    given = rows.select(list(_TYPES))
    change_id = next_change_id(connection)
    write = _write_postgresql if connection.dialect.name == "postgresql" else _write_sqlite
    return write(connection, given, change_id)


def _write_sqlite(connection: Connection, rows: pl.DataFrame, change_id: int) -> int:
    statement = f"""UPDATE leads SET {", ".join(f"{name} = ?" for name in SCORE_COLUMNS)},
        change_id = {change_id} WHERE client_id = ? AND id = ? AND change_id IS ?"""
    given = rows.select(
        *STORED_COLUMNS,
        pl.col("scored_at").dt.to_string("%Y-%m-%dT%H:%M:%S%.6fZ"),
        "client_id",
        "id",
        "change_id",
    )
    return int(connection.exec_driver_sql(statement, given.rows()).rowcount)


def _write_postgresql(connection: Connection, rows: pl.DataFrame, change_id: int) -> int:
    columns = ", ".join(f"{name} {kind}" for name, kind in _TYPES.items())
    connection.execute(text(f"CREATE TEMP TABLE staged_scores ({columns}) ON COMMIT DROP"))
    copy_rows(connection, "staged_scores", rows)
    set_ = ", ".join(f"{name} = s.{name}" for name in SCORE_COLUMNS)
    done = connection.execute(
        text(
            f"""UPDATE leads l SET {set_}, change_id = {change_id} FROM staged_scores s
            WHERE l.client_id = s.client_id AND l.id = s.id
            AND l.change_id IS NOT DISTINCT FROM s.change_id"""
        ),
        execution_options={"preserve_rowcount": True},
    )
    connection.execute(text("DROP TABLE staged_scores"))
    return int(done.rowcount)
