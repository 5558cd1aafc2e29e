"""The one way from rows to pattern documents, shared by assets, command line and notebooks.

Pure: feature frames, the moment `as_of` and the thresholds in; documents and outcomes out.
"""

import gc
import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl

from conversion_assets.detectors import how, what, when, who
from conversion_assets.detectors.cells import MOST_VALUES
from conversion_assets.detectors.documents import (
    EstimateTable,
    Header,
    build_headers,
)
from conversion_assets.detectors.ledger import CELL, assess_cells, borrow_from_pool
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.errors import InputError
from conversion_assets.domain.facts import Borrowing
from conversion_assets.domain.forecasts import CLAIMS, FORECASTS
from conversion_assets.domain.patterns import (
    SCHEMA_VERSION,
    AnyPattern,
    Claim,
    Outcome,
    WhoPattern,
)
from conversion_assets.domain.terms import (
    OutcomeKind,
    PatternType,
    Verdict,
)
from conversion_assets.evaluation.forward import (
    apply_forward_record,
    build_record,
    list_forward_claims,
)
from conversion_assets.features import FEATURE_VERSION
from conversion_assets.survey import (
    Survey,
    describe_error,
    isolate_failures,
    restrict,
    survey_clients,
)

DETECTION_VERSION = "6"
"""Moves when the same feature rows would give another document."""

CODE_VERSION = f"{SCHEMA_VERSION}/{DETECTION_VERSION}/{FEATURE_VERSION}"
"""What a stored pattern was computed by: document shapes, detection, features."""


@dataclass(frozen=True)
class Detection:
    """Result of one refresh.

    Attributes:
        documents: Documents to store by client and type: those found or none_found.
        outcomes: One per client and type, always, ordered by client and type.
        seconds: Wall seconds by stage.
        claims: What is claimed of leads and touches to come, columns of `CLAIMS`.
        borrowing: What clients borrowed from the pool; those that did not are not in it.
        lenders: Clients whose counts were in the pool, sorted.
    """

    documents: dict[tuple[str, PatternType], AnyPattern]
    outcomes: list[Outcome]
    seconds: dict[str, float]
    claims: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=CLAIMS))
    borrowing: dict[str, Borrowing] = field(default_factory=dict)
    lenders: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[Outcome]:
        """Outcomes of clients and types that failed."""
        return [o for o in self.outcomes if o.outcome == OutcomeKind.FAILED]


def detect_patterns(
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    clients: pl.DataFrame,
    *,
    as_of: datetime,
    config: LearningConfig | None = None,
    client_ids: Sequence[str] | None = None,
    earlier: Mapping[str, Sequence[tuple[PatternType, Claim]]] | None = None,
    forecasts: pl.DataFrame | None = None,
) -> Detection:
    """Learn the four patterns of every chosen client.

    Args:
        leads: `lead_features` of the chosen clients and of those that opted in to the pool.
        touches: `touch_features` of the same clients.
        clients: client_id and pool_opt_in (Boolean), one row per client.
        as_of: Aware time; nothing later counts.
        config: Thresholds; the defaults when not given.
        client_ids: Clients to learn; all in `clients` when not given.
        earlier: Claims of each client's last refresh before `as_of` (see `list_claims`), an empty
            list for one that claimed nothing. What was not claimed then must convince in spite
            of repeated looking. A client that is not in here is looked at for the first time.
        forecasts: Earlier claims about these clients with what became of them, as known at
            `as_of` (columns of `FORECASTS`). An act whose record is lost is a watch.

    Returns:
        Documents and outcomes. All four types are always computed, since they share one ledger.
        A client whose data break a detector is reported as failed and does not touch the others.

    Raises:
        InputError: `as_of` has no zone.
    """
    if as_of.tzinfo is None:
        raise InputError(f"as_of {as_of.isoformat()} has no time zone: give one, such as +00:00")
    started = time.perf_counter()
    settled = config or LearningConfig()
    chosen = set(clients["client_id"].to_list() if client_ids is None else client_ids)
    members = set(clients.filter(pl.col("pool_opt_in").fill_null(False))["client_id"].to_list())
    surveys, errors = survey_clients(
        leads, touches, sorted(chosen | members), as_of=as_of, config=settled
    )
    parts = list(
        conclude(
            surveys,
            errors,
            members=members,
            client_ids=chosen,
            as_of=as_of,
            config=settled,
            earlier=earlier,
            forecasts=forecasts,
        )
    )
    order = {kind: place for place, kind in enumerate(PatternType)}
    return Detection(
        documents={key: document for part in parts for key, document in part.documents.items()},
        outcomes=sorted(
            (one for part in parts for one in part.outcomes),
            key=lambda o: (o.client_id, order[o.pattern_type]),
        ),
        seconds={"detection_s": time.perf_counter() - started},
        claims=pl.concat(part.claims for part in parts),
        borrowing={client: told for part in parts for client, told in part.borrowing.items()},
        lenders=parts[0].lenders,
    )


