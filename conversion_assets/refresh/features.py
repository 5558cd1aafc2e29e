"""Keeping the columnar store in step with the system of record.

A refresh reads what changed since the stored watermark, finds the leads concerned, and computes
those again; content of their unchanged activities is taken from the store. It gives the same store
as computing everything anew, which is what happens when the feature code or the vocabulary
changed, when the watermark belongs to another database, and on request.

Rows of the leads concerned are written beside the buckets, as a segment of the store. Buckets of
which much changed, or whose clients moved to another zone, came or went, are written whole.
"""

import gc
import io
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeVar

import polars as pl
from sqlalchemy import Engine

from conversion_assets.domain.content import DEFAULT_VOCABULARY, ContentVocabulary
from conversion_assets.domain.errors import InputError
from conversion_assets.domain.terms import BOOKING_ACTION
from conversion_assets.features import (
    Features,
    add_content,
    begin_features,
    build_features,
    feature_version,
    finish_features,
)
from conversion_assets.features.frames import ACTIVITY_COLUMNS, LEAD_COLUMNS, NOTE_SCHEMA
from conversion_assets.features.leads import LEAD_FEATURES
from conversion_assets.features.touches import touch_schema
from conversion_assets.storage.columnar.manifest import TABLES, Manifest, Table, bucket_of
from conversion_assets.storage.columnar.rows import keep_rows
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.columnar.writer import FeatureWriter, WrittenBuckets
from conversion_assets.storage.fingerprints import sum_tables
from conversion_assets.storage.sources import SourceSnapshot, Watermark, open_snapshot

LEADS_PER_READ = 10_000
"""Leads whose activities are in memory at once: some 100,000 activities, 0.1 GB with text, while
as many are read ahead."""

WHOLE_SHARE = 0.25
"""Share of a bucket's leads that may have changed before it is written whole: about where reading
single leads by key takes as long as reading all."""

TOUCHES_PER_LOOK = 2_000_000
"""Stored touches whose keys are in memory at once: 0.3 GB."""


@dataclass(frozen=True)
class Loaded:
    """Buckets that were loaded elsewhere.

    Attributes:
        written: Their files; None after a trial.
        buckets: How many.
        rows_read: Raw rows read.
        rows_written: Rows of features computed.
        notes: What was left out, columns of `NOTE_SCHEMA`.
    """

    written: WrittenBuckets | None
    buckets: int
    rows_read: int
    rows_written: int
    notes: pl.DataFrame


class Loader(Protocol):
    """Loads buckets anew, somewhere else."""

    def load(
        self,
        store: FeatureStore,
        epoch: str,
        clients: pl.DataFrame,
        buckets: Mapping[int, list[str]],
        vocabulary: ContentVocabulary,
    ) -> Iterator[Loaded]:
        """Give what was written, as it comes; every bucket once."""
        ...


Progress = Callable[[int, int], None]
"""Called with buckets done and buckets to do."""

_LEAD = ["client_id", "lead_id"]
_ACTIVITY = ["client_id", "activity_id"]
_CONTENT = ["content_snapshot", "metadata"]
_PLAIN = [name for name in ACTIVITY_COLUMNS if name not in _CONTENT]
_T = TypeVar("_T")
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

    @cached_property
    def lead_counts(self) -> dict[str, int]:
        """Leads by client that changed themselves or of which an activity did."""
        keys = (self.leads, self.deleted_leads, self.activities.select(_LEAD))
        return dict(pl.concat(keys).unique().group_by("client_id").len().iter_rows())

    def of_clients(self, client_ids: Collection[str]) -> "_Changes":
        """Changes of some clients."""
        chosen = pl.col("client_id").is_in(list(client_ids))
        return _Changes(
            leads=self.leads.filter(chosen),
            activities=self.activities.filter(chosen),
            deleted_leads=self.deleted_leads.filter(chosen),
            deleted_activities=self.deleted_activities.filter(chosen),
            clients=self.clients & frozenset(client_ids),
        )


