"""Does what was derived still agree with the system of record? Compares, and changes nothing.

Each difference says what differs, where, and the command that mends it. Everything is compared for
all clients at once; the slow comparison, features computed anew, is made on request.
"""

import json
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import Engine

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.content import DEFAULT_VOCABULARY
from conversion_assets.domain.errors import InputError, NotFoundError
from conversion_assets.domain.forecasts import FORECASTS, HORIZON_DAYS
from conversion_assets.domain.patterns import Claim
from conversion_assets.domain.terms import BOOKING_ACTION, OutcomeKind, PatternType
from conversion_assets.evaluation.forward import forget_later
from conversion_assets.features import build_features, feature_version
from conversion_assets.features.touches import touch_channel
from conversion_assets.learning import CODE_VERSION, compute_input_fingerprints
from conversion_assets.refresh.features import LEADS_PER_READ, feature_schemas
from conversion_assets.refresh.forward import ForwardState, add_record
from conversion_assets.refresh.patterns import content_hash_of, read_pool
from conversion_assets.storage import quarantine, reconciliation
from conversion_assets.storage.columnar.manifest import (
    FEATURE_TABLES,
    TABLES,
    Manifest,
    Table,
    bucket_of,
    is_of_segment,
)
from conversion_assets.storage.columnar.rows import compute_fingerprints
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.erasures import hash_id, match_erased, read_erasures
from conversion_assets.storage.forecasts import read_forecasts
from conversion_assets.storage.sources import SourceSnapshot, Watermark, open_snapshot

_LEARN = "conversion-assets learn"
_TYPE_ORDER = {str(kind): place for place, kind in enumerate(PatternType)}


@dataclass(frozen=True)
class Difference:
    """One thing that does not agree.

    Attributes:
        check: The claim that does not hold.
        client_id: Whose; None where it is nobody's.
        where: Table, file or document.
        message: What differs.
        expected: What the system of record, or the newer of the two, says.
        found: What stands there.
        mend: The command that mends it.
    """

    check: str
    client_id: str | None
    where: str
    message: str
    expected: str | int | None
    found: str | int | None
    mend: str


@dataclass
class Verification:
    """What a comparison came to.

    Attributes:
        clients: Clients compared.
        checked: How much was looked at, by name.
        differences: What does not agree, sorted.
        notes: What is worth knowing and no difference.
        known: Ids of all clients, deleted ones too.
    """

    clients: int = 0
    checked: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    known: frozenset[str] = frozenset()

    def note_partitions(self, client_ids: Iterable[str]) -> None:
        """Note clients that Dagster has a partition of and the system of record has not."""
        for client_id in sorted(set(client_ids) - self.known):
            self.notes.append(f"Dagster has a partition of {client_id!r}, which is no client here")

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = asdict(self)
        del plain["known"]
        return plain


@dataclass(frozen=True)
class _Source:
    """The system of record at one moment.

    Attributes:
        clients: Rows of the live clients.
        every: Ids of all clients, deleted ones too.
        active: Clients that are learned.
        chosen: Clients to compare.
        counts: client_id, table, rows that features must have.
        changes: Changed rows by client since the store's watermark; None where that is unknown.
        is_known: Whether the watermark is of this database.
    """

    clients: pl.DataFrame
    every: frozenset[str]
    active: frozenset[str]
    chosen: frozenset[str]
    counts: pl.DataFrame
    changes: dict[str, int]
    is_known: bool


