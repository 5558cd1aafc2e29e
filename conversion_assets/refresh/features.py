"""Keeping the columnar store in step with the system of record.

A refresh reads what changed since the stored watermark, finds the leads concerned, and computes
those again; content of their unchanged activities is taken from the store. It gives the same store
as computing everything anew, which is what happens when the feature code or the vocabulary
changed, when the watermark belongs to another database, and on request.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import polars as pl
from sqlalchemy import Engine

from conversion_assets.domain.content import DEFAULT_VOCABULARY, ContentVocabulary
from conversion_assets.domain.terms import BOOKING_ACTION
from conversion_assets.features import Features, build_features, feature_version
from conversion_assets.features.frames import NOTE_SCHEMA
from conversion_assets.storage.columnar import (
    TABLES,
    FeatureStore,
    FeatureWriter,
    Manifest,
    Table,
    bucket_of,
)
from conversion_assets.storage.sources import SourceSnapshot, Watermark, open_snapshot

LEADS_PER_READ = 20_000
"""Leads whose activities are in memory at once: some 200,000 activities, 0.2 GB with text."""

Progress = Callable[[int, int], None]
"""Called with buckets done and buckets to do."""

_LEAD = ["client_id", "lead_id"]
_ACTIVITY = ["client_id", "activity_id"]
_BOOKINGS: dict[str, pl.DataType] = {
    name: pl.String() for name in ("client_id", "lead_id", "activity_id")
}


@dataclass(frozen=True)
class RefreshReport:
    """What a refresh did.

    Attributes:
        is_full: everything was computed anew.
        reason: why, or "changes since the watermark".
        changed_client_ids: clients whose features differ from before, removed ones included.
        rows_read: raw leads and activities read to compute features.
        rows_written: rows of features computed and stored.
        seconds: time taken.
        notes: client_id, reason, rows: what was left out of the rows computed now.
        manifest: version of the store that is now in force.
    """

    is_full: bool
    reason: str
    changed_client_ids: list[str]
    rows_read: int
    rows_written: int
    seconds: float
    notes: pl.DataFrame
    manifest: Manifest


@dataclass(frozen=True)
class _Changes:
    """Keys that changed since a watermark; client ids that need every lead computed again."""

    leads: pl.DataFrame
    activities: pl.DataFrame
    deleted_leads: pl.DataFrame
    deleted_activities: pl.DataFrame
    clients: frozenset[str]

    def client_ids(self) -> set[str]:
        """Clients with any change."""
        keys = (self.leads, self.activities, self.deleted_leads, self.deleted_activities)
        found = {client_id for frame in keys for client_id in frame["client_id"].unique().to_list()}
        return found | self.clients


@dataclass(frozen=True)
class _Part:
    """Features of some leads, and the bookings behind their conversions."""

    features: Features
    bookings: pl.DataFrame
    rows_read: int


def refresh_features(
    engine: Engine,
    store: FeatureStore,
    *,
    vocabulary: ContentVocabulary = DEFAULT_VOCABULARY,
    force: bool = False,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> RefreshReport:
    """Bring the store up to date with the system of record.

    Args:
        engine: database of the system of record.
        store: columnar store to update.
        vocabulary: content vocabulary of the features.
        force: compute everything anew, also where half of the rows are gone.
        progress: called after each bucket.
        clock: seconds, for the report.

    Raises:
        SuspiciousReadError: less than half of the rows would be left; nothing was overwritten.
        ConflictError: another refresh is running.
        InputError: a stored value or file cannot be read.
    """
    started = clock()
    with store.write(force=force) as writer, open_snapshot(engine) as snapshot:
        clients = snapshot.clients().filter(pl.col("deleted_at").is_null())
        version = feature_version(vocabulary)
        reason = "asked for" if force else _why_anew(writer.base, version)
        changes = None if reason else _read_changes(snapshot, writer.base, clients)
        if changes is None:
            reason = reason or "the watermark is of another database"
            ids = clients["id"].to_list()
        else:
            ids = sorted(changes.client_ids())
        work = _Refresh(snapshot, writer, clients, vocabulary, changes)
        work.run(ids, progress)
        manifest = writer.base
        watermark = {"source": str(snapshot.watermark)}
        zones = dict(clients.select("id", "timezone").iter_rows())
        if writer.is_changed or (version, watermark, zones) != _state(manifest):
            manifest = writer.commit(feature_version=version, watermark=watermark, zones=zones)
    return RefreshReport(
        is_full=changes is None,
        reason=reason or "changes since the watermark",
        changed_client_ids=_differences(writer.base, manifest),
        rows_read=work.rows_read,
        rows_written=work.rows_written,
        seconds=clock() - started,
        notes=work.collected_notes(),
        manifest=manifest,
    )


def _state(manifest: Manifest) -> tuple[object, ...]:
    return manifest.feature_version, manifest.watermark, manifest.zones


def _why_anew(base: Manifest, version: str) -> str | None:
    if base.watermark is None:
        return "the store is empty"
    if base.feature_version != version:
        return "the feature code or vocabulary changed"
    return None


def _differences(before: Manifest, after: Manifest) -> list[str]:
    ids = before.clients.keys() | after.clients.keys()
    return sorted(c for c in ids if before.clients.get(c) != after.clients.get(c))


def _read_changes(
    snapshot: SourceSnapshot, base: Manifest, clients: pl.DataFrame
) -> _Changes | None:
    """What changed since the store's watermark; None where that cannot be told."""
    since = Watermark.parse(str((base.watermark or {}).get("source")))
    leads = snapshot.changes("leads", since)
    if leads.is_complete:
        return None
    activities = snapshot.changes("activities", since)
    zones = dict(clients.select("id", "timezone").iter_rows())
    # A new zone moves local times; clients that came or went are read or removed whole.
    moved = {c for c in zones.keys() | base.zones.keys() if zones.get(c, c) != base.zones.get(c, c)}
    moved |= zones.keys() ^ base.zones.keys()
    return _Changes(
        leads=leads.rows.select("client_id", lead_id="id"),
        activities=activities.rows.select("client_id", "lead_id", activity_id="id"),
        deleted_leads=leads.deleted.select("client_id", lead_id="id"),
        deleted_activities=activities.deleted.select("client_id", activity_id="id"),
        clients=frozenset(moved),
    )


