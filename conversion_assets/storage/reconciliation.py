"""What `verify` reads of the system of record: counts and keys per client, hardly ever a row.

Every query covers all clients at once and answers with a few rows per client.
"""

# ruff: noqa: S608 - names in queries are literals of this file; values are bound or numbers
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from sqlalchemy import Engine, select, text

from conversion_assets.domain.errors import NotFoundError
from conversion_assets.domain.terms import OutcomeKind, PatternType
from conversion_assets.storage.database import (
    read_transaction,
    reported_connection_errors,
    write_transaction,
)
from conversion_assets.storage.sources import SourceSnapshot, Watermark
from conversion_assets.storage.tables import UtcDateTime, clients, conversion_patterns

_TIME = pl.Datetime("us", "UTC")
_TEXT = pl.String()
_COUNT = pl.Int64()


def count_actions(snapshot: SourceSnapshot) -> pl.DataFrame:
    """Activities of leads that are not deleted: client_id, action, channel, rows."""
    whole = "SELECT client_id, action, channel, count(*) AS rows FROM activities a GROUP BY 1, 2, 3"
    # Deleted leads are few: their activities are looked up, not joined to all others.
    gone = """SELECT a.client_id, a.action, a.channel, -count(*) AS rows FROM leads l
        JOIN activities a ON a.client_id = l.client_id AND a.lead_id = l.id
        WHERE l.deleted_at IS NOT NULL GROUP BY 1, 2, 3"""
    schema = {"client_id": _TEXT, "action": _TEXT, "channel": _TEXT, "rows": _COUNT}
    parts = [snapshot.query(sql, schema) for sql in (whole, gone)]
    return pl.concat(parts).group_by("client_id", "action", "channel").agg(pl.col("rows").sum())


def count_changes(snapshot: SourceSnapshot, since: Watermark) -> pl.DataFrame:
    """Leads and activities written or deleted since a watermark: client_id, rows.

    On PostgreSQL rows that were read may be among them while a long transaction is open.
    """
    schema = {"client_id": _TEXT, "rows": _COUNT}
    parts = [
        snapshot.query(
            f"SELECT client_id, count(*) AS rows FROM {table}"
            f" WHERE change_id >= {since.position} GROUP BY client_id",
            schema,
        )
        for table in ("leads", "activities", "row_deletions")
    ]
    return pl.concat(parts).group_by("client_id").agg(pl.col("rows").sum())


def is_readable_from(snapshot: SourceSnapshot, since: Watermark) -> bool:
    """Whether changes since a watermark can be told: it is of this database and not ahead of it."""
    return snapshot.knows(since)


_NEWEST = """(SELECT max(m.as_of) FROM conversion_pattern_history m
    WHERE m.client_id = c.client_id AND m.pattern_type = c.pattern_type)"""
_SAME = "h.client_id = c.client_id AND h.pattern_type = c.pattern_type"

VERSION_KEY: dict[str, pl.DataType] = {
    "client_id": _TEXT,
    "pattern_type": _TEXT,
    "as_of": _TIME,
    "code_version": _TEXT,
    "input_fingerprint": _TEXT,
}


def read_current(engine: Engine) -> pl.DataFrame:
    """Current patterns beside their row in the history.

    Returns:
        The version's key, computed_at, `has_history` (the same version stands in the history),
        `is_same` (with the same document; null without one) and `newest_as_of` of the history.
    """
    sql = f"""SELECT c.client_id, c.pattern_type, c.as_of, c.code_version, c.input_fingerprint,
            c.computed_at, h.client_id IS NOT NULL AS has_history,
            h.patterns = c.patterns AS is_same, {_NEWEST} AS newest_as_of
        FROM conversion_patterns c LEFT JOIN conversion_pattern_history h
            ON {_SAME} AND h.as_of = c.as_of AND h.code_version = c.code_version
            AND h.input_fingerprint = c.input_fingerprint"""
    schema = VERSION_KEY | {
        "computed_at": _TIME,
        "has_history": pl.Boolean(),
        "is_same": pl.Boolean(),
        "newest_as_of": _TIME,
    }
    return _frame(engine, sql, schema)


def find_lost_current(engine: Engine) -> pl.DataFrame:
    """Clients and types with a history and no current pattern: client_id, pattern_type."""
    sql = f"""SELECT DISTINCT c.client_id, c.pattern_type FROM conversion_pattern_history c
        WHERE NOT EXISTS (SELECT 1 FROM conversion_patterns h WHERE {_SAME})"""
    return _frame(engine, sql, {"client_id": _TEXT, "pattern_type": _TEXT})