def verify(
    engine: Engine,
    store: FeatureStore,
    quarantine_folder: Path,
    *,
    config: LearningConfig,
    now: datetime,
    client_ids: Collection[str] = (),
    recorded: Mapping[tuple[str, str], str] | None = None,
    deep: bool = False,
) -> Verification:
    """Compare features and patterns with the system of record.

    Args:
        engine: System of record.
        store: Columnar store.
        quarantine_folder: Where refused rows are kept.
        config: Thresholds in force; patterns learned with others are no longer today's.
        now: Aware time.
        client_ids: Only these; none: all.
        recorded: Content hash that was recorded when a client's type was last stored.
        deep: Also compute the features of these clients anew and compare them by the byte.

    Raises:
        NotFoundError: there is no such client.
        InputError: database or store cannot be reached.
    """
    result = Verification()
    found: list[Difference] = []
    try:
        manifest = store.load_manifest()
    except InputError as error:
        manifest = Manifest()
        found.append(_of_store("store_is_readable", store.url, str(error)))
    with open_snapshot(engine) as snapshot:
        source = _read_source(snapshot, manifest, frozenset(client_ids))
        if deep:
            found += _compare_deeply(snapshot, store, manifest, source)
    result.clients, result.known = len(source.chosen), source.every
    if not found or deep:
        found += _compare_store(store, manifest, source, now, result)
    found += _compare_patterns(engine, manifest, source, config, result)
    found += _compare_recorded(engine, recorded or {})
    found += _compare_erasures(engine, source)
    wanted = [one for one in found if not client_ids or one.client_id in (None, *source.chosen)]
    result.differences = sorted(
        dict.fromkeys(wanted), key=lambda d: (d.client_id or "", d.check, d.where)
    )
    refused = quarantine.count_rows(quarantine_folder)
    result.checked["quarantined rows"] = sum(refused.values())
    for name, rows in refused.items():
        result.notes.append(f"quarantine {name}: {rows:,} rows wait to be repaired and imported")
    return result


def _of_store(check: str, where: str, message: str, **values: Any) -> Difference:
    return Difference(
        check,
        values.get("client_id"),
        where,
        message,
        values.get("expected"),
        values.get("found"),
        "conversion-assets rebuild features",
    )


def _learn(client_id: str) -> str:
    return f"{_LEARN} --client {_quoted(client_id)}"


def _quoted(text: str) -> str:
    return shlex.quote(text)


# -- the system of record ----------------------------------------------------------------------


def _read_source(snapshot: SourceSnapshot, manifest: Manifest, wanted: frozenset[str]) -> _Source:
    every = snapshot.clients()
    ids = frozenset(every["id"])
    for client_id in sorted(wanted - ids):
        raise NotFoundError(f"there is no client {client_id!r}")
    live = every.filter(pl.col("deleted_at").is_null())
    since = _watermark(manifest)
    is_known = since is not None and reconciliation.is_readable_from(snapshot, since)
    changes: dict[str, int] = {}
    if since is not None and is_known:
        changes = dict(reconciliation.count_changes(snapshot, since).iter_rows())
    return _Source(
        clients=live,
        every=ids,
        active=frozenset(snapshot.active_client_ids()),
        chosen=wanted or ids,
        counts=_count_source(snapshot, live),
        changes=changes,
        is_known=is_known,
    )


def _watermark(manifest: Manifest) -> Watermark | None:
    try:
        return Watermark.parse(str((manifest.watermark or {}).get("source")))
    except InputError:
        return None


def _count_source(snapshot: SourceSnapshot, live: pl.DataFrame) -> pl.DataFrame:
    """Rows that each table of the store must have: client_id, table, expected."""
    actions = reconciliation.count_actions(snapshot)
    touches = actions.with_columns(channel=touch_channel()).drop_nulls("channel")
    parts = {
        "lead_features": snapshot.count_rows("leads"),
        "touch_features": touches,
        "bookings": actions.filter(pl.col("action") == BOOKING_ACTION),
    }
    counted = pl.concat(
        frame.group_by("client_id").agg(
            pl.lit(table).alias("table"), pl.col("rows").sum().cast(pl.Int64).alias("expected")
        )
        for table, frame in parts.items()
    )
    return counted.join(live.select(client_id="id"), on="client_id", how="semi")


# -- the store ---------------------------------------------------------------------------------