def conclude(
    surveys: Sequence[Survey],
    errors: Mapping[str, str],
    *,
    members: Collection[str],
    client_ids: Collection[str],
    as_of: datetime,
    config: LearningConfig,
    earlier: Mapping[str, Sequence[tuple[PatternType, Claim]]] | None = None,
    forecasts: pl.DataFrame | None = None,
) -> Iterator[Detection]:
    """From surveys to documents: the second half of detection, a survey at a time.

    How the clients are spread over surveys changes nothing in their documents.

    Args:
        surveys: Of the chosen clients and of the members of the pool, each client in one.
        errors: Why a client could not be surveyed.
        members: Clients that opted in to the pool.
        client_ids: Clients to learn.
        as_of: The moment of the surveys.
        config: Thresholds of the surveys.
        earlier: See `detect_patterns`.
        forecasts: See `detect_patterns`.

    Yields:
        What the chosen clients of each survey came to, then of those that could not be surveyed.
    """
    borrowed = _share_pool(surveys, members, config)
    record = build_record(
        pl.DataFrame(schema=FORECASTS) if forecasts is None else forecasts, as_of, config
    )
    lenders = sorted({c for survey in surveys for c in survey.client_ids} & set(members))
    chosen = set(client_ids)
    for survey, prior in zip(surveys, borrowed, strict=True):
        whole = replace(survey, cells=survey.cells.with_columns(prior.get_columns()))
        told = _describe_borrowing(whole)

        def judge(group: Sequence[str], whole: Survey = whole) -> Detection:
            return _judge(restrict(whole, group), as_of, config, earlier or {}, record)

        wanted = [client for client in survey.client_ids if client in chosen]
        judged, broken = isolate_failures(judge, wanted)
        failed = {client: describe_error(error) for client, error in broken.items()}
        yield Detection(
            documents={key: one for part in judged for key, one in part.documents.items()},
            outcomes=[one for part in judged for one in part.outcomes] + _fail_all(failed),
            seconds={},
            claims=pl.concat([pl.DataFrame(schema=CLAIMS), *(part.claims for part in judged)]),
            borrowing={client: told[client] for client in wanted if client in told},
            lenders=lenders,
        )
    unsurveyed = {client: error for client, error in errors.items() if client in chosen}
    yield Detection({}, _fail_all(unsurveyed), seconds={}, lenders=lenders)


def _fail_all(errors: Mapping[str, str]) -> list[Outcome]:
    return [_fail(client, kind, error) for client, error in errors.items() for kind in PatternType]


def _fail(client_id: str, kind: PatternType, error: str) -> Outcome:
    return Outcome(
        client_id=client_id,
        pattern_type=kind,
        outcome=OutcomeKind.FAILED,
        reason="detection failed",
        error=error,
    )


