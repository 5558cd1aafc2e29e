"""Import of clients, leads and activities: read, check, quarantine, store in one transaction.

Everything is checked before anything is written, and what is written is one transaction: a file
that cannot be read changes nothing, and a killed import leaves the old state.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, Engine, select

from conversion_assets.domain.contracts import CONTRACTS, KEYS, json_columns
from conversion_assets.domain.errors import InputError
from conversion_assets.domain.terms import LeadStatus
from conversion_assets.storage import files, tables
from conversion_assets.storage.canonical import POSITION, REASONS, Canonical, to_canonical
from conversion_assets.storage.database import (
    next_change_id,
    read_transaction,
    reported_connection_errors,
    require_current_schema,
)
from conversion_assets.storage.erasures import find_erased, hold_off_erasures, lift_erasures
from conversion_assets.storage.quarantine import write_quarantine
from conversion_assets.storage.upsert import checked_write_transaction, upsert_rows

Progress = Callable[[str, int, int], None]
"""Told after each batch: table, rows stored so far, rows to store."""

SOURCE = "__source"
"""Column of a raw frame with the name of the file a row came from."""


class TableCount(BaseModel):
    """What became of the rows of one table."""

    model_config = ConfigDict(frozen=True)

    accepted: int = Field(0, ge=0, description="Rows that are stored, or were there already")
    rejected: int = Field(0, ge=0, description="Rows in quarantine")
    written: int = Field(0, ge=0, description="Accepted rows that were new or changed")


class ImportReport(BaseModel):
    """What an import did. Its JSON is what the command line prints."""

    model_config = ConfigDict(frozen=True)

    clients: TableCount = TableCount()
    leads: TableCount = TableCount()
    activities: TableCount = TableCount()
    quarantine: str | None = Field(None, description="Folder of the refused rows")
    reasons: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="Refused rows by table and reason; one row may have two"
    )
    unknown_columns: dict[str, list[str]] = Field(
        default_factory=dict, description="Columns that were not looked at, by table"
    )
    notes: dict[str, dict[str, int]] = Field(
        default_factory=dict, description="Accepted rows worth a look, by table and remark"
    )
    dry_run: bool = False

    @property
    def rejected(self) -> int:
        """Rows in quarantine, all tables together."""
        return self.clients.rejected + self.leads.rejected + self.activities.rejected


@dataclass
class _Batch:
    """Rows of one table on their way: as they came, and what was made of them."""

    table: str
    raw: pl.DataFrame
    canonical: Canonical
    rows: pl.DataFrame
    refused: list[pl.DataFrame]
    repeated: int = 0
    erased: pl.Series | None = None

    def refuse(self, rows: pl.DataFrame, reason: str | pl.Expr) -> None:
        """Take rows out, with a reason."""
        if rows.height == 0:
            return
        text = pl.lit(reason) if isinstance(reason, str) else reason
        self.refused.append(rows.select(POSITION, pl.concat_list(text).alias(REASONS)))
        self.rows = self.rows.join(rows, on=POSITION, how="anti", maintain_order="left")


def import_files(
    engine: Engine,
    *,
    clients: Path | None = None,
    leads: Path | None = None,
    activities: Path | None = None,
    quarantine_dir: Path,
    dry_run: bool = False,
    allow_erased: bool = False,
    progress: Progress | None = None,
    now: Callable[[], datetime] | None = None,
) -> ImportReport:
    """Import files in the canonical columns of `domain.contracts`; insert or update by id.

    Args:
        engine: Database at the current schema.
        clients: Parquet, CSV or JSONL file, the text formats also with .gz. So for the others.
        leads: See `clients`.
        activities: See `clients`.
        quarantine_dir: Folder that takes refused rows.
        dry_run: Check everything and write nothing, no quarantine either.
        allow_erased: Take clients and leads again that were erased; their erasure is lifted.
        progress: Called after each stored batch.
        now: Clock for a client's missing created_at.

    Raises:
        InputError: A file is unreadable or a required column is missing; nothing was stored.
    """
    paths = {"clients": clients, "leads": leads, "activities": activities}
    given = {table: path for table, path in paths.items() if path is not None}
    if not given:
        raise InputError("nothing to import: give at least one of clients, leads and activities")
    raw = {
        table: files.read_rows(path, json_columns=json_columns(table)).with_columns(
            pl.lit(path.name).alias(SOURCE)
        )
        for table, path in given.items()
    }
    names = {table: str(path) for table, path in given.items()}
    return _import(
        engine,
        raw,
        names,
        quarantine_dir=quarantine_dir,
        dry_run=dry_run,
        allow_erased=allow_erased,
        progress=progress,
        now=now,
    )


def import_frames(
    engine: Engine,
    *,
    clients: pl.DataFrame | None = None,
    leads: pl.DataFrame | None = None,
    activities: pl.DataFrame | None = None,
    quarantine_dir: Path,
    dry_run: bool = False,
    allow_erased: bool = False,
    progress: Progress | None = None,
    now: Callable[[], datetime] | None = None,
) -> ImportReport:
    """Import frames in the canonical columns, typed or as text; else as `import_files`.

    Raises:
        InputError: A required column is missing; nothing was stored.
    """
    frames = {"clients": clients, "leads": leads, "activities": activities}
    raw = {table: frame for table, frame in frames.items() if frame is not None}
    names = {table: f"frame {table}" for table in raw}
    return _import(
        engine,
        raw,
        names,
        quarantine_dir=quarantine_dir,
        dry_run=dry_run,
        allow_erased=allow_erased,
        progress=progress,
        now=now,
    )


def _import(
    engine: Engine,
    raw: Mapping[str, pl.DataFrame],
    names: Mapping[str, str],
    *,
    quarantine_dir: Path,
    dry_run: bool,
    allow_erased: bool,
    progress: Progress | None,
    now: Callable[[], datetime] | None,
) -> ImportReport:
    require_current_schema(engine)
    batches = {
        table: _check(table, raw[table], names[table]) for table in CONTRACTS if table in raw
    }
    moment = now() if now else datetime.now(UTC)
    with reported_connection_errors(engine), _transaction(engine, dry_run) as connection:
        if not dry_run:
            hold_off_erasures(connection)
        if not allow_erased:
            _refuse_erased(connection, batches)
        _check_references(connection, batches)
        if dry_run:
            return _report(batches, None, {}, dry_run=True)
        quarantine = write_quarantine(
            quarantine_dir, {table: _refused_rows(batch) for table, batch in batches.items()}
        )
        if allow_erased:
            lift_erasures(connection, pl.concat([_keys(b) for b in batches.values()]), moment)
        change_id = next_change_id(connection)
        written = {
            table: upsert_rows(
                connection,
                table,
                _with_moment(table, batch.rows, moment),
                batch.canonical.provided,
                change_id=change_id,
                progress=progress,
            )
            for table, batch in batches.items()
        }
        if not any(written.values()):
            # Not even the change counter moves when an import brings nothing new.
            connection.get_transaction().rollback()  # type: ignore[union-attr]
    return _report(batches, quarantine, written, dry_run=False)


def _transaction(engine: Engine, dry_run: bool) -> AbstractContextManager[Connection]:
    return read_transaction(engine) if dry_run else checked_write_transaction(engine)


def _with_moment(table: str, rows: pl.DataFrame, moment: datetime) -> pl.DataFrame:
    if table != "clients":
        return rows
    return rows.with_columns(pl.col("created_at").fill_null(pl.lit(moment.astimezone(UTC))))


def _check(table: str, raw: pl.DataFrame, where: str) -> _Batch:
    """Everything that can be said about a table's rows without the database."""
    raw = raw.with_columns(
        (pl.lit(where) if SOURCE not in raw.columns else pl.col(SOURCE)).alias(SOURCE),
        (
            pl.int_range(1, pl.len() + 1, dtype=pl.UInt32)
            if files.ROW not in raw.columns
            else pl.col(files.ROW)
        ).alias(files.ROW),
    )
    canonical = to_canonical(table, raw, where=where)
    batch = _Batch(table, raw, canonical, canonical.rows, [canonical.refused])
    _check_duplicates(batch, list(KEYS[table]))
    return batch