def _compare_store(
    store: FeatureStore, manifest: Manifest, source: _Source, now: datetime, result: Verification
) -> Iterator[Difference]:
    if manifest.revision == 0:
        if source.counts["expected"].sum():
            yield _of_store("features_are_there", store.url, "features were never computed")
        return
    yield from _compare_versions(store, manifest, source)
    damaged = store.find_damaged(manifest)
    for path, wrong in damaged.items():
        yield _of_store("files_are_whole", store.url_of(path), wrong)
    yield from _compare_schemas(store, manifest, damaged)
    counted = _count_store(store, manifest, damaged)
    yield from _compare_counts(manifest, source, counted, damaged)
    yield from _compare_places(store, source, counted)
    old, young = store.list_orphans(manifest, now.timestamp())
    for path in old:
        yield _of_store("files_are_named", store.url_of(path), "no version names this file")
    if young:
        result.notes.append(f"{len(young)} files of the store may belong to a writer at work")
    result.checked["files"] = len(manifest.all_files())
    result.checked |= {str(table): manifest.rows(table) for table in TABLES}


def _compare_versions(
    store: FeatureStore, manifest: Manifest, source: _Source
) -> Iterator[Difference]:
    today = feature_version(DEFAULT_VOCABULARY)
    if manifest.feature_version != today:
        yield _of_store(
            "features_are_of_this_code",
            store.url,
            "features were computed by other code or another vocabulary",
            expected=today,
            found=manifest.feature_version,
        )
    if not source.is_known:
        yield _of_store(
            "watermark_is_of_this_database",
            store.url,
            "the watermark is of another database or ahead of this one",
            found=str((manifest.watermark or {}).get("source")),
        )
    zones = dict(source.clients.select("id", "timezone").iter_rows())
    for client_id, rows in sorted(source.changes.items()):
        if rows and client_id in zones:
            yield Difference(
                "features_are_up_to_date",
                client_id,
                "columnar store",
                f"{rows:,} rows changed since the features were computed",
                0,
                rows,
                _learn(client_id),
            )
    for client_id in sorted(zones.keys() & manifest.zones.keys()):
        if zones[client_id] != manifest.zones[client_id]:
            yield Difference(
                "features_are_up_to_date",
                client_id,
                "columnar store",
                "the client's time zone changed since the features were computed",
                zones[client_id],
                manifest.zones[client_id],
                _learn(client_id),
            )


def _compare_schemas(
    store: FeatureStore, manifest: Manifest, damaged: Collection[str]
) -> Iterator[Difference]:
    today = {
        table: {name: str(dtype) for name, dtype in schema.items()}
        for table, schema in feature_schemas(DEFAULT_VOCABULARY).items()
    }
    for table in TABLES:
        stated = manifest.columns.get(table)
        if stated != today[table]:
            yield _of_store(
                "columns_are_of_this_code", table, _describe_columns(today[table], stated or {})
            )
        for file in manifest.table_files(table):
            if file.path in damaged:
                continue
            columns = store.read_schema(file.path)
            if columns != stated:
                words = _describe_columns(stated or {}, columns)
                yield _of_store("columns_are_as_stated", store.url_of(file.path), words)