@dataclass(frozen=True)
class _Input:
    """Raw rows of some leads, and the buckets that are complete with them."""

    leads: pl.DataFrame
    activities: pl.DataFrame
    completes: list[int]


@dataclass(frozen=True)
class _Stored:
    """What the store has of leads concerned.

    Attributes:
        tables: All their rows.
        others: Leads that no change names: an activity that moved or was deleted was theirs.
        known: Touches whose content need not be read again.
    """

    tables: dict[Table, pl.DataFrame]
    others: pl.DataFrame
    known: pl.DataFrame


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
    loader: Loader | None = None,
) -> RefreshReport:
    """Bring the store up to date with the system of record.

    Args:
        engine: database of the system of record.
        store: columnar store to update.
        vocabulary: content vocabulary of the features.
        force: compute everything anew, also where half of the rows are gone.
        progress: called after each bucket.
        clock: seconds, for the report.
        loader: who loads everything anew; this process when not given. Changes are small, and
            always worked in here.

    Raises:
        SuspiciousReadError: less than half of the rows would be left; nothing was overwritten.
        ConflictError: another refresh is running.
        InputError: a stored value or file cannot be read.
    """
    started = clock()
    with store.write(force=force) as writer, open_snapshot(engine, connections=2) as snapshot:
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
        if changes is None and loader is not None:
            work.run_elsewhere(loader, store, ids, progress)
        else:
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
    if not snapshot.knows(since):
        return None
    leads = snapshot.changes("leads", since, columns=())
    activities = snapshot.changes("activities", since, columns=["lead_id"])
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
    """One refresh at work, some buckets at a time: memory does not grow with the clients."""

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
        buckets = _divide(client_ids)
        finished = self._load(buckets) if self._changes is None else self._update(buckets)
        done = 0
        for count in finished:
            done += count
            if progress is not None:
                progress(done, len(buckets))

    def run_elsewhere(
        self,
        loader: Loader,
        store: FeatureStore,
        client_ids: Iterable[str],
        progress: Progress | None,
    ) -> None:
        """Have the features of all clients computed and written by somebody else."""
        buckets = _divide(client_ids)
        epoch = self._snapshot.watermark.epoch
        done = 0
        names = []
        for loaded in loader.load(store, epoch, self._clients, buckets, self._vocabulary):
            assert loaded.written is not None  # noqa: S101 - it was no trial
            self._writer.adopt(loaded.written)
            names += [file.path for file in loaded.written.files.values() if file is not None]
            self.rows_read += loaded.rows_read
            self.rows_written += loaded.rows_written
            self._notes.append(loaded.notes)
            done += loaded.buckets
            if progress is not None:
                progress(done, len(buckets))
        missing = set(names) - store.list_files().keys()
        if missing:
            raise InputError(
                f"store {store.url}: {len(missing)} files that workers wrote are not here; all "
                "machines must share one store (docs/cluster.md)"
            )

    def collected_notes(self) -> pl.DataFrame:
        """Notes of all parts, added up."""
        whole = pl.concat([pl.DataFrame(schema=NOTE_SCHEMA), *self._notes])
        return (
            whole.group_by("client_id", "reason")
            .agg(pl.col("rows").sum())
            .sort("client_id", "reason")
        )

    # -- everything anew ---------------------------------------------------------------------

    def _load(self, buckets: Mapping[int, list[str]]) -> Iterator[int]:
        """Compute all clients: rows are read and files written while others are computed."""
        packed: list[dict[Table, bytes]] = []
        with ThreadPoolExecutor(1) as writing:
            last: Future[None] | None = None
            for given in _read_ahead(self._inputs(buckets)):
                tables = self._collect([self._build(given.leads, given.activities)])
                if not given.completes:
                    packed.append(_pack(tables))
                else:
                    # One write at a time: a third set of rows would be in memory.
                    if last is not None:
                        last.result()
                    tables = _unpack(packed, tables)
                    last = writing.submit(self._write_buckets, buckets, given.completes, tables)
                    packed = []
                    yield len(given.completes)
            if last is not None:
                last.result()

    def _inputs(self, buckets: Mapping[int, list[str]]) -> Iterator[_Input]:
        counts = dict(self._snapshot.count_rows("leads").iter_rows())
        sizes = {bucket: sum(counts.get(c, 0) for c in ids) for bucket, ids in buckets.items()}
        for group in _group(sizes, LEADS_PER_READ):
            ids = [client_id for bucket in group for client_id in buckets[bucket]]
            leads = self._snapshot.rows_of_clients("leads", ids, LEAD_COLUMNS)
            if leads.height > LEADS_PER_READ:
                yield from self._inputs_by_lead(leads.sort("client_id", "id"), group)
                continue
            rows = self._snapshot.rows_of_clients("activities", ids, ACTIVITY_COLUMNS)
            keys = leads.select("client_id", lead_id="id")
            yield _Input(leads, rows.join(keys, on=_LEAD, how="semi"), group)

    def _inputs_by_lead(self, leads: pl.DataFrame, group: list[int]) -> Iterator[_Input]:
        for start in range(0, leads.height, LEADS_PER_READ):
            part = leads.slice(start, LEADS_PER_READ)
            keys = part.select("client_id", lead_id="id")
            is_last = start + part.height == leads.height
            activities = self._snapshot.activities_of(keys, ACTIVITY_COLUMNS)
            yield _Input(part, activities, group if is_last else [])

    def _write_buckets(
        self,
        buckets: Mapping[int, list[str]],
        group: list[int],
        tables: Mapping[Table, pl.DataFrame],
    ) -> None:
        for bucket in group:
            own = tables
            if len(group) > 1:
                chosen = pl.col("client_id").is_in(buckets[bucket])
                own = {table: rows.filter(chosen) for table, rows in tables.items()}
            self._writer.replace_clients(bucket, buckets[bucket], own)

    # -- what changed ------------------------------------------------------------------------

    def _update(self, buckets: Mapping[int, list[str]]) -> Iterator[int]:
        assert self._changes is not None  # noqa: S101 - the caller looked
        whole = [bucket for bucket, ids in buckets.items() if self._is_whole(ids, self._changes)]
        for bucket in self._writer.due_buckets():
            if bucket not in whole:
                self._writer.absorb(bucket)
        for bucket in whole:
            self._refresh_bucket(bucket, buckets[bucket], self._changes.of_clients(buckets[bucket]))
            yield 1
        known = self._writer.base.clients
        touches = {
            bucket: sum(known[client_id].touches for client_id in ids if client_id in known)
            for bucket, ids in buckets.items()
            if bucket not in whole
        }
        for group in _group(touches, TOUCHES_PER_LOOK):
            ids = [client_id for bucket in group for client_id in buckets[bucket]]
            concerned = self._changes.of_clients(self._live.intersection(ids))
            with _without_collections():
                self._refresh_leads(group, concerned)
            yield len(group)

    def _is_whole(self, ids: list[str], changes: _Changes) -> bool:
        """Whether a bucket is better written whole than lead by lead."""
        known = self._writer.base.clients
        has = sum(known[client_id].leads for client_id in ids if client_id in known)
        changed = sum(changes.lead_counts.get(client_id, 0) for client_id in ids)
        return not changes.clients.isdisjoint(ids) or changed > WHOLE_SHARE * has

    def _refresh_bucket(self, bucket: int, ids: list[str], changes: _Changes) -> None:
        """Write a bucket whole; rows of leads that are not concerned stay as they are."""
        stored = {table: self._stored(table, bucket, ids) for table in TABLES}
        live = [client_id for client_id in ids if client_id in self._live]
        leads = self._snapshot.rows_of_clients("leads", live, LEAD_COLUMNS)
        now = leads.select("client_id", lead_id="id")
        before = stored["lead_features"].select(_LEAD)
        every = pl.concat([now, before]).filter(pl.col("client_id").is_in(list(changes.clients)))
        owners = pl.concat([now, before])["client_id"].unique().to_list()
        concerned = (
            pl.concat([every, _concerned(changes, stored)])
            .filter(pl.col("client_id").is_in(owners))
            .unique()
        )
        touches = stored["touch_features"].join(concerned, on=_LEAD, how="semi")
        known = _known_content(changes, touches)
        rows = leads.join(concerned, left_on=["client_id", "id"], right_on=_LEAD, how="semi")
        keys = rows.select("client_id", lead_id="id")
        parts = self._compute(keys, lambda: rows, lambda: known, changes.activities)
        tables = self._collect(list(parts))
        alive = pl.col("client_id").is_in(live)
        kept = {t: f.join(concerned, on=_LEAD, how="anti").filter(alive) for t, f in stored.items()}
        self._writer.replace_clients(
            bucket, ids, {table: pl.concat([kept[table], tables[table]]) for table in TABLES}
        )

    def _stored(self, table: Table, bucket: int, ids: Collection[str]) -> pl.DataFrame:
        """Rows in the store that may stay as they are."""
        stored = self._writer.read_bucket(table, bucket)
        if stored is None:
            return pl.DataFrame(schema=self._schemas[table])
        return stored.filter(pl.col("client_id").is_in(list(ids)))

    def _refresh_leads(self, group: list[int], changes: _Changes) -> None:
        """Write the leads concerned beside their buckets.

        What the store has of them is read and hashed while the database answers.
        """
        named = _named(changes)
        with ThreadPoolExecutor(1) as looking, ThreadPoolExecutor(1) as asking:
            found = looking.submit(self._look_up, group, changes, named)
            gone = looking.submit(lambda: sum_tables(found.result().tables))
            leads = asking.submit(self._snapshot.leads_of, named, LEAD_COLUMNS)
            parts = self._compute_all(changes, named, leads.result, found.result)
            tables = self._collect(list(parts))
            concerned = pl.concat([named, found.result().others])
            self._writer.replace_leads(concerned, gone.result(), tables)

    def _compute_all(
        self,
        changes: _Changes,
        named: pl.DataFrame,
        leads: Callable[[], pl.DataFrame],
        stored: Callable[[], _Stored],
    ) -> Iterator[_Part]:
        """Features of the leads that changes name, then of others that are concerned."""
        new = changes.activities
        yield from self._compute(named, leads, lambda: stored().known, new)
        others = stored().others
        if others.height:
            rows = self._snapshot.leads_of(others, LEAD_COLUMNS)
            yield from self._compute(others, lambda: rows, lambda: stored().known, new)

    def _look_up(self, group: list[int], changes: _Changes, named: pl.DataFrame) -> _Stored:
        """What the store has of the leads concerned."""
        moved = _moved(changes)
        tables = {
            table: self._writer.read_leads(
                table, group, named, None if table == "lead_features" else moved
            )
            for table in TABLES
        }
        keys = [rows.select(_LEAD) for table, rows in tables.items() if table != "lead_features"]
        others = pl.concat(keys).unique().join(named, on=_LEAD, how="anti")
        if others.height:
            # Rare: an activity changed its lead or was deleted. All rows of that lead are needed.
            concerned = pl.concat([named, others])
            tables = {table: self._writer.read_leads(table, group, concerned) for table in TABLES}
        return _Stored(tables, others, _known_content(changes, tables["touch_features"]))

    # -- both --------------------------------------------------------------------------------

    def _compute(
        self,
        keys: pl.DataFrame,
        leads: Callable[[], pl.DataFrame],
        known: Callable[[], pl.DataFrame],
        new: pl.DataFrame,
    ) -> Iterator[_Part]:
        """Features of some leads, a part at a time, the next of which are read ahead.

        Args:
            keys: Columns client_id and lead_id.
            leads: Rows of those that are not deleted; asked for when activities have been read.
            known: Content that need not be read; asked for when all else has been computed.
            new: Keys of activities of whom none is known, read without asking.
        """

        def read() -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
            with ThreadPoolExecutor(1) as beside:
                for part in keys.sort(_LEAD).iter_slices(LEADS_PER_READ):
                    fresh = new.join(part, on=_LEAD, how="semi").rename({"activity_id": "id"})
                    content = beside.submit(self._read_content, fresh)
                    plain = self._snapshot.activities_of(part, _PLAIN)
                    own = leads().join(
                        part, left_on=["client_id", "id"], right_on=_LEAD, how="semi"
                    )
                    alive = own.select("client_id", lead_id="id")
                    rows = plain.join(alive, on=_LEAD, how="semi", maintain_order="left").join(
                        content.result(), on=["client_id", "id"], how="left"
                    )
                    yield own.sort("client_id", "id"), rows

        for part, activities in _read_ahead(read()):
            yield self._build_changed(part, activities, known, new)

    def _read_content(self, keys: pl.DataFrame) -> pl.DataFrame:
        """Content of some activities, nine tenths of their bytes."""
        return self._snapshot.activities_by_id(keys, _CONTENT)

    def _build_changed(
        self,
        leads: pl.DataFrame,
        activities: pl.DataFrame,
        known: Callable[[], pl.DataFrame],
        new: pl.DataFrame,
    ) -> _Part:
        """Features of leads that change, whose activities have content where they are new."""
        old = activities.select("client_id", activity_id="id").join(new, on=_ACTIVITY, how="anti")
        begun = begin_features(
            self._clients, leads, activities, self._vocabulary, without_content=old
        )
        stored = known().join(old, on=_ACTIVITY, how="semi")
        touches = begun.touches.select(_ACTIVITY).join(old, on=_ACTIVITY, how="semi")
        unknown = touches.join(stored, on=_ACTIVITY, how="anti")
        if unknown.height:
            texts = self._read_content(unknown.rename({"activity_id": "id"}))
            begun = add_content(begun, texts.rename({"id": "activity_id"}), self._vocabulary)
        features = finish_features(begun, self._vocabulary, stored)
        return _make_part(features, leads, activities)

    def _build(self, leads: pl.DataFrame, activities: pl.DataFrame) -> _Part:
        features = build_features(self._clients, leads, activities, self._vocabulary)
        return _make_part(features, leads, activities)

    def _collect(self, parts: Sequence[_Part]) -> dict[Table, pl.DataFrame]:
        """Rows of all parts by table; counted, and their notes kept."""
        none = {table: pl.DataFrame(schema=schema) for table, schema in self._schemas.items()}
        tables: dict[Table, list[pl.DataFrame]] = {
            "lead_features": [part.features.leads for part in parts],
            "touch_features": [part.features.touches for part in parts],
            "bookings": [part.bookings for part in parts],
        }
        self.rows_read += sum(part.rows_read for part in parts)
        self.rows_written += sum(frame.height for frames in tables.values() for frame in frames)
        # Made anew: as they come they hold on to the buffers they were counted from.
        notes = [part.features.notes for part in parts]
        self._notes += [pl.DataFrame(n.rows(), schema=n.schema, orient="row") for n in notes]
        return {table: pl.concat([none[table], *frames]) for table, frames in tables.items()}


