"""Learn and store: from the columnar store to the pattern repository, a transaction per client."""

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import polars as pl
from sqlalchemy import Engine

from conversion_assets.compute.engine import ComputeEngine, LocalEngine
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.facts import LearningFacts
from conversion_assets.domain.patterns import AnyPattern, Outcome
from conversion_assets.domain.terms import OutcomeKind, PatternType
from conversion_assets.learning import (
    CODE_VERSION,
    Detection,
    compute_input_fingerprints,
    conclude,
)
from conversion_assets.refresh.forward import add_record, list_changes, read_record
from conversion_assets.refresh.surveys import ROWS_PER_SHARD, Findings, survey_shards
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.document_text import canonical_json
from conversion_assets.storage.forecasts import ForecastChanges
from conversion_assets.storage.patterns import ClientResults, PatternRepository, Refresh
from conversion_assets.storage.sources import read_clients

_FAILED_TO_STORE = "storing failed"


Describe = Callable[[AnyPattern, str], Mapping[str, Any]]


def say_nothing(document: AnyPattern, outcome: str) -> Mapping[str, Any]:
    """Keep nothing of a document."""
    return {}


@dataclass(frozen=True)
class StoredDocument:
    """A document that is in the repository now.

    The document itself is not kept: half a megabyte for each client.

    Attributes:
        client_id: Its client.
        pattern_type: Its type.
        outcome: found or none_found.
        content_hash: See `content_hash_of`.
        description: What the caller's `describe` made of it.
    """

    client_id: str
    pattern_type: PatternType
    outcome: str
    content_hash: str
    description: Mapping[str, Any]


@dataclass(frozen=True)
class PatternRefresh:
    """What a refresh came to.

    Attributes:
        stored: Documents that were stored: found, or none_found.
        outcomes: One per chosen client and chosen type, failures of storing among them.
        seconds: Wall seconds of `detection_s` and `storage_s`.
    """

    stored: list[StoredDocument]
    outcomes: list[Outcome]
    seconds: dict[str, float]

    @property
    def failures(self) -> list[Outcome]:
        """Outcomes of clients and types that failed."""
        return [one for one in self.outcomes if one.outcome == OutcomeKind.FAILED]