def _describe_columns(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    missing = sorted(expected.keys() - found.keys())
    more = sorted(found.keys() - expected.keys())
    other = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    parts = [("missing", missing), ("unknown", more), ("of another type", other)]
    words = [f"{kind}: {', '.join(names)}" for kind, names in parts if names]
    return "columns " + ("; ".join(words) or "in another order")


def _count_store(
    store: FeatureStore, manifest: Manifest, damaged: Mapping[str, str]
) -> pl.DataFrame:
    """Rows in the files: client_id, path, rows, table."""
    parts = []
    for table in TABLES:
        counted = store.count_clients(manifest, table, except_=damaged)
        parts.append(counted.with_columns(pl.lit(table).alias("table")))
    return pl.concat(parts)


def _compare_counts(
    manifest: Manifest, source: _Source, counted: pl.DataFrame, damaged: Collection[str]
) -> Iterator[Difference]:
    """The system of record against the manifest, and the manifest against the files."""
    if any(is_of_segment(path) for path in damaged):
        return  # what is in place of what cannot be told; the damage is
    stated = pl.DataFrame(
        [
            row
            for client_id, one in manifest.clients.items()
            for row in (
                (client_id, "lead_features", one.leads),
                (client_id, "touch_features", one.touches),
            )
        ],
        schema={"client_id": pl.String, "table": pl.String, "stated": pl.Int64},
        orient="row",
    )
    in_files = counted.group_by("client_id", "table").agg(found=pl.col("rows").sum())
    key = ["client_id", "table"]
    whole = (
        source.counts.join(in_files, on=key, how="full", coalesce=True)
        .join(stated, on=key, how="full", coalesce=True)
        .with_columns(pl.col("expected", "found", "stated").fill_null(0))
        .filter(pl.col("client_id").is_in(source.clients["id"].implode()))
        .sort(key)
    )
    # A bucket whose file is damaged has no count to compare; the damage is told.
    unread = {
        (table, file.bucket)
        for table in TABLES
        for file in manifest.files.get(table, [])
        if file.path in damaged
    }
    behind = pl.col("expected") != pl.col("found")
    untrue = (pl.col("stated") != pl.col("found")) & (pl.col("table") != "bookings")
    for row in whole.filter(behind | untrue).iter_rows(named=True):
        client_id, table = row["client_id"], row["table"]
        if (table, bucket_of(client_id)) in unread:
            continue
        if row["expected"] != row["found"]:
            is_behind = bool(source.changes.get(client_id))
            yield Difference(
                "counts_match",
                client_id,
                table,
                f"{row['expected']:,} rows expected from the system of record,"
                f" {row['found']:,} in the store",
                row["expected"],
                row["found"],
                _learn(client_id) if is_behind else "conversion-assets rebuild features",
            )
        else:
            yield _of_store(
                "manifest_counts_match",
                table,
                f"the manifest says {row['stated']:,} rows, the files have {row['found']:,}",
                client_id=client_id,
                expected=row["found"],
                found=row["stated"],
            )


def _compare_places(
    store: FeatureStore, source: _Source, counted: pl.DataFrame
) -> Iterator[Difference]:
    """Rows of clients that do not exist, and rows in another client's bucket."""
    live = set(source.clients["id"])
    for client_id, path, rows, table in counted.sort("client_id", "path").iter_rows():
        if client_id not in live:
            yield _of_store(
                "clients_are_known",
                store.url_of(path),
                f"{rows:,} rows of a client that is not in the system of record or deleted",
                client_id=client_id,
                expected=0,
                found=rows,
            )
        elif f"{table}/b{bucket_of(client_id):02d}-" not in path and not is_of_segment(path):
            yield _of_store(
                "rows_lie_in_their_bucket",
                store.url_of(path),
                f"{rows:,} rows lie where nobody looks for them",
                client_id=client_id,
                expected=0,
                found=rows,
            )


def _compare_deeply(
    snapshot: SourceSnapshot, store: FeatureStore, manifest: Manifest, source: _Source
) -> list[Difference]:
    """Features computed anew against those in the store, by content."""
    found = []
    live = source.clients.filter(pl.col("id").is_in(source.chosen))
    for client_id in live["id"].sort():
        if source.changes.get(client_id):
            continue  # it is told that they are behind
        fresh = compute_fingerprints(_compute_features(snapshot, source.clients, client_id))
        stated = manifest.clients.get(client_id)
        values = {"manifest": stated and stated.fingerprint}
        # That a file is damaged or missing is told already.
        with suppress(InputError, NotFoundError):
            frames: dict[Table, pl.DataFrame] = {
                table: store.read(table, [client_id]) for table in FEATURE_TABLES
            }
            values["rows"] = compute_fingerprints(frames).get(client_id)
        for where, value in values.items():
            if value != fresh.get(client_id):
                found.append(
                    _of_store(
                        "features_are_those_of_the_rows",
                        where,
                        "features computed anew are other ones",
                        client_id=client_id,
                        expected=fresh.get(client_id),
                        found=value,
                    )
                )
    return found


def _compute_features(
    snapshot: SourceSnapshot, clients: pl.DataFrame, client_id: str
) -> dict[Table, pl.DataFrame]:
    leads = snapshot.changes("leads", None, [client_id]).rows
    parts = []
    for part in leads.iter_slices(LEADS_PER_READ):
        activities = snapshot.activities_of(part.select("client_id", lead_id="id"))
        parts.append(build_features(clients, part, activities))
    if not parts:
        return {table: pl.DataFrame(schema=feature_schemas()[table]) for table in FEATURE_TABLES}
    return {
        "lead_features": pl.concat([part.leads for part in parts]),
        "touch_features": pl.concat([part.touches for part in parts]),
    }


# -- patterns ----------------------------------------------------------------------------------


def _compare_patterns(
    engine: Engine,
    manifest: Manifest,
    source: _Source,
    config: LearningConfig,
    result: Verification,
) -> Iterator[Difference]:
    current = reconciliation.read_current(engine)
    outcomes = reconciliation.read_outcomes(engine)
    result.checked |= {"current patterns": current.height, "outcomes": outcomes.height}
    yield from _compare_history(engine, current)
    yield from _compare_outcomes(current, outcomes)
    yield from _compare_inputs(engine, manifest, source, config, outcomes)
    missing = (source.active & source.chosen) - set(outcomes["client_id"])
    failed = set(reconciliation.list_failed(engine))
    for client_id in sorted(missing - failed):
        yield Difference(
            "active_clients_are_learned",
            client_id,
            "pattern_outcomes",
            "an active client was never learned",
            None,
            None,
            _learn(client_id),
        )


def _rebuild_history(client_id: str) -> str:
    return f"conversion-assets rebuild history --client {_quoted(client_id)}"


def _compare_history(engine: Engine, current: pl.DataFrame) -> Iterator[Difference]:
    for row in current.iter_rows(named=True):
        client_id, where = row["client_id"], f"conversion_patterns {row['pattern_type']}"
        if not row["has_history"]:
            message = f"the version of {_day(row['as_of'])} is missing in the history"
            mend = _rebuild_history(client_id)
        elif row["newest_as_of"] > row["as_of"]:
            message = f"the history has a newer version, of {_day(row['newest_as_of'])}"
            mend = _rebuild_history(client_id)
        elif not row["is_same"]:
            message = "the document is not that of the history for the same version"
            mend = _rebuild_history(client_id)
        else:
            continue
        yield Difference(
            "current_is_newest_of_history", client_id, where, message, None, None, mend
        )
    for client_id, kind in reconciliation.find_lost_current(engine).iter_rows():
        yield Difference(
            "current_is_newest_of_history",
            client_id,
            f"conversion_patterns {kind}",
            "there is a history and no current pattern",
            None,
            None,
            _rebuild_history(client_id),
        )
    homeless = reconciliation.find_homeless_forecasts(engine)
    for client_id, kind, made, rows in homeless.iter_rows():
        yield Difference(
            "forecasts_belong_to_a_version",
            client_id,
            f"pattern_forecasts {kind}",
            f"{rows:,} forecasts of {_day(made)}, whose document is not in the history",
            0,
            rows,
            _rebuild_history(client_id),
        )


def _day(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")


def _compare_recorded(
    engine: Engine, recorded: Mapping[tuple[str, str], str]
) -> Iterator[Difference]:
    """Bytes of the current documents against the hashes recorded when they were stored."""
    suspects: dict[tuple[str, str], str] = {}
    for client_id, kind, text in reconciliation.read_document_texts(engine, "conversion_patterns"):
        expected = recorded.get((client_id, kind))
        if expected is not None and content_hash_of(text) != expected:
            suspects[client_id, kind] = content_hash_of(text)
    if not suspects:
        return
    # Whoever learned as of an earlier moment recorded a version that is not the current one.
    clients = sorted({client_id for client_id, _ in suspects})
    texts = reconciliation.read_document_texts(engine, "conversion_pattern_history", clients)
    earlier = {(client, kind, content_hash_of(text)) for client, kind, text in texts}
    for (client_id, kind), found in sorted(suspects.items()):
        if (client_id, kind, recorded[client_id, kind]) not in earlier:
            yield Difference(
                "documents_are_as_recorded",
                client_id,
                f"conversion_patterns {kind}",
                "the document is not the one that was stored by the last run",
                recorded[client_id, kind],
                found,
                _learn(client_id),
            )


def _compare_outcomes(current: pl.DataFrame, outcomes: pl.DataFrame) -> Iterator[Difference]:
    """An outcome that says a document was stored, and no document of that moment."""
    kept = [str(OutcomeKind.FOUND), str(OutcomeKind.NONE_FOUND)]
    stated = outcomes.filter(pl.col("outcome").is_in(kept))
    key = ["client_id", "pattern_type"]
    joined = stated.join(current, on=key, how="left", suffix="_current")
    lost = joined.filter(
        pl.col("as_of_current").is_null() | (pl.col("as_of_current") < pl.col("as_of"))
    )
    for row in lost.iter_rows(named=True):
        yield Difference(
            "outcomes_have_their_document",
            row["client_id"],
            f"conversion_patterns {row['pattern_type']}",
            f"the document of the outcome of {_day(row['as_of'])} is not there",
            _day(row["as_of"]),
            row["as_of_current"] and _day(row["as_of_current"]),
            _learn(row["client_id"]),
        )


def _compare_inputs(
    engine: Engine,
    manifest: Manifest,
    source: _Source,
    config: LearningConfig,
    outcomes: pl.DataFrame,
) -> Iterator[Difference]:
    """Code and rows of today against those that each pattern was learned by and from.

    Only clients that are learned: whoever is paused keeps what was learned last.
    """
    chosen = source.active & source.chosen
    rows = outcomes.filter(pl.col("client_id").is_in(chosen))
    fingerprints = _compute_inputs(engine, manifest, config, rows)
    versions = rows.group_by("client_id", "as_of", "code_version", "input_fingerprint").agg(
        pl.col("pattern_type").sort_by(pl.col("pattern_type").replace_strict(_TYPE_ORDER))
    )
    for row in versions.iter_rows(named=True):
        client_id = row["client_id"]
        expected = fingerprints[client_id, row["as_of"]]
        where = f"{', '.join(row['pattern_type'])} of {_day(row['as_of'])}"
        if row["code_version"] != CODE_VERSION:
            check, message = "patterns_are_of_this_code", "learned by other code"
            values = (CODE_VERSION, row["code_version"])
        elif row["input_fingerprint"] != expected:
            check = "patterns_are_of_these_rows"
            message = "rows, pool, earlier claims or thresholds have changed since then"
            values = (expected, row["input_fingerprint"])
        else:
            continue
        yield Difference(check, client_id, where, message, *values, _learn(client_id))


def _compute_inputs(
    engine: Engine, manifest: Manifest, config: LearningConfig, outcomes: pl.DataFrame
) -> dict[tuple[str, datetime], str]:
    """Fingerprint that each client's input at the moment of an outcome has today."""
    pool = read_pool(engine)
    members = set(pool.filter("pool_opt_in")["client_id"])
    everyone = members | set(outcomes["client_id"])
    own = {
        client: manifest.clients[client].fingerprint if client in manifest.clients else ""
        for client in everyone
    }
    earlier = _parse_claims(reconciliation.read_earlier_claims(engine))
    forecasts = read_forecasts(engine, sorted(everyone)) if everyone else None
    longest = timedelta(days=max(config.window_days, HORIZON_DAYS))
    found: dict[tuple[str, datetime], str] = {}
    for (as_of,), group in outcomes.group_by("as_of"):
        moment: Any = as_of
        ids = group["client_id"].unique().to_list()
        claims = {c: earlier[c, moment] for c in ids if (c, moment) in earlier}
        prints = compute_input_fingerprints(own, members, config, claims)
        if forecasts is not None and forecasts.height:
            known = forecasts.filter(
                pl.col("client_id").is_in(ids) & (pl.col("made_as_of") > moment - longest)
            )
            nothing = pl.DataFrame(schema=FORECASTS)
            prints = add_record(prints, ForwardState(known, forget_later(known, moment), nothing))
        found |= {(client, moment): prints[client] for client in ids}
    return found


def _parse_claims(
    rows: pl.DataFrame,
) -> dict[tuple[str, datetime], list[tuple[PatternType, Claim]]]:
    found: dict[tuple[str, datetime], list[tuple[PatternType, Claim]]] = {}
    for client_id, as_of, kind, text in rows.iter_rows():
        found.setdefault((client_id, as_of), []).extend(
            (PatternType(kind), Claim.model_validate(one)) for one in json.loads(text or "[]")
        )
    return found


# -- erasures ----------------------------------------------------------------------------------


def _compare_erasures(engine: Engine, source: _Source) -> Iterator[Difference]:
    """Erasures that were not finished, ids that came back, patterns from before an erasure."""
    standing = read_erasures(engine)
    if standing.is_empty():
        return
    salt = str(standing["salt"][0])
    names = {hash_id(salt, client_id): client_id for client_id in source.every}
    learned = reconciliation.read_outcomes(engine)
    for (client_hash,), rows in standing.group_by("client_hash", maintain_order=True):
        client_id = names.get(str(client_hash))
        yield from _compare_open(client_id, rows.filter(pl.col("done_at").is_null()))
        if client_id is not None:
            own = learned.filter(pl.col("client_id") == client_id)
            yield from _compare_learned(client_id, own, rows)
    yield from _find_returned(engine, standing, source)


def _compare_open(client_id: str | None, rows: pl.DataFrame) -> Iterator[Difference]:
    if rows.is_empty():
        return
    whole = rows["lead_hash"].null_count() > 0
    name = _quoted(client_id) if client_id else "CLIENT"
    yield Difference(
        "erasures_are_finished",
        client_id,
        "erasures",
        f"an erasure of {'a client' if whole else f'{rows.height:,} leads'}"
        f" was begun at {_day(rows['asked_at'].min())} and not proven",  # type: ignore[arg-type]
        0,
        rows.height,
        f"conversion-assets erase {name} --yes{'' if whole else ' --unfinished'}",
    )


def _compare_learned(
    client_id: str, learned: pl.DataFrame, rows: pl.DataFrame
) -> Iterator[Difference]:
    last = rows["asked_at"].max()
    before = learned.filter(pl.col("computed_at") < last)
    if before.height:
        yield Difference(
            "patterns_are_newer_than_erasures",
            client_id,
            "conversion_patterns",
            "leads were erased since the patterns were learned from them",
            _day(last),  # type: ignore[arg-type]
            _day(before["computed_at"].min()),  # type: ignore[arg-type]
            _learn(client_id),
        )


def _find_returned(engine: Engine, standing: pl.DataFrame, source: _Source) -> Iterator[Difference]:
    salt = str(standing["salt"][0])
    hashed = set(standing["client_hash"])
    touched = [c for c in source.every if hash_id(salt, c) in hashed]
    for client_id in sorted(touched):
        there = reconciliation.read_lead_ids(engine, client_id).filter("is_there")
        back = match_erased(standing, there)
        if back.height:
            yield Difference(
                "erased_leads_stay_away",
                client_id,
                "leads",
                f"{back.height:,} erased leads are there again",
                0,
                back.height,
                f"conversion-assets erase {_quoted(client_id)} --unfinished --yes",
            )


def list_mends(differences: Iterable[Difference]) -> list[str]:
    """Commands that mend everything, in the order to run them; clients to learn in one command.

    Example:
        >>> one = Difference("c", "a", "w", "m", None, None, "conversion-assets learn --client a")
        >>> two = Difference("c", "b", "w", "m", None, None, "conversion-assets learn --client b")
        >>> list_mends([one, two])
        ['conversion-assets learn --client a --client b']
    """
    mends = sorted({one.mend for one in differences}, key=lambda m: (_LEARN in m, m))
    learned = [mend.removeprefix(_LEARN) for mend in mends if mend.startswith(_LEARN)]
    others = [mend for mend in mends if not mend.startswith(_LEARN)]
    return [*others, *([_LEARN + "".join(learned)] if learned else [])]
