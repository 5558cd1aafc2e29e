"""What a group of clients tells once its rows are dropped: the first half of detection.

Counting needs the rows of leads and touches and nothing of other clients. Everything after it (the
pool, estimates, verdicts, documents) needs the counts alone. So groups of clients may be surveyed
one after the other, or on different machines, and no more than one group's rows are in memory.

Pure: feature frames, the moment `as_of` and the thresholds in; a survey out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import polars as pl

from conversion_assets.detectors import how, when
from conversion_assets.detectors.cells import MOST_VALUES, Dimension, count_dimension
from conversion_assets.detectors.dimensions import list_dimensions
from conversion_assets.detectors.documents import compute_confidence
from conversion_assets.detectors.ledger import CELL, compute_p_values
from conversion_assets.detectors.population import Population, select_population
from conversion_assets.detectors.reversals import Strata, count_strata
from conversion_assets.detectors.threads import run_together
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.terms import SCORE_COMPONENTS, NoteKind, PatternType
from conversion_assets.evaluation.score_weights import evaluate_score_weights

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
class Survey:
    """Counts of a group of clients, without a row of theirs; `client` is the place in the ids.

    Attributes:
        client_ids: Ids in the order of their rows.
        cells: Every counted cell, sorted by `CELL`: columns of `count_dimension`; prior_lift, what
            neighbouring cells say; only_winners (of its dimension); is_confirmed (by both halves,
            where these are asked); cell, its number; and of those that may stand in a document the
            columns of `compute_p_values`, null in the others.
        strata: What is known of the promising cells within strata.
        summary: One row per client: n, k, maturity_days, touch_maturity_days.
        notes: client, kind, reason, rows, of: what was left out and why.
        gates: Why a client has too little data for a type, None where it has enough.
        evaluations: Of the score weights, a row of `evaluate_score_weights` each; None without
            score components.
        durations: Days to conversion of each client.
        transitions: Steps between channels of each client.
        bookings: Channels of the converting touches of each client; None without any.
    """

    client_ids: list[str]
    cells: pl.DataFrame
    strata: Strata
    summary: pl.DataFrame
    notes: pl.DataFrame
    gates: list[dict[PatternType, str | None]]
    evaluations: list[dict[str, Any] | None]
    durations: list[dict[str, Any]]
    transitions: list[dict[str, Any]]
    bookings: list[dict[str, Any] | None]


def survey_clients(
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    client_ids: Sequence[str],
    *,
    as_of: datetime,
    config: LearningConfig,
) -> tuple[list[Survey], dict[str, str]]:
    """Count a group of clients; whose data break it is left out and named.

    Args:
        leads: `lead_features` of these clients at least.
        touches: `touch_features` of the same clients.
        client_ids: Clients to survey, also such as have no rows.
        as_of: Aware time; nothing later counts.
        config: Thresholds.

    Returns:
        Surveys of the clients that worked, one unless some had to be left out, and the error of
        each that did not.
    """
    return survey_rows([leads, touches], client_ids, as_of=as_of, config=config)


def survey_rows(
    rows: list[pl.DataFrame],
    client_ids: Sequence[str],
    *,
    as_of: datetime,
    config: LearningConfig,
) -> tuple[list[Survey], dict[str, str]]:
    """`survey_clients` for who keeps no other hold on the rows.

    Args:
        rows: `lead_features` and `touch_features`; emptied as soon as nobody can need them again,
            which is early for a single client, the only one that can be large. The rows that count
            are a copy, and two copies of two million touches take half a gigabyte more than one.
        client_ids: See `survey_clients`, also for the rest.
        as_of: Aware time.
        config: Thresholds.
    """
    chosen = sorted(set(client_ids))

    def take(group: Sequence[str]) -> Survey:
        leads, touches = rows
        population = select_population(leads, touches, group, as_of, config)
        del leads, touches
        if len(chosen) == 1:
            rows.clear()
        return take_survey(population, config)

    surveys, errors = isolate_failures(take, chosen)
    return surveys, {client: describe_error(error) for client, error in errors.items()}


def take_survey(selected: Population, config: LearningConfig) -> Survey:
    """Count all cells of all four detectors for a group of clients; fails when one of them does."""
    population = how.discover_sequences(selected)
    dimensions = list_dimensions(population.touches.columns)
    # The longest first: the others fill the cores beside it.
    parts: list[Callable[[], Any]] = [
        lambda: _evaluate_scores(population, config),
        lambda: how.describe_transitions(population),
        lambda: when.summarize_time_to_conversion(population),
        *(partial(_count_dimension, population, dimension) for dimension in dimensions),
    ]
    evaluations, transitions, durations, *cells = run_together(parts)
    gates = _find_gates(population, config)
    counted = pl.concat(cells).sort(CELL)
    counted = counted.with_columns(cell=pl.int_range(counted.height, dtype=pl.Int64))
    is_open = pl.Series([gate[PatternType.WHO] is None for gate in gates], dtype=pl.Boolean)
    judged = compute_p_values(
        counted.filter(
            is_open.gather(counted["client"]) & (pl.col("frequency_rank") <= MOST_VALUES)
        )
    )
    promising = judged.filter("is_promising").select("cell", *CELL)
    tests = judged.select("cell", "upper_p", "lower_p", "p_value", "is_tested", "lasting_q")
    return Survey(
        client_ids=population.client_ids,
        cells=counted.join(tests, on="cell", how="left", maintain_order="left"),
        strata=count_strata(population, dimensions, promising),
        summary=_summarize(population),
        notes=pl.concat([population.notes, _note_rare_values(counted)]),
        gates=gates,
        evaluations=evaluations,
        durations=durations,
        transitions=transitions,
        bookings=how.describe_booking_channels(population),
    )


def restrict(survey: Survey, group: Sequence[str]) -> Survey:
    """The same counts for some of the clients, numbered anew."""
    if list(group) == survey.client_ids:
        return survey
    place = {client: number for number, client in enumerate(survey.client_ids)}
    places = [place[client] for client in group]
    number = pl.DataFrame(
        {"client": places, "new": range(len(group))}, schema={"client": pl.Int32, "new": pl.Int32}
    )

    def cut(frame: pl.DataFrame) -> pl.DataFrame:
        joined = frame.join(number, on="client", maintain_order="left")
        return joined.with_columns(client="new").drop("new")

    return Survey(
        client_ids=list(group),
        cells=cut(survey.cells),
        strata=survey.strata,
        summary=cut(survey.summary).sort("client"),
        notes=cut(survey.notes),
        **{
            name: [getattr(survey, name)[one] for one in places]
            for name in ("gates", "evaluations", "durations", "transitions", "bookings")
        },
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


def describe_error(error: Exception) -> str:
    """One line on what broke a client's detection."""
    line = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {line}"[:500]