def _make_part(features: Features, leads: pl.DataFrame, activities: pl.DataFrame) -> _Part:
    bookings = activities.filter(pl.col("action") == BOOKING_ACTION).select(
        "client_id", "lead_id", activity_id="id"
    )
    return _Part(features, bookings, leads.height + activities.height)


def load_buckets(
    snapshot: SourceSnapshot,
    writer: FeatureWriter,
    clients: pl.DataFrame,
    buckets: Mapping[int, list[str]],
    vocabulary: ContentVocabulary,
    *,
    is_trial: bool,
) -> Loaded:
    """Load some buckets anew for somebody else to put in force.

    Args:
        snapshot: The sources.
        writer: A detached one.
        clients: Raw rows of the clients.
        buckets: Client ids by bucket.
        vocabulary: Content vocabulary.
        is_trial: Take back what was written.
    """
    work = _Refresh(snapshot, writer, clients, vocabulary, None)
    try:
        work.run([client_id for ids in buckets.values() for client_id in ids], None)
    except BaseException:
        writer.discard()
        raise
    if is_trial:
        writer.discard()
    return Loaded(
        None if is_trial else writer.hand_over(),
        len(buckets),
        work.rows_read,
        work.rows_written,
        work.collected_notes(),
    )


@contextmanager
def _without_collections() -> Iterator[None]:
    """No search for reference cycles, of which frames and keys hold none.

    One search of all that was imported takes a tenth of a small refresh.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _divide(client_ids: Iterable[str]) -> dict[int, list[str]]:
    """Client ids by bucket, both in order."""
    buckets: dict[int, list[str]] = {}
    for client_id in sorted(client_ids):
        buckets.setdefault(bucket_of(client_id), []).append(client_id)
    return dict(sorted(buckets.items()))


def _pack(tables: Mapping[Table, pl.DataFrame]) -> dict[Table, bytes]:
    """Rows of a part of a large client, to be kept until the others are there.

    As they come they hold on to the buffers of everything they were computed from: 0.7 KB a touch,
    where the file to be has 0.04 KB.
    """
    packed: dict[Table, bytes] = {}
    for table, rows in tables.items():
        buffer = io.BytesIO()
        rows.write_parquet(buffer, compression="lz4", statistics=False)
        packed[table] = buffer.getvalue()
    return packed


def _unpack(
    packed: list[dict[Table, bytes]], last: Mapping[Table, pl.DataFrame]
) -> dict[Table, pl.DataFrame]:
    """All rows of the parts, the last of which was not packed."""
    if not packed:
        return dict(last)
    return {
        table: pl.concat([*(pl.read_parquet(io.BytesIO(part[table])) for part in packed), rows])
        for table, rows in last.items()
    }


def _moved(changes: _Changes) -> pl.DataFrame:
    """Activities that changed, and may have been of another lead, or are gone."""
    return pl.concat([changes.activities.select(_ACTIVITY), changes.deleted_activities])


def _named(changes: _Changes) -> pl.DataFrame:
    """Keys of leads that changed, are gone, or of which an activity changed."""
    keys = [changes.leads, changes.deleted_leads, changes.activities.select(_LEAD)]
    return pl.concat(keys).unique().sort(_LEAD)


def _concerned(changes: _Changes, stored: Mapping[Table, pl.DataFrame]) -> pl.DataFrame:
    """Keys of leads that must be computed again or that are gone.

    An activity that moved to another lead or was deleted concerns the lead it was of.
    """
    was_of = [
        stored[table].join(_moved(changes), on=_ACTIVITY, how="semi").select(_LEAD)
        for table in stored
        if table != "lead_features"
    ]
    return pl.concat([_named(changes), *was_of]).unique().sort(_LEAD)


def _known_content(changes: _Changes, touches: pl.DataFrame) -> pl.DataFrame:
    """Stored content of activities that did not change, of leads whose own row did not."""
    of_leads = keep_rows(touches, changes.leads, _LEAD, "anti")
    return keep_rows(of_leads, changes.activities, _ACTIVITY, "anti")


def _group(sizes: Mapping[int, int], most: int) -> list[list[int]]:
    """Buckets in their order, so many together as are not larger than `most`.

    Example:
        >>> _group({3: 4, 5: 5, 7: 2, 9: 30, 11: 1}, 10)
        [[3, 5], [7], [9], [11]]
    """
    groups: list[list[int]] = []
    size = 0
    for bucket, added in sizes.items():
        if not groups or size + added > most:
            groups.append([])
            size = 0
        groups[-1].append(bucket)
        size += added
    return groups


def _read_ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The items, the next of which is made by a thread while the caller has the one before."""
    with ThreadPoolExecutor(1) as reading:
        coming = reading.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = reading.submit(next, items, None)
            yield item


def feature_schemas(
    vocabulary: ContentVocabulary = DEFAULT_VOCABULARY,
) -> dict[Table, dict[str, pl.DataType]]:
    """Columns of each table of the store as this code computes them."""
    return {
        "lead_features": dict(LEAD_FEATURES),
        "touch_features": touch_schema(vocabulary),
        "bookings": _BOOKINGS,
    }
