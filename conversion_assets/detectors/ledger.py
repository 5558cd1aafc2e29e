"""From counts to estimates: shrinkage, lift, one ledger of tests per client, and verdicts."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray

from conversion_assets.detectors.cells import ENDS
from conversion_assets.detectors.codes import Ints, combine, encode, find_distinct
from conversion_assets.detectors.reversals import Strata, find_explanations, find_reversals
from conversion_assets.detectors.threads import run_together
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.terms import Verdict
from conversion_assets.stats.adaptive import (
    compute_adaptive_lift_interval,
    compute_adaptive_rate_interval,
    expect_without_cell,
)
from conversion_assets.stats.intervals import (
    compute_beta_interval,
    compute_log_ratio_cumulants,
    compute_probability_above_one,
    compute_ratio_quantile,
    match_beta,
)
from conversion_assets.stats.multiplicity import (
    adjust_benjamini_hochberg,
    adjust_directions,
    compute_mid_p,
    find_testable,
    refine_mid_p,
    settle_ends,
    weigh_directions,
)
from conversion_assets.stats.pooling import pool_counts
from conversion_assets.stats.sequential import compute_always_valid_p
from conversion_assets.stats.shrinkage import (
    compute_typical_spread,
    shrink_rates,
    weigh_spreads,
)

Floats = NDArray[np.float64]
CELL = ["client", "pattern", "dimension", "value"]
BORROWED = ("prior_lift", "pool_lift", "pool_contributors", "pool_share", "pool_excess")
# Whatever other clients say, no cell is an act whose own outcomes would be seen more often than
# this without any effect.
OWN_EVIDENCE = 0.05
# With a source, a month or a channel held fixed as well, an act must still stand out on its own
# side this clearly.
HELD_EVIDENCE = 0.05
# Hazards nearly always differ by touch number and gap, if only because those who would answer do so
# soon. In one ledger these many true discoveries would pay for false ones elsewhere.
CADENCE = ("touch_hazard", "optimal_gaps")
VERDICT_ORDER = [Verdict.ACT.value, Verdict.WATCH.value, Verdict.NO_EVIDENCE.value]


def borrow_from_pool(cells: pl.DataFrame, config: LearningConfig) -> pl.DataFrame:
    """Fill in what each cell's prior expects: its neighbours' lift, the pool's, or none (1).

    Args:
        cells: Counted cells of all clients in a fixed order: dimension, value, k, expected,
            prior_lift (null, or what neighbouring cells say) and is_member (the client opted in to
            the pool).
        config: Privacy limits of the pool.

    Returns:
        Columns of `BORROWED`, a row for each cell in the order given: prior_lift filled; pool_lift,
        what the pool says; where the prior was borrowed from it, pool_contributors, pool_share (of
        the largest) and pool_excess (see `PooledLift`).
    """
    names = list(BORROWED)
    is_member = cells["is_member"].to_numpy()
    lift, contributors, share, excess = np.full((4, cells.height), np.nan)
    rows = np.flatnonzero(is_member)
    if rows.size:
        pooled = cells.select("dimension", "value", "k", "expected").filter(is_member)
        key, keys = combine(
            [(one.codes, one.radix) for one in (encode(pooled[c]) for c in ("dimension", "value"))]
        )
        occurring, place = find_distinct(key, keys)
        k, expected = _numbers(pooled, "k", "expected")
        lift[rows], contributors[rows], share[rows], excess[rows] = pool_counts(
            k,
            expected,
            place,
            occurring.size,
            minimum_contributors=config.pool_minimum_contributors,
            maximum_share=config.pool_maximum_share,
        )
    near = cells["prior_lift"].fill_null(np.nan).to_numpy()
    is_borrowed = np.isnan(near) & ~np.isnan(lift)
    told = (np.where(is_borrowed, one, np.nan) for one in (contributors, share, excess))
    prior = np.where(np.isnan(near), np.where(np.isnan(lift), 1.0, lift), near)
    return pl.DataFrame(dict(zip(names, (prior, lift, *told), strict=True))).with_columns(
        pl.col(*names[1:]).fill_nan(None)
    )


def compute_p_values(cells: pl.DataFrame) -> pl.DataFrame:
    """Test the counted cells of all clients and detectors against no effect.

    Needs nothing but a client's own counts, neither its pool nor what was said of it before.

    Args:
        cells: Cells of `count_dimension` that may stand in a document, sorted by `CELL`.

    Returns:
        The cells with upper_p and lower_p; p_value of both sides; is_tested; lasting_q, the q-value
        within the client's ledger over all detectors of a cell that is looked at every week; and
        is_promising where a first look could call the cell an act.
    """
    k, *moments = _numbers(cells, "k", "expected", "variance", "third")
    tested = find_testable(*moments)
    n, table_n, table_k = _numbers(cells, "n", "table_n", "table_k")
    least, most, log_least, log_most = _numbers(cells, *ENDS)
    rough = settle_ends(compute_mid_p(k, *moments), k, (least, most, log_least, log_most))
    upper, lower = refine_mid_p(rough, k, n, (table_n, table_k))
    p = np.minimum(1.0, 2.0 * np.minimum(upper, lower))
    lasting = np.ones(cells.height)
    always_valid = compute_always_valid_p(k, *moments)[tested]
    lasting[tested] = _adjust_twice(
        cells.filter(pl.Series(tested)),
        lambda ledger: adjust_benjamini_hochberg(always_valid, ledger),
    )
    return cells.with_columns(
        upper_p=upper,
        lower_p=lower,
        p_value=p,
        is_tested=tested,
        lasting_q=lasting,
        is_promising=tested & (p <= OWN_EVIDENCE),
    )


def assess_cells(
    cells: pl.DataFrame,
    strata: Strata,
    config: LearningConfig,
    earlier: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Turn the tested cells of all clients and detectors into estimates with verdicts.

    Args:
        cells: Result of `compute_p_values` with prior_lift and pool_lift as `borrow_from_pool`
            fills them, and cell, the number by which `strata` know a cell.
        strata: Result of `count_strata` for the promising ones.
        config: Thresholds.
        earlier: What an earlier refresh said: client, pattern, dimension, value of its acts, and
            a row of nulls beside the client for one that claimed nothing. A cell of a client in
            here that was not an act must convince in spite of repeated looking.

    Returns:
        The cells with rate, shrunk_rate, low, high, lift, lift_low, lift_high, p_lift, q_value,
        own_weight, naive_lift, verdict, reversals and explained_by, ordered as documents list them.
    """
    estimated = pl.concat(
        run_together([partial(_estimate_part, part, config) for part in _cut_by_client(cells)])
    )
    judged = _give_verdicts(_mark_repeated(_adjust(estimated), earlier), config)
    acts = judged.filter(pl.col("verdict") == Verdict.ACT.value)
    counts, held = (
        frame.join(acts.select("cell"), on="cell", how="semi", maintain_order="left")
        for frame in (strata.counts, strata.held)
    )
    reversals = find_reversals(acts, counts, config)
    explanations = find_explanations(acts, held, HELD_EVIDENCE)
    return _judge(judged, reversals.join(explanations, on="cell", how="left"), config)