def _check_duplicates(batch: _Batch, key: list[str]) -> None:
    """Collapse equal rows; refuse rows that share an id and differ: neither is known right."""
    # Hashing keys alone is much cheaper than whole rows, and nearly always enough.
    if batch.rows.select(pl.struct(key).n_unique()).item() == batch.rows.height:
        return
    repeated = batch.rows.filter(pl.struct(key).is_duplicated())
    distinct = repeated.unique(
        [c for c in repeated.columns if c != POSITION], keep="first", maintain_order=True
    )
    batch.repeated = repeated.height - distinct.height
    collapsed = repeated.join(distinct, on=POSITION, how="anti")
    batch.rows = batch.rows.join(collapsed, on=POSITION, how="anti", maintain_order="left")
    contradicting = distinct.filter(pl.struct(key).is_duplicated()).select(key)
    losers = repeated.join(contradicting.unique(), on=key, how="semi")
    # Their equal copies go with them, so that every refused line is in the quarantine.
    batch.repeated -= collapsed.join(losers, on=POSITION, how="semi").height
    batch.refuse(losers, "duplicate id")


def _keys(batch: _Batch) -> pl.DataFrame:
    """Client and lead that each row as it came is about, as text, in the order of the file."""
    client, lead = _KEY_COLUMNS[batch.table]
    return batch.raw.select(
        _as_key(batch.raw, client).alias("client_id"), _as_key(batch.raw, lead).alias("lead_id")
    )


_KEY_COLUMNS = {
    "clients": ("id", None),
    "leads": ("client_id", "id"),
    "activities": ("client_id", "lead_id"),
}


def _as_key(raw: pl.DataFrame, column: str | None) -> pl.Expr:
    if column is None or column not in raw.columns or raw.schema[column].is_nested():
        return pl.repeat(None, pl.len(), dtype=pl.String)
    return pl.col(column).cast(pl.String).str.strip_chars()