def find_homeless_forecasts(engine: Engine) -> pl.DataFrame:
    """Forecasts whose document is not in the history: client_id, pattern_type, made_as_of, rows."""
    sql = f"""SELECT c.client_id, c.pattern_type, c.made_as_of, count(*) AS rows
        FROM pattern_forecasts c WHERE NOT EXISTS (
            SELECT 1 FROM conversion_pattern_history h WHERE {_SAME} AND h.as_of = c.made_as_of)
        GROUP BY 1, 2, 3"""
    schema = {"client_id": _TEXT, "pattern_type": _TEXT, "made_as_of": _TIME, "rows": _COUNT}
    return _frame(engine, sql, schema)


def list_failed(engine: Engine) -> list[str]:
    """Clients with a type whose last refresh failed; health tells of them."""
    sql = f"""SELECT DISTINCT client_id FROM pattern_outcomes
        WHERE outcome = '{OutcomeKind.FAILED}'"""
    return _frame(engine, sql, {"client_id": _TEXT})["client_id"].to_list()


def read_lead_ids(engine: Engine, client_id: str) -> pl.DataFrame:
    """Leads of a client in the system of record, and in its notes of deletions.

    Returns:
        client_id, lead_id, is_there (false: deleted).
    """
    sql = """SELECT client_id, id, 1 FROM leads WHERE client_id = :client
        UNION ALL SELECT client_id, id, 0 FROM row_deletions d
        WHERE client_id = :client AND table_name = 'leads'
        AND NOT EXISTS (SELECT 1 FROM leads l WHERE l.client_id = d.client_id AND l.id = d.id)"""
    with reported_connection_errors(engine), engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(text(sql), {"client": client_id})]
    schema = {"client_id": _TEXT, "lead_id": _TEXT, "is_there": _COUNT}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        pl.col("is_there").cast(pl.Boolean)
    )


def read_outcomes(engine: Engine) -> pl.DataFrame:
    """Outcomes that did not fail: the version's key, outcome and computed_at."""
    sql = f"""SELECT client_id, pattern_type, as_of, code_version, input_fingerprint, outcome,
        computed_at FROM pattern_outcomes WHERE outcome <> '{OutcomeKind.FAILED}'"""
    return _frame(engine, sql, VERSION_KEY | {"outcome": _TEXT, "computed_at": _TIME})


def read_earlier_claims(engine: Engine) -> pl.DataFrame:
    """What each client's documents before each of its outcomes claimed.

    The same choice as `PatternRepository.claims_before`, for every client's own moment at once.

    Returns:
        client_id, as_of (of the outcome), pattern_type, claims (JSON text or null).
    """
    is_sqlite = engine.dialect.name == "sqlite"
    claims = (
        "json_extract(h.patterns, '$.claims')"
        if is_sqlite
        else "jsonb_extract_path_text(h.patterns, 'claims')"
    )
    kinds = " UNION ALL ".join(f"SELECT '{kind}' AS pattern_type" for kind in PatternType)
    sql = f"""SELECT a.client_id, a.as_of, h.pattern_type, {claims} AS claims, h.computed_at,
            h.input_fingerprint
        FROM (SELECT DISTINCT client_id, as_of FROM pattern_outcomes) a
        CROSS JOIN ({kinds}) t
        JOIN conversion_pattern_history h ON h.client_id = a.client_id
            AND h.pattern_type = t.pattern_type AND h.as_of = (
                SELECT max(m.as_of) FROM conversion_pattern_history m
                WHERE m.client_id = a.client_id AND m.pattern_type = t.pattern_type
                AND m.as_of < a.as_of)"""
    schema = {
        "client_id": _TEXT,
        "as_of": _TIME,
        "pattern_type": _TEXT,
        "claims": _TEXT,
        "computed_at": _TIME,
        "input_fingerprint": _TEXT,
    }
    found = _frame(engine, sql, schema)
    order = ["computed_at", "input_fingerprint"]
    return (
        found.sort(order, descending=[True, False])
        .unique(["client_id", "as_of", "pattern_type"], keep="first", maintain_order=True)
        .drop(order)
    )


