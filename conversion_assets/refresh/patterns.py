"""Learn and store: from the columnar store to the pattern repository, a transaction per client."""

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl
from sqlalchemy import Engine

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.facts import Drift, LearningFacts
from conversion_assets.domain.patterns import AnyPattern, Outcome
from conversion_assets.domain.terms import OutcomeKind, PatternType
from conversion_assets.evaluation.drift import find_drift
from conversion_assets.learning import (
    CODE_VERSION,
    Detection,
    compute_input_fingerprints,
    detect_patterns,
)
from conversion_assets.refresh.forward import add_record, list_changes, look_back
from conversion_assets.storage.columnar import FeatureStore
from conversion_assets.storage.forecasts import ForecastChanges
from conversion_assets.storage.patterns import (
    ClientResults,
    PatternRepository,
    Refresh,
    canonical_json,
)
from conversion_assets.storage.sources import read_clients
from conversion_assets.survey import isolate_failures

_FAILED_TO_STORE = "storing failed"

UNUSED = ("activity_id", "lead_created_at", "previous_channel", "adds_channel", "sequence_id")
"""Columns of touches that no detector reads: a quarter of the memory of a large client."""

RECENT_DAYS = 84
"""Days that are "now" when they are compared with the learning window: twelve weeks, since the
outcomes of leads take weeks to be known."""


@dataclass(frozen=True)
class StoredDocument:
    """A document that is in the repository now."""

    client_id: str
    document: AnyPattern
    outcome: str
    content_hash: str


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
) -> PatternRefresh:
    """Learn the chosen clients together and store each of them by itself.

    Detection sees all chosen clients and the members of the pool at once. What is stored for one
    client does not wait for another: a process that is killed leaves whole clients, and the same
    refresh again leaves the state of an undisturbed one.

    Args:
        engine: System of record.
        store: Features; those of the chosen clients should be fresh.
        client_ids: Clients to learn and store.
        kinds: Pattern types to store; all four are computed, since they share one ledger.
        as_of: Aware time; nothing later counts.
        run_id: Kept beside what is stored.
        config: Thresholds.
        now: Clock, for the time of computation.

    Raises:
        UnreachableError: the database cannot be reached before anything was stored.
        InputError: the store cannot be read.
    """
    started = time.perf_counter()
    repository = PatternRepository(engine)
    clients = read_pool(engine)
    members = set(clients.filter("pool_opt_in")["client_id"].to_list())
    known = set(clients["client_id"].to_list())
    wanted = sorted(set(client_ids) & known)
    leads, touches, manifest = store.read_features(sorted(members | set(wanted)), without=UNUSED)
    earlier = repository.claims_before(wanted, as_of)
    forward = look_back(engine, leads, touches, wanted, as_of=as_of, config=config)
    detection = detect_patterns(
        leads,
        touches,
        clients,
        as_of=as_of,
        config=config,
        client_ids=wanted,
        earlier=earlier,
        forecasts=forward.known,
    )
    own = {
        client: manifest.clients[client].fingerprint if client in manifest.clients else ""
        for client in members | set(wanted)
    }
    fingerprints = compute_input_fingerprints(own, members, config, earlier)
    batch = _split_by_client(
        detection,
        kinds,
        add_record(fingerprints, forward),
        list_changes(detection, forward, kinds, as_of),
        gather_facts(detection, leads, touches.clear(), wanted, as_of=as_of, config=config),
    )
    detected = time.perf_counter()
    header = Refresh(
        as_of=as_of,
        computed_at=now(),
        run_id=run_id,
        code_version=CODE_VERSION,
        validity_days=config.validity_days,
        pool_id=repository.store_pool(detection.lenders if detection.borrowing else []),
    )
    # Without its record a client's verdicts would be too kind: it fails, and what is stored stays.
    ungraded = {
        client: f"grading of forecasts: {' '.join(str(error).split())}"
        for client, error in forward.errors.items()
    }
    batch = [
        _state_failure(one, ungraded[one.client_id]) if one.client_id in ungraded else one
        for one in batch
    ]
    errors = _store_clients(repository, batch, header)
    errors |= ungraded
    errors |= {client: "there is no such client" for client in set(client_ids) - known}
    outcomes = [o for results in batch for o in results.outcomes if o.client_id not in errors]
    return PatternRefresh(
        stored=[
            document
            for results in batch
            if results.client_id not in errors
            for document in _list_stored(results)
        ],
        outcomes=outcomes + _fail(errors, kinds),
        seconds={"detection_s": detected - started, "storage_s": time.perf_counter() - detected},
    )


def _split_by_client(
    detection: Detection,
    kinds: Collection[PatternType],
    fingerprints: Mapping[str, str],
    forecasts: Mapping[str, ForecastChanges],
    facts: Mapping[str, LearningFacts],
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
            facts=facts.get(client),
        )
        for client, stated in outcomes.items()
    ]


def gather_facts(
    detection: Detection,
    leads: pl.DataFrame,
    no_touches: pl.DataFrame,
    client_ids: Sequence[str],
    *,
    as_of: datetime,
    config: LearningConfig,
) -> dict[str, LearningFacts]:
    """What the check of health must know of each client besides its documents.

    Only leads are looked at for drift (`no_touches` is an empty `touch_features`). Touches are
    what the client chooses to send: their mix moves when somebody follows a pattern, and whether
    they still convert as learned is graded by the forward record.
    """
    recent = as_of - timedelta(days=RECENT_DAYS)
    window = timedelta(days=max(config.window_days, 2 * RECENT_DAYS))

    def compare(group: Sequence[str]) -> pl.DataFrame:
        return find_drift(
            leads,
            no_touches,
            group,
            old=(as_of - window, recent),
            new=(recent, as_of),
            as_of=as_of,
            config=config,
        )

    parts, errors = isolate_failures(compare, sorted(client_ids))
    drifted: dict[str, list[Drift]] = {}
    for part in parts:
        for client_id, drift in _list_drift(part):
            drifted.setdefault(client_id, []).append(drift)
    return {
        client_id: LearningFacts(
            drift=tuple(drifted.get(client_id, ())),
            drift_error=" ".join(str(errors[client_id]).split()) if client_id in errors else None,
            borrowing=detection.borrowing.get(client_id),
        )
        for client_id in client_ids
    }


def _list_drift(found: pl.DataFrame) -> Iterator[tuple[str, Drift]]:
    names = ("question", "dimension", "n_old", "n_new", "change", "p_value", "tests")
    tests = pl.col("is_tested").sum().over("client_id", "question")
    drifted = found.with_columns(is_tested=pl.col("p_value") < 1.0).with_columns(tests=tests)
    for client_id, *values in drifted.filter("is_drift").select("client_id", *names).iter_rows():
        yield client_id, Drift(**dict(zip(names, values, strict=True)))


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


def _list_stored(results: ClientResults) -> list[StoredDocument]:
    outcomes = {one.pattern_type: str(one.outcome) for one in results.outcomes}
    return [
        StoredDocument(
            client_id=results.client_id,
            document=document,
            outcome=outcomes[kind],
            content_hash=content_hash_of(canonical_json(document)),
        )
        for kind, document in results.documents.items()
    ]


def read_pool(engine: Engine) -> pl.DataFrame:
    """Every client with whether its counts may be borrowed; a deleted client lends nothing."""
    return read_clients(engine).select(
        client_id="id",
        pool_opt_in=pl.col("pool_opt_in").fill_null(False) & pl.col("deleted_at").is_null(),
    )