def refresh_patterns(
    engine: Engine,
    store: FeatureStore,
    *,
    client_ids: Collection[str],
    kinds: Collection[PatternType],
    as_of: datetime,
    run_id: str,
    config: LearningConfig,
    now: Callable[[], datetime],
    compute: ComputeEngine | None = None,
    describe: Describe = say_nothing,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> PatternRefresh:
    """Learn the chosen clients together and store each of them by itself.

    All chosen clients and the members of the pool are surveyed, shard by shard; then each is
    concluded with the counts of all at hand. What is stored for one client does not wait for
    another: a process that is killed leaves whole clients, and the same refresh again leaves the
    state of an undisturbed one.

    Args:
        engine: System of record.
        store: Features; those of the chosen clients should be fresh.
        client_ids: Clients to learn and store.
        kinds: Pattern types to store; all four are computed, since they share one ledger.
        as_of: Aware time; nothing later counts.
        run_id: Kept beside what is stored.
        config: Thresholds.
        now: Clock, for the time of computation.
        compute: Where shards are surveyed; this process when not given. It changes no byte.
        describe: Makes of a stored document and its outcome what is kept of it in the report.
        rows_per_shard: Leads and touches in memory at once; it changes no byte either.

    Raises:
        UnreachableError: the database or the engine cannot be reached before anything was stored.
        InputError: the store cannot be read.
    """
    started = time.perf_counter()
    repository = PatternRepository(engine)
    clients = read_pool(engine)
    members = set(clients.filter("pool_opt_in")["client_id"].to_list())
    known = set(clients["client_id"].to_list())
    wanted = sorted(set(client_ids) & known)
    earlier = repository.claims_before(wanted, as_of)
    record = read_record(engine, wanted, as_of=as_of, config=config)
    found = survey_shards(
        store,
        compute or LocalEngine(),
        client_ids=members | set(wanted),
        learned=wanted,
        forecasts=record.known,
        as_of=as_of,
        config=config,
        rows_per_shard=rows_per_shard,
    )
    record = record.add_grades(found.graded)
    own = {client: found.fingerprints.get(client, "") for client in members | set(wanted)}
    prints = add_record(compute_input_fingerprints(own, members, config, earlier), record)
    header = Refresh(
        as_of=as_of,
        computed_at=now(),
        run_id=run_id,
        code_version=CODE_VERSION,
        validity_days=config.validity_days,
        settings=config.model_dump_json(),
    )
    detections = conclude(
        found.surveys,
        found.errors,
        members=members,
        client_ids=wanted,
        as_of=as_of,
        config=config,
        earlier=earlier,
        forecasts=record.known,
    )
    refresh = PatternRefresh([], [], {"detection_s": 0.0, "storage_s": 0.0})
    lent = False
    for detection in detections:
        if detection.borrowing and not lent:
            header = replace(header, pool_id=repository.store_pool(detection.lenders))
            lent = True
        batch = _split_by_client(
            detection, kinds, prints, list_changes(detection, record, kinds, as_of), found
        )
        storing = time.perf_counter()
        done = _store_batch(repository, batch, header, found.ungraded)
        refresh.seconds["storage_s"] += time.perf_counter() - storing
        refresh.outcomes.extend(one for results in done for one in results.outcomes)
        refresh.stored.extend(one for results in done for one in _list_stored(results, describe))
    if not lent:
        repository.store_pool([])
    strangers = {client: "there is no such client" for client in set(client_ids) - known}
    refresh.outcomes.extend(_fail(strangers, kinds))
    refresh.stored.sort(key=lambda one: one.client_id)
    refresh.outcomes.sort(key=lambda one: one.client_id)
    refresh.seconds["detection_s"] = time.perf_counter() - started - refresh.seconds["storage_s"]
    return refresh


def _split_by_client(
    detection: Detection,
    kinds: Collection[PatternType],
    fingerprints: Mapping[str, str],
    forecasts: Mapping[str, ForecastChanges],
    found: Findings,
) -> list[ClientResults]:
    outcomes: dict[str, list[Outcome]] = {}
    for one in detection.outcomes:
        if one.pattern_type in kinds:
            outcomes.setdefault(one.client_id, []).append(one)
    return [
        ClientResults(
            client_id=client,
            documents={
                kind: detection.documents[client, kind]
                for kind in kinds
                if (client, kind) in detection.documents
            },
            outcomes=stated,
            input_fingerprint=fingerprints[client],
            forecasts=forecasts.get(client, ForecastChanges()),
            facts=_state_facts(client, detection, found),
        )
        for client, stated in outcomes.items()
    ]


def _state_facts(client: str, detection: Detection, found: Findings) -> LearningFacts | None:
    """What the check of health must know besides; None where nobody could look at the rows."""
    if client not in found.drifts:
        return None
    drift, error = found.drifts[client]
    return LearningFacts(drift=drift, drift_error=error, borrowing=detection.borrowing.get(client))


def _store_batch(
    repository: PatternRepository,
    batch: Sequence[ClientResults],
    header: Refresh,
    ungraded: Mapping[str, str],
) -> list[ClientResults]:
    """Store the clients of one survey; return what became of each."""
    # Without its record a client's verdicts would be too kind: it fails, and what is stored stays.
    judged = [
        _state_failure(one, ungraded[one.client_id]) if one.client_id in ungraded else one
        for one in batch
    ]
    errors = _store_clients(repository, judged, header)
    return [
        _state_failure(one, errors[one.client_id]) if one.client_id in errors else one
        for one in judged
    ]


def _store_clients(
    repository: PatternRepository, batch: Sequence[ClientResults], header: Refresh
) -> dict[str, str]:
    """Store every client; where one cannot be stored, record at least that it failed."""
    errors = repository.store_clients(batch, header).errors
    failed = [
        _state_failure(results, errors[results.client_id])
        for results in batch
        if results.client_id in errors
    ]
    repository.store_clients(failed, header)
    return errors


def _state_failure(results: ClientResults, error: str) -> ClientResults:
    """Nothing to store but that it failed."""
    kinds = [one.pattern_type for one in results.outcomes]
    return ClientResults(
        client_id=results.client_id,
        documents={},
        outcomes=_fail({results.client_id: error}, kinds),
        input_fingerprint=results.input_fingerprint,
    )


def _fail(errors: Mapping[str, str], kinds: Collection[PatternType]) -> list[Outcome]:
    return [
        Outcome(
            client_id=client,
            pattern_type=kind,
            outcome=OutcomeKind.FAILED,
            reason=_FAILED_TO_STORE,
            error=error,
        )
        for client, error in sorted(errors.items())
        for kind in kinds
    ]


def content_hash_of(text: str) -> str:
    """Hash of a document's canonical text, as each materialization carries it.

    Example:
        >>> content_hash_of("{}")
        '44136fa355b3678a'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _list_stored(results: ClientResults, describe: Describe) -> list[StoredDocument]:
    outcomes = {one.pattern_type: str(one.outcome) for one in results.outcomes}
    return [
        StoredDocument(
            client_id=results.client_id,
            pattern_type=kind,
            outcome=outcomes[kind],
            content_hash=content_hash_of(canonical_json(document)),
            description=describe(document, outcomes[kind]),
        )
        for kind, document in results.documents.items()
    ]


def read_pool(engine: Engine) -> pl.DataFrame:
    """Every client with whether its counts may be borrowed; a deleted client lends nothing."""
    return read_clients(engine).select(
        client_id="id",
        pool_opt_in=pl.col("pool_opt_in").fill_null(False) & pl.col("deleted_at").is_null(),
    )