def _cut_by_client(cells: pl.DataFrame) -> list[pl.DataFrame]:
    """A part of the cells for each thread, of about the same size; a client lies in one."""
    first = np.flatnonzero(np.diff(cells["client"].to_numpy(), prepend=-1))
    threads = pl.thread_pool_size()
    near = first.searchsorted([part * cells.height // threads for part in range(1, threads)])
    cuts = [0, *np.append(first, cells.height)[near].tolist(), cells.height]
    return [cells[start:end] for start, end in pairwise(cuts)]


def _estimate_part(cells: pl.DataFrame, config: LearningConfig) -> pl.DataFrame:
    return _add_intervals(_estimate(cells, config), config)


def _numbers(cells: pl.DataFrame, *names: str) -> list[Floats]:
    return [cells[name].to_numpy().astype(np.float64) for name in names]


def _estimate(cells: pl.DataFrame, config: LearningConfig) -> pl.DataFrame:
    """Posterior of each cell's rate and of its lift over the client's base rate."""
    n, k, expected = _numbers(cells, "n", "k", "expected")
    base_n, base_k, prior_lift = _numbers(cells, "base_n", "base_k", "prior_lift")
    null_rate = np.clip(expected / n, 1e-9, 1.0 - 1e-9)
    group = cells.select(pl.struct("client", "pattern", "dimension").rle_id()).to_series()
    number = group.to_numpy().astype(np.int64)
    prior_mean = np.clip(null_rate * prior_lift, 1e-9, 1.0 - 1e-9)
    groups = int(number[-1]) + 1 if number.size else 0
    weights = weigh_spreads(k, n, prior_mean, number, groups)
    own = shrink_rates(k, n, prior_mean, weights)
    # The rest of the client's sample moves against the cell: what the cell has above the base the
    # rest has below it, in proportion to their expected conversions.
    share = np.clip(expected / np.maximum(base_k, 1.0), 1e-9, 1.0 - 1e-9)
    rest_n = np.maximum(base_n - n, 1.0)
    rest_k = np.clip(base_k - k, 0.0, rest_n)
    rest_rate = np.clip((base_k - expected) / rest_n, 1e-9, 1.0 - 1e-9)
    rest = shrink_rates(rest_k, rest_n, rest_rate, weights, scale=share / (1.0 - share))
    mean, variance, third = compute_log_ratio_cumulants(own.a, own.b, rest.a, rest.b)
    cumulants = (mean + np.log(rest_rate / null_rate), variance, third)
    tail = (1.0 - config.credible_mass) / 2.0
    # The rate leans on the base by 1 - own_weight, and the base is an estimate as well.
    base_variance, naive_expected = _numbers(cells, "base_variance", "naive_expected")
    leaning = (1.0 - own.own_weight) * own.mean / np.maximum(expected, 1e-9)
    spread = own.mean * (1.0 - own.mean) / (own.a + own.b + 1.0) + leaning**2 * base_variance
    # No distribution on [0, 1] is wider than a coin's.
    widest = 0.999 * own.mean * (1.0 - own.mean)
    low, high = compute_beta_interval(
        *match_beta(own.mean, np.minimum(spread, widest)), config.credible_mass
    )
    lift = own.mean / null_rate
    above = compute_probability_above_one(cumulants)
    return cells.with_columns(
        rate=k / n,
        shrunk_rate=own.mean,
        strength=own.a + own.b,
        lift=lift,
        credible_low=low,
        credible_high=high,
        credible_lift_low=_to_lift(compute_ratio_quantile(cumulants, tail), share),
        credible_lift_high=_to_lift(compute_ratio_quantile(cumulants, 1.0 - tail), share),
        typical_spread=compute_typical_spread(weights, number, groups),
        p_lift=np.where(lift >= 1.0, above, 1.0 - above),
        own_weight=np.clip(own.own_weight, 0.0, 1.0),
        naive_lift=k / np.maximum(naive_expected, 1e-12),
    )


def _add_intervals(cells: pl.DataFrame, config: LearningConfig) -> pl.DataFrame:
    """Intervals that hold each cell's truth equally often, stretched to the estimate itself."""
    n, k, expected, variance, third = _numbers(cells, "n", "k", "expected", "variance", "third")
    base_n, prior_lift, spread = _numbers(cells, "base_n", "prior_lift", "typical_spread")
    shrunk, lift = _numbers(cells, "shrunk_rate", "lift")
    lift_low, lift_high = compute_adaptive_lift_interval(
        k, (expected, variance, third), prior_lift, spread, config.credible_mass
    )
    # Where nothing could have converted nothing is known, but that the base contains the cell.
    lift_high = np.where(np.isfinite(lift_high), lift_high, base_n / n)
    rest_rate, rest_error = expect_without_cell(k, expected, variance, n)
    low, high = compute_adaptive_rate_interval(
        k,
        n,
        np.clip(rest_rate * prior_lift, 1e-9, 1.0 - 1e-6),
        np.sqrt(spread**2 + rest_error**2),
        config.credible_mass,
    )
    return cells.with_columns(
        low=np.minimum(low, shrunk),
        high=np.maximum(high, shrunk),
        lift_low=np.minimum(lift_low, lift),
        lift_high=np.maximum(lift_high, lift),
    )


def _to_lift(ratio: Floats, share: Floats) -> Floats:
    """Lift over the base rate from the ratio to the rest; the base contains the cell's share."""
    return ratio / (share * ratio + 1.0 - share)


def _mark_repeated(cells: pl.DataFrame, earlier: pl.DataFrame | None) -> pl.DataFrame:
    """Mark the cells that an earlier refresh looked at and did not call an act."""
    if earlier is None or earlier.is_empty():
        return cells.with_columns(is_repeated=pl.lit(False))
    acts = earlier.select(*CELL, was_act=pl.lit(True)).drop_nulls("value")
    return cells.join(acts, on=CELL, how="left", maintain_order="left").with_columns(
        is_repeated=pl.col("client").is_in(earlier["client"].unique().implode())
        & pl.col("was_act").is_null()
    )


def _adjust(cells: pl.DataFrame) -> pl.DataFrame:
    """q-values of a first look, within the ledger of each client over all detectors.

    Each direction of a cell is a hypothesis, weighed by what other clients say of it.
    """
    upper, lower, pool = _numbers(cells, "upper_p", "lower_p", "pool_lift")
    is_weak = cells["p_value"].to_numpy() > OWN_EVIDENCE
    upper[is_weak], lower[is_weak] = 1.0, 1.0
    up, down = weigh_directions(pool)
    only_winners, tested = (cells[c].to_numpy() for c in ("only_winners", "is_tested"))
    # One question instead of two: what nobody tells of it is no better known for that.
    up = np.where(only_winners & np.isnan(pool), 1.0, up)
    down = np.where(only_winners, 0.0, down)
    first = np.ones(cells.height)
    first[tested] = _adjust_twice(
        cells.filter("is_tested"),
        lambda ledger: adjust_directions(
            upper[tested], lower[tested], (up[tested], down[tested]), ledger
        ),
    )
    return cells.with_columns(first_q=np.where(is_weak, 1.0, first))


def _adjust_twice(cells: pl.DataFrame, adjust: Callable[[Ints], Floats]) -> Floats:
    """q-values in each client's ledger; beside touch numbers and gaps also in that of the others.

    Args:
        cells: Cells of the ledgers, columns client and dimension.
        adjust: q-values within ledgers, given the number of each cell's.
    """
    client = cells["client"].to_numpy().astype(np.int64)
    is_cadence = cells["dimension"].is_in(CADENCE).to_numpy()
    whole, apart = adjust(client), adjust(2 * client + is_cadence)
    return np.where(is_cadence, whole, np.maximum(whole, apart))


def _give_verdicts(cells: pl.DataFrame, config: LearningConfig) -> pl.DataFrame:
    """q-values as often as each cell was looked at, and what they and the interval say."""
    repeated = pl.max_horizontal("first_q", "lasting_q")
    judged = cells.with_columns(q_value=pl.when("is_repeated").then(repeated).otherwise("first_q"))
    stands_out = (pl.col("q_value") <= config.act_q) & (
        (pl.col("lift_low") > 1.0) | (pl.col("lift_high") < 1.0)
    )
    is_near = pl.col("q_value").is_between(config.act_q, config.watch_q, closed="right")
    return _widen_chosen(judged, config).with_columns(
        verdict=pl.when(stands_out & pl.col("is_confirmed"))
        .then(pl.lit(Verdict.ACT.value))
        .when(stands_out | is_near)
        .then(pl.lit(Verdict.WATCH.value))
        .otherwise(pl.lit(Verdict.NO_EVIDENCE.value))
    )


def _widen_chosen(cells: pl.DataFrame, config: LearningConfig) -> pl.DataFrame:
    """Stretch the intervals of cells that stand out over their credible ones as well.

    A cell is looked at because it stands out, and of such cells an interval that is right for any
    cell is right less often. The posterior knows how often cells truly stand out.
    """
    is_chosen = pl.col("q_value") <= config.act_q
    return cells.with_columns(
        pl.when(is_chosen).then(widest(name, f"credible_{name}")).otherwise(name).alias(name)
        for names, widest in (
            (("low", "lift_low"), pl.min_horizontal),
            (("high", "lift_high"), pl.max_horizontal),
        )
        for name in names
    ).drop(cs.starts_with("credible_"), "typical_spread")


def _judge(cells: pl.DataFrame, checks: pl.DataFrame, config: LearningConfig) -> pl.DataFrame:
    """Final verdicts and the order in which a document lists its estimates."""
    does_reverse = pl.col("turns_sign") | (pl.col("reversed_share") > config.reversal_share)
    does_fade = pl.col("explained_by").is_not_null()
    return order_cells(
        cells.join(checks, on="cell", how="left").with_columns(
            verdict=pl.when(does_reverse.fill_null(False) | does_fade)
            .then(pl.lit(Verdict.WATCH.value))
            .otherwise("verdict")
        )
    )


def order_cells(cells: pl.DataFrame) -> pl.DataFrame:
    """Sort estimates as documents list them: verdict, lower end of the lift, value."""
    return (
        cells.with_columns(
            order=pl.col("verdict").replace_strict(
                {name: place for place, name in enumerate(VERDICT_ORDER)}, return_dtype=pl.Int8
            )
        )
        .sort(
            ["client", "pattern", "dimension", "order", "lift_low", "value"],
            descending=[False, False, False, False, True, False],
        )
        .drop("order")
    )