class _Refresh:
    """One refresh at work: bucket after bucket, so that memory does not grow with the clients."""

    def __init__(
        self,
        snapshot: SourceSnapshot,
        writer: FeatureWriter,
        clients: pl.DataFrame,
        vocabulary: ContentVocabulary,
        changes: _Changes | None,
    ) -> None:
        self.rows_read = 0
        self.rows_written = 0
        self._snapshot = snapshot
        self._writer = writer
        self._clients = clients
        self._live = frozenset(clients["id"].to_list())
        self._vocabulary = vocabulary
        self._changes = changes
        self._notes: list[pl.DataFrame] = []
        self._schemas = feature_schemas(vocabulary)
        if changes is None:
            writer.clear(self._schemas)

    def run(self, client_ids: Iterable[str], progress: Progress | None) -> None:
        """Compute and write the features of some clients."""
        buckets: dict[int, list[str]] = {}
        for client_id in sorted(client_ids):
            buckets.setdefault(bucket_of(client_id), []).append(client_id)
        for done, (bucket, ids) in enumerate(sorted(buckets.items()), start=1):
            self._refresh_bucket(bucket, ids)
            if progress is not None:
                progress(done, len(buckets))

    def collected_notes(self) -> pl.DataFrame:
        """Notes of all parts, added up."""
        whole = pl.concat([pl.DataFrame(schema=NOTE_SCHEMA), *self._notes])
        return (
            whole.group_by("client_id", "reason")
            .agg(pl.col("rows").sum())
            .sort("client_id", "reason")
        )

    def _refresh_bucket(self, bucket: int, ids: list[str]) -> None:
        stored = {table: self._stored(table, bucket, ids) for table in TABLES}
        live = [client_id for client_id in ids if client_id in self._live]
        leads = self._snapshot.changes("leads", None, live).rows
        concerned = self._concerned(leads, stored)
        known = self._known_content(concerned, stored["touch_features"])
        gone = [frame.join(concerned, on=_LEAD, how="anti") for frame in stored.values()]
        alive = pl.col("client_id").is_in(live)
        kept = dict(zip(stored, (frame.filter(alive) for frame in gone), strict=True))
        parts = list(self._compute(leads, concerned, known))
        tables: dict[Table, list[pl.DataFrame]] = {
            "lead_features": [part.features.leads for part in parts],
            "touch_features": [part.features.touches for part in parts],
            "bookings": [part.bookings for part in parts],
        }
        self.rows_read += sum(part.rows_read for part in parts)
        self.rows_written += sum(frame.height for frames in tables.values() for frame in frames)
        self._notes += [part.features.notes for part in parts]
        self._writer.replace_clients(
            bucket, ids, {t: pl.concat([kept[t], *frames]) for t, frames in tables.items()}
        )

    def _stored(self, table: Table, bucket: int, ids: Collection[str]) -> pl.DataFrame:
        """Rows in the store that may stay as they are."""
        schema = self._schemas[table]
        if self._changes is None:
            return pl.DataFrame(schema=schema)
        stored = self._writer.read_bucket(table, bucket)
        if stored is None:
            return pl.DataFrame(schema=schema)
        return stored.filter(pl.col("client_id").is_in(list(ids)))

    def _concerned(self, leads: pl.DataFrame, stored: dict[Table, pl.DataFrame]) -> pl.DataFrame:
        """Keys of leads that must be computed again or that are gone."""
        now = leads.select("client_id", lead_id="id")
        changes = self._changes
        if changes is None:
            return now
        before = stored["lead_features"].select(_LEAD)
        every = pl.concat([now, before]).filter(pl.col("client_id").is_in(list(changes.clients)))
        # An activity that moved to another lead or was deleted concerns the lead it was of.
        moved = pl.concat([changes.activities.select(_ACTIVITY), changes.deleted_activities])
        was_of = [
            stored[table].select(*_LEAD, "activity_id").join(moved, on=_ACTIVITY, how="semi")
            for table in ("touch_features", "bookings")
        ]
        keys = [
            every,
            changes.leads,
            changes.deleted_leads,
            changes.activities.select(_LEAD),
            *(frame.select(_LEAD) for frame in was_of),
        ]
        ids = now["client_id"].unique().to_list() + before["client_id"].unique().to_list()
        of_bucket = pl.concat(keys).filter(pl.col("client_id").is_in(ids))
        return of_bucket.unique().sort(_LEAD)

    def _known_content(self, concerned: pl.DataFrame, touches: pl.DataFrame) -> pl.DataFrame:
        """Stored content of activities that did not change, of leads whose own row did not."""
        changes = self._changes
        if changes is None:
            return touches
        return (
            touches.join(concerned, on=_LEAD, how="semi")
            .join(changes.leads, on=_LEAD, how="anti")
            .join(changes.activities, on=_ACTIVITY, how="anti")
        )

    def _compute(
        self, leads: pl.DataFrame, concerned: pl.DataFrame, known: pl.DataFrame
    ) -> Iterator[_Part]:
        """Features of the concerned leads, some thousands at a time."""
        rows = leads.join(concerned, left_on=["client_id", "id"], right_on=_LEAD, how="semi").sort(
            "client_id", "id"
        )
        for part in rows.iter_slices(LEADS_PER_READ):
            keys = part.select("client_id", lead_id="id")
            activities = self._snapshot.activities_of(keys)
            features = build_features(
                self._clients,
                part,
                activities,
                self._vocabulary,
                known_content=known.join(keys, on=_LEAD, how="semi"),
            )
            bookings = activities.filter(pl.col("action") == BOOKING_ACTION).select(
                "client_id", "lead_id", activity_id="id"
            )
            yield _Part(features, bookings, part.height + activities.height)


def feature_schemas(
    vocabulary: ContentVocabulary = DEFAULT_VOCABULARY,
) -> dict[Table, dict[str, pl.DataType]]:
    """Columns of each table of the store as this code computes them."""
    empty = build_features(None, pl.DataFrame(), pl.DataFrame(), vocabulary)
    return {
        "lead_features": dict(empty.leads.schema),
        "touch_features": dict(empty.touches.schema),
        "bookings": _BOOKINGS,
    }