def read_document_texts(
    engine: Engine, table: str, client_ids: Sequence[str] | None = None
) -> list[tuple[str, str, str]]:
    """Client, type and canonical text of the documents of conversion_patterns or its history."""
    sql = f"SELECT client_id, pattern_type, patterns FROM {table}"
    one = {"client": client_ids[0]} if client_ids is not None and len(client_ids) == 1 else {}
    if one:
        sql += " WHERE client_id = :client"
    with reported_connection_errors(engine), engine.connect() as connection:
        rows = connection.execute(text(sql), one)
        wanted = None if client_ids is None else set(client_ids)
        return [
            (client, kind, _canonical(document))
            for client, kind, document in rows
            if wanted is None or client in wanted
        ]


def _canonical(document: Any) -> str:
    """Text of a stored document as `document_text.canonical_json` writes it.

    SQLite gives the text as it was written; PostgreSQL has forgotten the order of keys.
    """
    if isinstance(document, str):
        return document
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True)
class HistoryRepair:
    """What a repair of the history changed, in rows."""

    appended: int = 0
    restored: int = 0
    forecasts_removed: int = 0


def repair_history(engine: Engine, client_ids: Collection[str]) -> HistoryRepair:
    """Make current patterns and history of some clients agree; see `refresh.rebuild`.

    Raises:
        NotFoundError: there is no such client.
        UnreachableError: the database cannot be reached.
    """
    names = ", ".join(column.name for column in conversion_patterns.columns)
    append = f"""INSERT INTO conversion_pattern_history ({names})
        SELECT {names} FROM conversion_patterns c WHERE c.client_id = :client AND NOT EXISTS (
            SELECT 1 FROM conversion_pattern_history h WHERE {_SAME} AND h.as_of = c.as_of
            AND h.code_version = c.code_version AND h.input_fingerprint = c.input_fingerprint)"""
    drop = """DELETE FROM conversion_patterns WHERE client_id = :client AND EXISTS (
        SELECT 1 FROM conversion_pattern_history h WHERE h.client_id = conversion_patterns.client_id
        AND h.pattern_type = conversion_patterns.pattern_type
        AND (h.as_of > conversion_patterns.as_of OR (h.as_of = conversion_patterns.as_of
            AND h.code_version = conversion_patterns.code_version
            AND h.input_fingerprint = conversion_patterns.input_fingerprint
            AND h.patterns <> conversion_patterns.patterns)))"""
    newest = """SELECT h.*, row_number() OVER (PARTITION BY h.pattern_type
            ORDER BY h.as_of DESC, h.computed_at DESC) AS place
        FROM conversion_pattern_history h WHERE h.client_id = :client"""
    restore = f"""INSERT INTO conversion_patterns ({names}) SELECT {names} FROM ({newest}) c
        WHERE place = 1 AND NOT EXISTS (SELECT 1 FROM conversion_patterns h WHERE {_SAME})"""
    forget = """DELETE FROM pattern_forecasts WHERE client_id = :client AND NOT EXISTS (
        SELECT 1 FROM conversion_pattern_history h WHERE h.client_id = pattern_forecasts.client_id
        AND h.pattern_type = pattern_forecasts.pattern_type
        AND h.as_of = pattern_forecasts.made_as_of)"""
    done = {name: 0 for name in ("appended", "dropped", "restored", "forecasts_removed")}
    statements = dict(zip(done, (append, drop, restore, forget), strict=True))
    for client_id in client_ids:
        with reported_connection_errors(engine), write_transaction(engine) as connection:
            known = select(clients.c.id).where(clients.c.id == client_id).with_for_update()
            if connection.execute(known).first() is None:
                raise NotFoundError(f"there is no client {client_id!r}")
            for name, sql in statements.items():
                done[name] += connection.execute(text(sql), {"client": client_id}).rowcount
    done.pop("dropped")
    return HistoryRepair(**done)


def _frame(engine: Engine, sql: str, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    times = {name: UtcDateTime() for name, dtype in schema.items() if dtype == _TIME}
    query = text(sql).columns(**times)
    with reported_connection_errors(engine), read_transaction(engine) as connection:
        rows = [tuple(row) for row in connection.execute(query)]
    flags = [name for name, dtype in schema.items() if dtype == pl.Boolean]
    plain = {
        name: _COUNT if name in flags and engine.dialect.name == "sqlite" else dtype
        for name, dtype in schema.items()
    }
    frame = pl.DataFrame(rows, schema=plain, orient="row")
    return frame.with_columns(pl.col(flags).cast(pl.Boolean)) if flags else frame
