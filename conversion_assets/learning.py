"""The one way from rows to pattern documents, shared by assets, command line and notebooks.

Pure: feature frames, the moment `as_of` and the thresholds in; documents and outcomes out.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

import polars as pl

from conversion_assets.detectors import how, what, when, who
from conversion_assets.detectors.cells import MOST_VALUES, count_dimension
from conversion_assets.detectors.dimensions import list_dimensions
from conversion_assets.detectors.documents import (
    EstimateTable,
    Header,
    build_headers,
    compute_confidence,
)
from conversion_assets.detectors.ledger import CELL, assess_cells, borrow_from_pool
from conversion_assets.detectors.population import Population, select_population
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
    SCORE_COMPONENTS,
    NoteKind,
    OutcomeKind,
    PatternType,
    Verdict,
)
from conversion_assets.evaluation.forward import (
    apply_forward_record,
    build_record,
    list_forward_claims,
)
from conversion_assets.evaluation.score_weights import evaluate_score_weights
from conversion_assets.features import FEATURE_VERSION

DETECTION_VERSION = "3"
"""Moves when the same feature rows would give another document."""

CODE_VERSION = f"{SCHEMA_VERSION}/{DETECTION_VERSION}/{FEATURE_VERSION}"
"""What a stored pattern was computed by: document shapes, detection, features."""

Result = TypeVar("Result")

PROBES = 16
"""Clients tried one by one before halving starts. If all of them fail alike, the fault is not in
one client's data: a fault of one in ten clients looks like that with a chance of 1e-16."""

# Content, time and channels can only be judged where a touch stands before the conversion.
TOUCH_TYPES = {
    PatternType.WHAT: (pl.col("has_content"), "with content"),
    PatternType.WHEN: (pl.col("local_hour").is_not_null(), "with a local time"),
    PatternType.HOW: (pl.lit(True), ""),
}


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


@dataclass(frozen=True)
class _Counted:
    """Rows and cells of a group of clients; `client` in both is the index into its ids."""

    population: Population
    cells: pl.DataFrame


@dataclass(frozen=True)
class _Judged:
    """What a group of clients came to."""

    documents: dict[tuple[str, PatternType], AnyPattern]
    outcomes: list[Outcome]
    claims: pl.DataFrame


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

    def count(group: Sequence[str]) -> _Counted:
        return _count(leads, touches, group, as_of, settled)

    counted, errors = isolate_failures(count, sorted(chosen | members))
    shared, borrowing = _share_pool(counted, members, settled)
    record = build_record(
        pl.DataFrame(schema=FORECASTS) if forecasts is None else forecasts, as_of, settled
    )
    documents: dict[tuple[str, PatternType], AnyPattern] = {}
    outcomes: list[Outcome] = []
    claims = [pl.DataFrame(schema=CLAIMS)]
    for part in shared:

        def judge(group: Sequence[str], part: _Counted = part) -> _Judged:
            return _judge(_restrict(part, group), settled, earlier or {}, record)

        wanted = [c for c in part.population.client_ids if c in chosen]
        judged, broken = isolate_failures(judge, wanted)
        errors |= broken
        for one in judged:
            documents |= one.documents
            outcomes += one.outcomes
            claims.append(one.claims)
    outcomes += [
        _fail(client, kind, error)
        for client, error in errors.items()
        if client in chosen
        for kind in PatternType
    ]
    order = {kind: place for place, kind in enumerate(PatternType)}
    return Detection(
        documents=documents,
        outcomes=sorted(outcomes, key=lambda o: (o.client_id, order[o.pattern_type])),
        seconds={"detection_s": time.perf_counter() - started},
        claims=pl.concat(claims),
        borrowing={client: told for client, told in borrowing.items() if client in chosen},
        lenders=sorted(members & {c for part in counted for c in part.population.client_ids}),
    )


def isolate_failures(
    work: Callable[[Sequence[str]], Result], clients: Sequence[str]
) -> tuple[list[Result], dict[str, Exception]]:
    """Do the work for all clients at once; where it fails, halve until the culprits stand alone.

    An error that clients from all over the list meet alike is everybody's: halving would find
    nobody who is spared, in twice as many attempts as there are clients.

    Returns:
        Results of the groups that succeeded, and the error of each client that did not.
    """
    if not clients:
        return [], {}
    done, error = _attempt(work, clients)
    if error is None:
        return done, {}
    if len(clients) > PROBES and _is_everybodys(work, clients, error):
        return [], dict.fromkeys(clients, error)
    return _halve(work, clients, error)


def _attempt(
    work: Callable[[Sequence[str]], Result], clients: Sequence[str]
) -> tuple[list[Result], Exception | None]:
    try:
        return [work(clients)], None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a client's data break is that client's
        return [], error