def _share_pool(
    surveys: Sequence[Survey], members: Collection[str], config: LearningConfig
) -> list[pl.DataFrame]:
    """What the prior of each cell expects, over all surveys: `borrow_from_pool` for each."""
    if not surveys:
        return []
    lending = set(members)
    place = {c: n for n, c in enumerate(sorted(c for one in surveys for c in one.client_ids))}
    together = pl.concat(
        survey.cells.select(
            "dimension",
            "value",
            "k",
            "expected",
            "prior_lift",
            rank=pl.Series([place[c] for c in survey.client_ids], dtype=pl.Int64).gather(
                survey.cells["client"]
            ),
            is_member=pl.Series([c in lending for c in survey.client_ids], dtype=pl.Boolean).gather(
                survey.cells["client"]
            ),
        )
        for survey in surveys
    )
    # Sums over the pool add up in the order of the clients, however these were spread.
    order = together["rank"].arg_sort()
    borrowed = borrow_from_pool(together[order], config)[order.arg_sort()]
    ends = np.cumsum([survey.cells.height for survey in surveys])
    return [
        borrowed[int(end) - survey.cells.height : int(end)]
        for survey, end in zip(surveys, ends, strict=True)
    ]


def _describe_borrowing(survey: Survey) -> dict[str, Borrowing]:
    """What each client borrowed, by id."""
    told = (
        survey.cells.filter(
            pl.col("pool_contributors").is_not_null(), pl.col("frequency_rank") <= MOST_VALUES
        )
        .group_by("client")
        .agg(
            cells=pl.len(),
            least_contributors=pl.col("pool_contributors").min().cast(pl.Int64),
            largest_share=pl.col("pool_share").max(),
            excess=pl.col("pool_excess").max(),
        )
    )
    return {survey.client_ids[row.pop("client")]: Borrowing(**row) for row in told.to_dicts()}


@contextmanager
def _without_collections() -> Iterator[None]:
    """No search for reference cycles: documents are many small objects and hold none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _judge(
    survey: Survey,
    as_of: datetime,
    config: LearningConfig,
    earlier: Mapping[str, Sequence[tuple[PatternType, Claim]]],
    record: pl.DataFrame,
) -> Detection:
    """Estimates, verdicts and documents of a group of clients."""
    assessed = assess_cells(
        survey.cells.filter(pl.col("p_value").is_not_null()),
        survey.strata,
        config,
        _list_earlier(earlier, survey.client_ids),
    )
    estimates = apply_forward_record(assessed, record, survey.client_ids)
    headers = build_headers(
        survey.client_ids,
        survey.summary,
        estimates,
        survey.notes,
        window=(as_of - timedelta(days=config.window_days), as_of),
        config=config,
    )
    with _without_collections():
        documents, outcomes = _write_documents(survey, headers, estimates)
    forward = list_forward_claims(estimates, survey.summary, survey.client_ids)
    return Detection(documents, outcomes, seconds={}, claims=forward)


def _write_documents(
    survey: Survey, headers: Sequence[Header], estimates: pl.DataFrame
) -> tuple[dict[tuple[str, PatternType], AnyPattern], list[Outcome]]:
    builders = _prepare_builders(survey, EstimateTable(estimates))
    claims: dict[tuple[int, str], list[dict[str, str]]] = defaultdict(list)
    for client, pattern, dimension, value in (
        estimates.filter(pl.col("verdict") == Verdict.ACT.value).select(CELL).iter_rows()
    ):
        claims[(client, pattern)].append({"dimension": dimension, "value": value})
    documents: dict[tuple[str, PatternType], AnyPattern] = {}
    outcomes: list[Outcome] = []
    for header in headers:
        for kind in PatternType:
            document, outcome = _build(
                header,
                kind,
                survey.gates[header.client][kind],
                builders[kind],
                claims=claims[(header.client, kind.value)],
            )
            outcomes.append(outcome)
            if document is not None:
                documents[(header.client_id, kind)] = document
    return documents, outcomes


def _list_earlier(
    earlier: Mapping[str, Sequence[tuple[PatternType, Claim]]], client_ids: Sequence[str]
) -> pl.DataFrame:
    """Claims of an earlier refresh by client index; a client without any is a row of nulls."""
    nothing: tuple[None, None, None] = (None, None, None)
    rows = [
        (client, *cell)
        for client, client_id in enumerate(client_ids)
        if client_id in earlier
        for cell in [
            nothing,
            *((kind.value, c.dimension, c.value) for kind, c in earlier[client_id]),
        ]
    ]
    schema = {"client": pl.Int32, **dict.fromkeys(CELL[1:], pl.String)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def list_claims(documents: Iterable[AnyPattern]) -> list[tuple[PatternType, Claim]]:
    """Claims of one client's documents, as the next `detect_patterns` wants them."""
    return [(document.type, claim) for document in documents for claim in document.claims]


