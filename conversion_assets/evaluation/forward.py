"""The forward record: claims as dated forecasts, graded on what came after them.

A claim is an estimate that the ledger calls an act. It is a forecast for the leads created and the
touches made in the `HORIZON_DAYS` after it. Once their outcomes are known, the forecast is graded
by the detectors' own counting, over all clients and claims of one moment together. See
docs/decisions/forward-record.md for the rule by which a claim loses its verdict, with figures.
The frames are those of `domain.forecasts`.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from numpy.typing import NDArray

from conversion_assets.detectors.cells import Dimension, count_dimension
from conversion_assets.detectors.dimensions import list_dimensions
from conversion_assets.detectors.ledger import order_cells
from conversion_assets.detectors.population import Population, select_population
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.forecasts import (
    CLAIMS,
    FORECASTS,
    GRADES,
    HORIZON_DAYS,
    KEY,
)
from conversion_assets.domain.terms import Unit, Verdict
from conversion_assets.stats.predictive import (
    compute_forward_lift,
    compute_log_evidence_against,
    is_inside_predictive_interval,
    state_claimed_lift,
)

Floats = NDArray[np.float64]

LEAST_EXPECTED = 3.0
"""Conversions that a window must expect, without effect, to be judged by itself. With fewer, none
at all is an ordinary result (5 % at 3)."""

LOST_EVIDENCE = 10.0
"""A claim is lost when its outcomes are this many times likelier without the effect. A true claim
gets there with a probability of at most 1 in 10, ever; see the decision record."""

LOST_PROBABILITY = 0.90
"""A claim is not lost while its forward lift is on the claimed side with this probability: then it
is weaker than claimed, not gone."""

_TIME = pl.Datetime("us", "UTC")
_CLAIMED = ("claimed_lift", "claimed_rate", "claimed_strength")


def list_forward_claims(
    estimates: pl.DataFrame, summary: pl.DataFrame, client_ids: Sequence[str]
) -> pl.DataFrame:
    """Claims among the estimates, each with the days until its unit's outcomes are known.

    A claim that lost its verdict by its record is a claim still, so that it may recover.

    Args:
        estimates: Result of `apply_forward_record`.
        summary: One row per client: client, maturity_days of leads, touch_maturity_days.
        client_ids: Ids by client index.

    Returns:
        Columns of `CLAIMS`, sorted by `KEY`.
    """
    names = summary.select(
        "client",
        lead_delay="maturity_days",
        touch_delay="touch_maturity_days",
        client_id=pl.Series(client_ids, dtype=pl.String),
    )
    is_touch = pl.col("unit") == Unit.TOUCH.value
    return (
        estimates.filter("was_act")
        .join(names, on="client")
        .select(
            "client_id",
            "dimension",
            "value",
            "unit",
            "strength",
            "lift",
            "lift_low",
            "lift_high",
            pattern_type="pattern",
            rate="shrunk_rate",
            rate_low="low",
            rate_high="high",
            base_rate=pl.col("expected") / pl.col("n"),
            delay_days=pl.when(is_touch).then("touch_delay").otherwise("lead_delay").fill_null(0.0),
        )
        .select(pl.col(name).cast(kind) for name, kind in CLAIMS.items())
        .sort(KEY)
    )


def make_forecasts(claims: pl.DataFrame, known: pl.DataFrame, as_of: datetime) -> pl.DataFrame:
    """Write claims down as forecasts, unless one about the same cell covers the same days.

    Windows of one cell never overlap, so that the record may add them up. That holds for replays
    of the past too: a forecast made less than a horizon later blocks as well.

    Args:
        claims: Columns of `CLAIMS`.
        known: All forecasts about these clients, whenever made; columns of `FORECASTS`.
        as_of: The moment of the claims.

    Returns:
        New forecasts, columns of `FORECASTS`, sorted by `KEY`.
    """
    horizon = timedelta(days=HORIZON_DAYS)
    near = known.filter(
        (pl.col("made_as_of") > as_of - horizon) & (pl.col("made_as_of") < as_of + horizon)
    )
    wait = pl.duration(microseconds=(pl.col("delay_days").fill_null(0.0) * 86_400e6).ceil())
    return (
        claims.join(near, on=KEY, how="anti")
        .with_columns(
            made_as_of=pl.lit(as_of, _TIME),
            horizon_days=pl.lit(HORIZON_DAYS, pl.Int64),
            due_as_of=(pl.lit(as_of + horizon) + wait).cast(_TIME),
            **{name: pl.lit(None, kind) for name, kind in GRADES.items()},
        )
        .select(pl.col(name).cast(kind) for name, kind in FORECASTS.items())
        .sort(KEY)
    )


def forget_later(forecasts: pl.DataFrame, as_of: datetime) -> pl.DataFrame:
    """Forecasts as they stood at a moment: none made then or later, no grade given later."""
    was_known = pl.col("graded_as_of") <= as_of
    return forecasts.filter(pl.col("made_as_of") < as_of).with_columns(
        pl.when(was_known).then(pl.col(name)).otherwise(None).alias(name) for name in GRADES
    )


def put_grades(forecasts: pl.DataFrame, graded: pl.DataFrame) -> pl.DataFrame:
    """The forecasts with the grades of `graded` in their rows, where they have none yet."""
    if graded.is_empty():
        return forecasts
    return forecasts.update(graded.select(*KEY, "made_as_of", *GRADES), on=[*KEY, "made_as_of"])


def grade_forecasts(
    forecasts: pl.DataFrame,
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    *,
    as_of: datetime,
    config: LearningConfig,
) -> pl.DataFrame:
    """Grade the forecasts that are due and not graded yet, with what is known at `as_of`.

    A window is counted as the detectors count: the same selection of leads and touches, the same
    maturity, the same expectation within strata. A channel sequence is counted on all leads of
    the window; it was discovered and confirmed before.

    Args:
        forecasts: Columns of `FORECASTS`.
        leads: `lead_features` of the forecasts' clients.
        touches: `touch_features` of the same clients.
        as_of: Nothing later is known.
        config: Window and maturity quantile.

    Returns:
        The forecasts graded now, columns of `FORECASTS`, sorted by `KEY` and made_as_of.
    """
    due = forecasts.filter(pl.col("graded_as_of").is_null() & (pl.col("due_as_of") <= as_of))
    parts = [
        _grade_moment(part, leads, touches, as_of, config)
        for _, part in sorted(due.group_by("made_as_of", "horizon_days"), key=lambda item: item[0])
    ]
    graded = pl.concat(parts) if parts else due
    return graded.select(FORECASTS.keys()).sort(*KEY, "made_as_of")


def _grade_moment(
    made: pl.DataFrame,
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    as_of: datetime,
    config: LearningConfig,
) -> pl.DataFrame:
    """Grade all forecasts made at one moment; their windows are one and the same."""
    start: datetime = made["made_as_of"][0]
    end = start + timedelta(days=made["horizon_days"][0])
    clients = made["client_id"].unique().sort()
    chosen = clients.implode()
    population = select_population(
        leads.filter(pl.col("client_id").is_in(chosen)),
        touches.filter(pl.col("client_id").is_in(chosen)),
        clients.to_list(),
        as_of,
        config,
        window=(start, end),
    )
    claimed = set(made.select("pattern_type", "dimension").unique().iter_rows())
    dimensions = [
        d
        for d in list_dimensions(population.touches.columns)
        if (d.pattern.value, d.name) in claimed
    ]
    counted = _count_window(population, dimensions)
    found = made.drop(*(name for name in GRADES if name != "graded_as_of")).join(
        counted, on=KEY, how="left", maintain_order="left"
    )
    return _judge_windows(
        found.with_columns(
            pl.col("n", "k", "base_k").fill_null(0),
            pl.col("expected", "variance").fill_null(0.0),
            graded_as_of=pl.lit(as_of, _TIME),
        ),
        config.credible_mass,
    )


def _count_window(population: Population, dimensions: Sequence[Dimension]) -> pl.DataFrame:
    """Counts of every cell of the window, by `KEY`."""
    whole = replace(
        population,
        # Discovery and confirmation lie behind.
        sequences=population.sequences.with_columns(is_candidate=pl.lit(value=True)),
    )
    names = pl.DataFrame(
        {"client": range(len(population.client_ids)), "client_id": population.client_ids},
        schema={"client": pl.Int32, "client_id": pl.String},
    )
    columns = ["n", "k", "expected", "variance", "base_k"]
    parts = [
        count_dimension(whole, d).select("client", "pattern", "dimension", "value", *columns)
        for d in dimensions
    ]
    empty: dict[str, pl.DataType] = {
        **dict.fromkeys(KEY, pl.String()),
        **{name: GRADES[name] for name in columns},
    }
    if not parts:
        return pl.DataFrame(schema=empty)
    counted = pl.concat(parts).join(names, on="client").rename({"pattern": "pattern_type"})
    return counted.select(pl.col(name).cast(kind) for name, kind in empty.items())


def _judge_windows(found: pl.DataFrame, mass: float) -> pl.DataFrame:
    n, k, expected, variance, mean, strength, base = (
        found[name].to_numpy().astype(np.float64)
        for name in ("n", "k", "expected", "variance", "rate", "strength", "base_rate")
    )
    judged = (expected >= LEAST_EXPECTED) & (variance > 0)
    inside = is_inside_predictive_interval(k, n, mean, strength, mass)
    seen = np.divide(k, n, out=np.zeros_like(k), where=n > 0)
    return found.with_columns(
        is_judged=pl.Series(judged),
        is_inside=pl.Series(inside),
        brier=_brier(seen, mean),
        brier_base=_brier(seen, base),
    ).with_columns(
        pl.when("is_judged").then("is_inside"),
        *(pl.when(pl.col("n") > 0).then(name) for name in ("brier", "brier_base")),
    )


def _brier(seen: Floats, stated: Floats) -> pl.Series:
    """Mean squared error of one stated rate over a sample of zeros and ones."""
    return pl.Series(seen * (1.0 - 2.0 * stated) + stated**2)


def build_record(forecasts: pl.DataFrame, as_of: datetime, config: LearningConfig) -> pl.DataFrame:
    """Add up what is known about each claimed cell and side.

    Windows made before the learning window are forgotten, as the rows of that time are.

    Args:
        forecasts: Graded and open ones, none graded later than `as_of` (see `forget_later`).
        as_of: Moment of the record.
        config: Learning window, mass of intervals.

    Returns:
        One row per cell and side with at least one grade: `KEY`, is_winner, windows, judged, n, k,
        lift, lift_low, lift_high, p_lift, inside, brier, brier_base, evidence_against, status.
        Sorted by `KEY` and side.
    """
    graded = forecasts.filter(
        pl.col("graded_as_of").is_not_null()
        & (pl.col("made_as_of") > as_of - timedelta(days=config.window_days))
    )
    weight = pl.col("n") / pl.col("n").sum()
    sums = (
        graded.with_columns(is_winner=pl.col("lift") >= 1.0)
        .sort(*KEY, "made_as_of")
        .group_by(*KEY, "is_winner", maintain_order=True)
        .agg(
            windows=pl.len().cast(pl.Int64),
            judged=pl.col("is_judged").sum().cast(pl.Int64),
            inside=pl.col("is_inside").sum().cast(pl.Int64),
            n=pl.col("n").sum(),
            k=pl.col("k").sum(),
            expected=pl.col("expected").sum(),
            variance=pl.col("variance").sum(),
            base_k=pl.col("base_k").sum(),
            brier=(pl.col("brier") * weight).sum(),
            brier_base=(pl.col("brier_base") * weight).sum(),
            # The first claim was made before any of these outcomes; later ones have seen some.
            claimed_lift=pl.col("lift").first(),
            claimed_rate=pl.col("rate").first(),
            claimed_strength=pl.col("strength").first(),
        )
    )
    k, expected, variance, base_k, *claimed = (
        sums[name].to_numpy().astype(np.float64)
        for name in ("k", "expected", "variance", "base_k", *_CLAIMED)
    )
    log_against = compute_log_evidence_against(
        k, expected, variance, base_k, state_claimed_lift(*claimed)
    )
    lift, low, high, above = compute_forward_lift(
        k, expected, variance, base_k, config.credible_mass
    )
    winner = sums["is_winner"].to_numpy()
    on_side = np.where(winner, above, 1.0 - above)
    status = decide_status(expected, on_side, log_against)
    return sums.with_columns(
        lift=_nullable(lift),
        lift_low=_nullable(low),
        lift_high=_nullable(high),
        p_lift=_nullable(np.clip(on_side, 0.0, 1.0)),
        brier=pl.when(pl.col("n") > 0).then("brier"),
        brier_base=pl.when(pl.col("n") > 0).then("brier_base"),
        # Beyond a million either way the figure says no more.
        evidence_against=np.exp(np.clip(log_against, -13.8, 13.8)),
        status=pl.Series(status, dtype=pl.String),
    ).drop("expected", "variance", "base_k", *_CLAIMED)


def decide_status(expected: Floats, on_side: Floats, log_against: Floats) -> NDArray[np.str_]:
    """What a record comes to: lost, too_few, fades or holds.

    Lost by the evidence against the claim, and only while the forward lift is not itself credibly
    on the claimed side. A small sample can lose a claim only when it is that clear.

    Example:
        >>> expected, log_against = np.array([9.0, 9.0]), np.array([2.5, 2.5])
        >>> decide_status(expected, np.array([0.4, 0.95]), log_against).tolist()
        ['lost', 'holds']
    """
    lost = (log_against >= np.log(LOST_EVIDENCE)) & ~(on_side >= LOST_PROBABILITY)
    return np.select(
        [lost, expected < LEAST_EXPECTED, on_side < 0.5],
        ["lost", "too_few", "fades"],
        "holds",
    )


def _nullable(values: Floats) -> pl.Series:
    return pl.Series(values, dtype=pl.Float64).fill_nan(None)


def apply_forward_record(
    estimates: pl.DataFrame, record: pl.DataFrame, client_ids: Sequence[str]
) -> pl.DataFrame:
    """Put the record beside each estimate; an act whose record is lost becomes a watch.

    Args:
        estimates: Result of `assess_cells`; `client` is the index into `client_ids`.
        record: Result of `build_record`.
        client_ids: Ids by client index.

    Returns:
        The estimates in document order, with `forward` (struct, null without a record) and
        `was_act` (an act before the record was looked at).
    """
    names = pl.DataFrame(
        {"client": range(len(client_ids)), "client_id": client_ids},
        schema={"client": pl.Int32, "client_id": pl.String},
    )
    told = record.select(
        "client_id",
        "dimension",
        "value",
        "is_winner",
        pattern="pattern_type",
        forward=pl.struct(
            "windows",
            "judged",
            "n",
            "k",
            "lift",
            "p_lift",
            "inside",
            "brier",
            "brier_base",
            "evidence_against",
            "status",
            lift_interval=pl.when(pl.col("lift_low").is_not_null()).then(
                pl.concat_list("lift_low", "lift_high")
            ),
        ),
    ).join(names, on="client_id")
    is_act = pl.col("verdict") == Verdict.ACT.value
    is_lost = (pl.col("forward").struct.field("status") == "lost").fill_null(value=False)
    judged = (
        estimates.with_columns(is_winner=pl.col("lift") >= 1.0, was_act=is_act)
        .join(
            told.drop("client_id"),
            on=["client", "pattern", "dimension", "value", "is_winner"],
            how="left",
            maintain_order="left",
        )
        .with_columns(
            verdict=pl.when(is_act & is_lost).then(pl.lit(Verdict.WATCH.value)).otherwise("verdict")
        )
        .drop("is_winner")
    )
    return order_cells(judged)