def _is_everybodys(
    work: Callable[[Sequence[str]], Result], clients: Sequence[str], error: Exception
) -> bool:
    """Whether clients spread over the list all fail with this error when they stand alone."""
    places = [number * len(clients) // PROBES for number in range(PROBES)]
    return all(
        alone is not None and (type(alone), str(alone)) == (type(error), str(error))
        for alone in (_attempt(work, [clients[place]])[1] for place in places)
    )


def _halve(
    work: Callable[[Sequence[str]], Result], clients: Sequence[str], error: Exception
) -> tuple[list[Result], dict[str, Exception]]:
    if len(clients) == 1:
        return [], {clients[0]: error}
    middle = len(clients) // 2
    results: list[Result] = []
    errors: dict[str, Exception] = {}
    for half in (clients[:middle], clients[middle:]):
        done, broken = _attempt(work, half)
        if broken is not None:
            done, failed = _halve(work, half, broken)
            errors |= failed
        results += done
    return results, errors


def _fail(client_id: str, kind: PatternType, error: Exception) -> Outcome:
    line = " ".join(str(error).split()) or type(error).__name__
    return Outcome(
        client_id=client_id,
        pattern_type=kind,
        outcome=OutcomeKind.FAILED,
        reason="detection failed",
        error=f"{type(error).__name__}: {line}"[:500],
    )


def _count(
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    group: Sequence[str],
    as_of: datetime,
    config: LearningConfig,
) -> _Counted:
    """Count all cells of all four detectors for a group of clients."""
    population = how.discover_sequences(select_population(leads, touches, group, as_of, config))
    parts = []
    for dimension in list_dimensions(population.touches.columns):
        cells = count_dimension(population, dimension)
        near = (
            when.compute_neighbour_lift(cells, dimension)
            if dimension.neighbours
            else pl.Series("prior_lift", [None] * cells.height, dtype=pl.Float64)
        )
        parts.append(cells.with_columns(near))
    return _Counted(population, pl.concat(parts))


def _share_pool(
    counted: Sequence[_Counted], members: set[str], config: LearningConfig
) -> tuple[list[_Counted], dict[str, Borrowing]]:
    """Give each cell the lift that the pool expects of it, over all groups."""
    tagged = [
        part.cells.with_columns(
            part=pl.lit(number, pl.Int32),
            is_member=pl.col("client").replace_strict(
                range(len(part.population.client_ids)),
                [c in members for c in part.population.client_ids],
                return_dtype=pl.Boolean,
            ),
        )
        for number, part in enumerate(counted)
    ]
    if not tagged:
        return [], {}
    together = borrow_from_pool(pl.concat(tagged), config)
    helpers = ("part", "is_member", "pool_contributors", "pool_share", "pool_excess")
    parts = [
        replace(part, cells=together.filter(pl.col("part") == number).drop(helpers))
        for number, part in enumerate(counted)
    ]
    return parts, _describe_borrowing(together, [part.population.client_ids for part in counted])


def _describe_borrowing(
    cells: pl.DataFrame, client_ids: Sequence[Sequence[str]]
) -> dict[str, Borrowing]:
    """What each client borrowed, by id; `client_ids` of each part."""
    told = (
        cells.filter(
            pl.col("pool_contributors").is_not_null(), pl.col("frequency_rank") <= MOST_VALUES
        )
        .group_by("part", "client")
        .agg(
            cells=pl.len(),
            least_contributors=pl.col("pool_contributors").min().cast(pl.Int64),
            largest_share=pl.col("pool_share").max(),
            excess=pl.col("pool_excess").max(),
        )
    )
    return {
        client_ids[row.pop("part")][row.pop("client")]: Borrowing(**row) for row in told.to_dicts()
    }


def _restrict(part: _Counted, group: Sequence[str]) -> _Counted:
    """The same counts for some of the clients, numbered anew."""
    population = part.population
    if list(group) == population.client_ids:
        return part
    old = {client: place for place, client in enumerate(population.client_ids)}
    number = pl.DataFrame(
        {"client": [old[c] for c in group], "new": range(len(group))},
        schema={"client": pl.Int32, "new": pl.Int32},
    )

    def cut(frame: pl.DataFrame) -> pl.DataFrame:
        joined = frame.join(number, on="client", maintain_order="left")
        return joined.with_columns(client="new").drop("new")

    return _Counted(
        replace(
            population,
            client_ids=list(group),
            leads=cut(population.leads),
            touches=cut(population.touches),
            sequences=cut(population.sequences),
            followed=cut(population.followed),
            summary=cut(population.summary).sort("client"),
            notes=cut(population.notes),
        ),
        cut(part.cells),
    )


def _judge(
    part: _Counted,
    config: LearningConfig,
    earlier: Mapping[str, Sequence[tuple[PatternType, Claim]]],
    record: pl.DataFrame,
) -> _Judged:
    """Estimates, verdicts and documents of a group of clients."""
    population = part.population
    gates = [_find_gate(population, kind, config) for kind in PatternType]
    open_clients = pl.Series([c for c in range(len(population.client_ids)) if gates[0][c] is None])
    cells = part.cells.filter(
        pl.col("client").is_in(open_clients.cast(pl.Int32).implode()),
        pl.col("frequency_rank") <= MOST_VALUES,
    )
    assessed = assess_cells(
        cells,
        population,
        list_dimensions(population.touches.columns),
        config,
        _list_earlier(earlier, population.client_ids),
    )
    estimates = apply_forward_record(assessed, record, population.client_ids)
    headers = build_headers(
        population.client_ids,
        population.summary,
        estimates,
        pl.concat([population.notes, _note_rare_values(part.cells)]),
        window=(population.as_of - timedelta(days=config.window_days), population.as_of),
        config=config,
    )
    builders = _prepare_builders(population, EstimateTable(estimates), config)
    claims: dict[tuple[int, str], list[dict[str, str]]] = defaultdict(list)
    for client, pattern, dimension, value in (
        estimates.filter(pl.col("verdict") == Verdict.ACT.value).select(CELL).iter_rows()
    ):
        claims[(client, pattern)].append({"dimension": dimension, "value": value})
    documents: dict[tuple[str, PatternType], AnyPattern] = {}
    outcomes: list[Outcome] = []
    for header in headers:
        for kind, gate in zip(PatternType, gates, strict=True):
            document, outcome = _build(
                header,
                kind,
                gate[header.client],
                builders[kind],
                claims=claims[(header.client, kind.value)],
            )
            outcomes.append(outcome)
            if document is not None:
                documents[(header.client_id, kind)] = document
    return _Judged(documents, outcomes, list_forward_claims(estimates, population))


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
    population: Population, table: EstimateTable, config: LearningConfig
) -> dict[PatternType, Callable[[Header], AnyPattern]]:
    """One function per type that assembles a client's document."""
    names = pl.DataFrame(
        {"client": range(len(population.client_ids)), "client_id": population.client_ids},
        schema={"client": pl.Int32, "client_id": pl.String},
    )
    components = population.leads.select(
        "client", "lead_id", "created_at", *SCORE_COMPONENTS, converted="is_converted"
    ).join(names, on="client")
    evaluations = {
        row["client_id"]: row
        for row in evaluate_score_weights(components.drop("client"), config).to_dicts()
    }
    durations = when.summarize_time_to_conversion(population)
    transitions = how.describe_transitions(population)
    bookings = how.describe_booking_channels(population)
    return {
        PatternType.WHO: lambda h: who.build_document(h, table, evaluations.get(h.client_id)),
        PatternType.WHAT: lambda h: what.build_document(h, table),
        PatternType.WHEN: lambda h: when.build_document(h, table, durations[h.client]),
        PatternType.HOW: lambda h: how.build_document(
            h, table, transitions[h.client], bookings.get(h.client)
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
        return None, _fail(header.client_id, kind, error)
    learned = isinstance(document, WhoPattern) and document.score_evaluation.recommended
    if claims or learned:
        kind_of, reason = OutcomeKind.FOUND, f"{len(claims)} estimates to act on"
    else:
        kind_of, reason = OutcomeKind.NONE_FOUND, "enough data, nothing stands out from chance"
    return document, Outcome(
        client_id=header.client_id, pattern_type=kind, outcome=kind_of, reason=reason
    )


def _find_gate(
    population: Population, kind: PatternType, config: LearningConfig
) -> list[str | None]:
    """Why a client has too little data for a type, None where it has enough; by client index."""
    gates = [_word_gate(n, k, config) for n, k in population.summary.select("n", "k").iter_rows()]
    if kind not in TOUCH_TYPES:
        return gates
    counts_in, words = TOUCH_TYPES[kind]
    counted = dict(
        population.touches.filter(counts_in & pl.col("is_outcome"))
        .group_by("client")
        .len()
        .iter_rows()
    )
    least = config.minimum_conversions
    return [
        gate
        if gate is not None or counted.get(client, 0) >= least
        else f"{counted.get(client, 0)} converting touches {words}".rstrip()
        + f", {least} are needed"
        for client, gate in enumerate(gates)
    ]


def _word_gate(n: int, k: int, config: LearningConfig) -> str | None:
    if n < config.minimum_resolved:
        return f"{n} resolved leads, {config.minimum_resolved} are needed"
    if k < config.minimum_conversions:
        return f"{k} conversions, {config.minimum_conversions} are needed"
    confidence = compute_confidence(n, k)
    if confidence < config.minimum_confidence:
        return f"confidence {confidence:.2f} ({k} of {n}), {config.minimum_confidence} is needed"
    return None


def _note_rare_values(cells: pl.DataFrame) -> pl.DataFrame:
    """How many rows stand in values beyond the most frequent ones of a dimension."""
    is_rare = pl.col("frequency_rank") > MOST_VALUES
    return (
        cells.group_by("client", "dimension")
        .agg(rows=pl.col("n").filter(is_rare).sum(), of=pl.col("n").sum())
        .filter(pl.col("rows") > 0)
        .select(
            "client",
            "rows",
            "of",
            kind=pl.lit(str(NoteKind.RARE_VALUE)),
            reason=pl.format(
                "value beyond the {} most frequent of {}", pl.lit(MOST_VALUES), "dimension"
            ),
        )
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