def _prepare_builders(
    survey: Survey, table: EstimateTable
) -> dict[PatternType, Callable[[Header], AnyPattern]]:
    """One function per type that assembles a client's document."""
    return {
        PatternType.WHO: lambda h: who.build_document(h, table, survey.evaluations[h.client]),
        PatternType.WHAT: lambda h: what.build_document(h, table),
        PatternType.WHEN: lambda h: when.build_document(h, table, survey.durations[h.client]),
        PatternType.HOW: lambda h: how.build_document(
            h, table, survey.transitions[h.client], survey.bookings[h.client]
        ),
    }


def _build(
    header: Header,
    kind: PatternType,
    gate: str | None,
    build: Callable[[Header], AnyPattern],
    *,
    claims: list[dict[str, str]],
) -> tuple[AnyPattern | None, Outcome]:
    """One document and its outcome; an error is that client's and type's alone."""
    if gate is not None:
        return None, Outcome(
            client_id=header.client_id,
            pattern_type=kind,
            outcome=OutcomeKind.NOT_ENOUGH_DATA,
            reason=gate,
        )
    try:
        document = build(replace(header, fields={**header.fields, "claims": claims}))
    except Exception as error:  # noqa: BLE001 - reported as the client's failure, never lost
        return None, _fail(header.client_id, kind, describe_error(error))
    learned = isinstance(document, WhoPattern) and document.score_evaluation.recommended
    if claims or learned:
        kind_of, reason = OutcomeKind.FOUND, f"{len(claims)} estimates to act on"
    else:
        kind_of, reason = OutcomeKind.NONE_FOUND, "enough data, nothing stands out from chance"
    return document, Outcome(
        client_id=header.client_id, pattern_type=kind, outcome=kind_of, reason=reason
    )


def compute_input_fingerprints(
    own: Mapping[str, str],
    members: Iterable[str],
    config: LearningConfig,
    earlier: Mapping[str, Sequence[tuple[PatternType, Claim]]] | None = None,
) -> dict[str, str]:
    """What each client's documents depend on beside the code: its rows, its pool, the thresholds.

    Args:
        own: Fingerprint of each client's feature rows.
        members: Clients that opted in to the pool.
        config: Thresholds.
        earlier: Claims of each client's last refresh, as `detect_patterns` was given them.

    Returns:
        Fingerprint by client. Clients outside the pool depend on nobody else.

    Example:
        >>> one = compute_input_fingerprints({"a": "1", "b": "2"}, [], LearningConfig())
        >>> two = compute_input_fingerprints({"a": "1", "b": "3"}, [], LearningConfig())
        >>> one["a"] == two["a"], one["b"] == two["b"]
        (True, False)
    """
    pool = sorted(set(members))
    settings = config.model_dump_json()
    together = _hash([settings, *(f"{m}\0{own.get(m, '')}" for m in pool)])
    belongs = set(pool)
    alone = _hash([settings])
    return {
        client: _hash(
            [
                together if client in belongs else alone,
                fingerprint,
                *_word_claims((earlier or {}).get(client)),
            ]
        )
        for client, fingerprint in own.items()
    }


def _word_claims(claims: Sequence[tuple[PatternType, Claim]] | None) -> list[str]:
    if claims is None:
        return []
    return ["earlier", *sorted(f"{kind}\0{c.dimension}\0{c.value}" for kind, c in claims)]


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\1".join(parts).encode()).hexdigest()[:32]