def _count_dimension(population: Population, dimension: Dimension) -> pl.DataFrame:
    """Cells of one dimension, with what neighbouring cells say of each."""
    cells = count_dimension(population, dimension)
    near = (
        when.compute_neighbour_lift(cells, dimension)
        if dimension.neighbours
        else pl.Series("prior_lift", [None] * cells.height, dtype=pl.Float64)
    )
    return cells.with_columns(
        near,
        only_winners=pl.lit(dimension.only_winners),
        is_confirmed=how.find_confirmed(population, cells)
        if dimension.name == how.SEQUENCES
        else pl.lit(value=True),
    )


def _summarize(population: Population) -> pl.DataFrame:
    delay = population.touches.group_by("client").agg(pl.col("touch_maturity_days").max())
    return population.summary.join(delay, on="client", how="left", maintain_order="left")


def _evaluate_scores(population: Population, config: LearningConfig) -> list[dict[str, Any] | None]:
    names = pl.DataFrame(
        {"client": range(len(population.client_ids)), "client_id": population.client_ids},
        schema={"client": pl.Int32, "client_id": pl.String},
    )
    components = population.leads.select(
        "client", "lead_id", "created_at", *SCORE_COMPONENTS, converted="is_converted"
    ).join(names, on="client")
    found = {
        row["client_id"]: row
        for row in evaluate_score_weights(components.drop("client"), config).to_dicts()
    }
    return [found.get(client) for client in population.client_ids]


def _find_gates(
    population: Population, config: LearningConfig
) -> list[dict[PatternType, str | None]]:
    """Why a client has too little data for a type, None where it has enough; by client index."""
    gates = [_word_gate(n, k, config) for n, k in population.summary.select("n", "k").iter_rows()]
    found: list[dict[PatternType, str | None]] = [dict.fromkeys(PatternType, g) for g in gates]
    least = config.minimum_conversions
    # Narrowed first: a filter copies every column it is given.
    needed = {name for rule, _ in TOUCH_TYPES.values() for name in rule.meta.root_names()}
    outcomes = population.touches.select("client", "is_outcome", *needed).filter("is_outcome")
    for kind, (counts_in, words) in TOUCH_TYPES.items():
        counted = dict(outcomes.filter(counts_in).group_by("client").len().iter_rows())
        for client, gate in enumerate(found):
            if gate[kind] is None and counted.get(client, 0) < least:
                gate[kind] = (
                    f"{counted.get(client, 0)} converting touches {words}".rstrip()
                    + f", {least} are needed"
                )
    return found


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