def _refuse_erased(connection: Connection, batches: Mapping[str, _Batch]) -> None:
    """Refuse clients and leads that were erased, with all that is about them.

    Of such a row, also one that is refused for another reason, the quarantine keeps file, number
    and reason only.
    """
    for batch in batches.values():
        keys = _keys(batch)
        erased = find_erased(connection, keys)
        if erased.is_empty():
            continue
        marked = keys.join(
            erased.with_columns(pl.lit(True).alias("erased")),
            on=["client_id", "lead_id"],
            how="left",
            nulls_equal=True,
            maintain_order="left",
        )["erased"].fill_null(False)
        batch.erased = marked
        batch.refuse(batch.rows.filter(marked.gather(batch.rows[POSITION])), "erased")


def _check_references(connection: Connection, batches: Mapping[str, _Batch]) -> None:
    """Refuse leads of unknown clients, and activities of unknown leads or another client's."""
    none = pl.DataFrame(schema={"id": pl.String, "client_id": pl.String})
    clients = batches["clients"].rows.select("id") if "clients" in batches else none.select("id")
    if "leads" in batches:
        _check_clients(connection, batches["leads"], clients)
    if "activities" in batches:
        leads = batches["leads"].rows.select("id", "client_id") if "leads" in batches else none
        _check_clients(connection, batches["activities"], clients)
        _check_leads(connection, batches["activities"], leads)


def _check_clients(connection: Connection, batch: _Batch, clients: pl.DataFrame) -> None:
    wanted = batch.rows.select("client_id").unique()
    missing = wanted.join(clients, left_on="client_id", right_on="id", how="anti")
    if missing.height == 0:
        return
    stored = pl.DataFrame(
        connection.execute(select(tables.clients.c.id)).scalars().all(),
        schema={"id": pl.String},
    )
    unknown = missing.join(stored, left_on="client_id", right_on="id", how="anti")
    batch.refuse(batch.rows.join(unknown, on="client_id", how="semi"), "unknown client")


def _check_leads(connection: Connection, batch: _Batch, leads: pl.DataFrame) -> None:
    key = ["client_id", "lead_id"]
    leads = leads.rename({"id": "lead_id"})
    missing = batch.rows.select(key).unique().join(leads, on=key, how="anti")
    if missing.height == 0:
        return
    lead = tables.leads.c
    found = connection.execute(select(lead.id, lead.client_id)).all()
    stored = pl.DataFrame(
        [tuple(row) for row in found],
        schema={"lead_id": pl.String, "client_id": pl.String},
        orient="row",
    )
    unknown = missing.join(stored, on=key, how="anti")
    elsewhere = pl.concat([leads.select(stored.columns), stored])["lead_id"].unique()
    batch.refuse(
        batch.rows.join(unknown, on=key, how="semi"),
        pl.when(pl.col("lead_id").is_in(elsewhere.implode()))
        .then(pl.lit("lead belongs to another client"))
        .otherwise(pl.lit("unknown lead")),
    )


def _refused_rows(batch: _Batch) -> pl.DataFrame:
    """Refused rows as they came, in the order of the file, for the quarantine."""
    refused = pl.concat(batch.refused).sort(POSITION)
    came = batch.raw[refused[POSITION]]
    columns = [name for name in came.columns if not name.startswith("__")]
    record = pl.struct(columns) if columns else pl.lit(None)
    if batch.erased is not None:
        record = pl.when(~batch.erased.gather(refused[POSITION])).then(record)
    return came.select(
        pl.col(SOURCE).alias("source"),
        pl.col(files.ROW).alias("row"),
        refused[REASONS].alias("reasons"),
        record.alias("record"),
    )


def _report(
    batches: Mapping[str, _Batch],
    quarantine: Path | None,
    written: Mapping[str, int],
    *,
    dry_run: bool,
) -> ImportReport:
    counts = {}
    reasons = {}
    notes = {}
    for table, batch in batches.items():
        refused = pl.concat(batch.refused)
        counts[table] = TableCount(
            accepted=batch.rows.height + batch.repeated,
            rejected=refused.height,
            written=written.get(table, 0),
        )
        by_reason = refused.explode(REASONS).group_by(REASONS).len().sort(REASONS)
        reasons[table] = dict(by_reason.iter_rows())
        notes[table] = _notes(table, batch)
    return ImportReport(
        **counts,
        quarantine=str(quarantine) if quarantine else None,
        reasons={table: found for table, found in reasons.items() if found},
        unknown_columns={
            table: list(batch.canonical.unknown)
            for table, batch in batches.items()
            if batch.canonical.unknown
        },
        notes={table: found for table, found in notes.items() if found},
        dry_run=dry_run,
    )


def _notes(table: str, batch: _Batch) -> dict[str, int]:
    notes = {"equal rows with one id": batch.repeated}
    if table == "leads":
        is_converted = pl.col("status") == LeadStatus.CONVERTED
        has_time = pl.col("converted_at").is_not_null()
        notes["converted without converted_at"] = batch.rows.filter(is_converted & ~has_time).height
        notes["converted_at without status converted"] = batch.rows.filter(
            ~is_converted & has_time
        ).height
    return {remark: count for remark, count in notes.items() if count}
