"""Touches without a content snapshot: read some leads at a time, written back in bulk."""

# ruff: noqa: S608 - names in queries are literals of this file; values pass `quote_text`
from dataclasses import dataclass

import polars as pl
from sqlalchemy import Connection, text

from conversion_assets.domain.contracts import CONTRACTS
from conversion_assets.storage.database import next_change_id
from conversion_assets.storage.sources import SourceSnapshot
from conversion_assets.storage.upsert import copy_rows

PAGE_ACTIVITIES = 50_000
"""Activities in memory at once; with text, decoded documents and matches about 0.3 GB."""
PAGE_LEADS = 10_000
"""Leads of a page at most, so that counting their activities stays small."""

_LEADS = ("client_id", "id", "first_name", "company_name", "industry")
_ACTIVITIES = ("client_id", "id", "lead_id", "channel", "action", "sequence_id", "occurred_at")


@dataclass(frozen=True)
class LeadPage:
    """Some leads of a client, following each other by id, with all their activities.

    Attributes:
        leads: client_id, id, first_name, company_name, industry of the live leads.
        activities: of those leads: client_id, id, lead_id, channel, action, sequence_id,
            occurred_at, has_snapshot, metadata (null where there is a snapshot), change_id.
        rows: activities passed, those of deleted leads too.
        last_lead_id: where the next page begins behind.
    """

    leads: pl.DataFrame
    activities: pl.DataFrame
    rows: int
    last_lead_id: str


def read_page(
    snapshot: SourceSnapshot,
    client_id: str,
    after: str | None,
    *,
    most_activities: int = PAGE_ACTIVITIES,
) -> LeadPage | None:
    """The client's next leads that have activities, behind a lead id; None behind the last.

    A page holds at most `most_activities`, or one lead: its touch numbers need all of them.
    """
    quote = snapshot.quote_text
    client = quote(client_id)
    behind = f" AND lead_id > {quote(after)}" if after is not None else ""
    counted = snapshot.query(
        f"""SELECT lead_id, count(*) AS rows FROM activities WHERE client_id = {client}{behind}
        GROUP BY lead_id ORDER BY lead_id LIMIT {PAGE_LEADS}""",
        {"lead_id": pl.String(), "rows": pl.Int64()},
    )
    if counted.is_empty():
        return None
    fits = counted.filter(pl.col("rows").cum_sum() <= most_activities)
    page = fits if fits.height else counted.head(1)
    last = page["lead_id"][-1]
    upto = f"client_id = {client}{behind} AND lead_id <= {quote(last)}"
    leads = snapshot.query(
        f"""SELECT {", ".join(_LEADS)} FROM leads WHERE deleted_at IS NULL
        AND {upto.replace("lead_id", "id")}""",
        _schema("leads", _LEADS),
    )
    activities = snapshot.query(
        f"""SELECT {", ".join(_ACTIVITIES)}, content_snapshot IS NOT NULL AS has_snapshot,
        CASE WHEN content_snapshot IS NULL THEN {snapshot.json_text("metadata")} END AS metadata,
        change_id FROM activities WHERE {upto}""",
        {
            **_schema("activities", _ACTIVITIES),
            "has_snapshot": pl.Boolean(),
            "metadata": pl.String(),
            "change_id": pl.Int64(),
        },
    )
    live = leads.select("client_id", lead_id="id")
    return LeadPage(
        leads=leads,
        activities=activities.join(live, on=["client_id", "lead_id"], how="semi"),
        rows=int(page["rows"].sum()),
        last_lead_id=last,
    )


def count_activities(snapshot: SourceSnapshot, client_id: str) -> int:
    """Activities of a client, as the pages pass them."""
    return snapshot.count(
        f"SELECT count(*) FROM activities WHERE client_id = {snapshot.quote_text(client_id)}"
    )


def write_snapshots(connection: Connection, rows: pl.DataFrame) -> int:
    """Store snapshots inside the caller's transaction, never over one that is there.

    A row that somebody changed since it was read is left alone: its snapshot would be of old data.

    Args:
        connection: In a transaction that may write.
        rows: client_id, id, content_snapshot, and change_id as read.

    Returns:
        How many were stored.
    """
    if rows.is_empty():
        return 0
    given = rows.select("client_id", "id", "content_snapshot", "change_id")
    change_id = next_change_id(connection)
    write = _write_postgresql if connection.dialect.name == "postgresql" else _write_sqlite
    return write(connection, given, change_id)


def _write_sqlite(connection: Connection, rows: pl.DataFrame, change_id: int) -> int:
    statement = f"""UPDATE activities SET content_snapshot = ?, change_id = {change_id}
        WHERE client_id = ? AND id = ? AND content_snapshot IS NULL AND change_id IS ?"""
    given = rows.select("content_snapshot", "client_id", "id", "change_id").rows()
    return int(connection.exec_driver_sql(statement, given).rowcount)


def _write_postgresql(connection: Connection, rows: pl.DataFrame, change_id: int) -> int:
    connection.execute(
        text(
            "CREATE TEMP TABLE staged_snapshots (client_id text, id text, content_snapshot jsonb,"
            " change_id bigint) ON COMMIT DROP"
        )
    )
    copy_rows(connection, "staged_snapshots", rows)
    done = connection.execute(
        text(
            f"""UPDATE activities a SET content_snapshot = s.content_snapshot,
            change_id = {change_id} FROM staged_snapshots s
            WHERE a.client_id = s.client_id AND a.id = s.id AND a.content_snapshot IS NULL
            AND a.change_id IS NOT DISTINCT FROM s.change_id"""
        ),
        execution_options={"preserve_rowcount": True},
    )
    connection.execute(text("DROP TABLE staged_snapshots"))
    return int(done.rowcount)


def _schema(table: str, names: tuple[str, ...]) -> dict[str, pl.DataType]:
    columns = CONTRACTS[table].columns()
    return {name: columns[name].dtype for name in names}
