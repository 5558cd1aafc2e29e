"""Drift: whether leads and touches, or their conversion, are no longer what was learned from.

Three questions per client, each with the threshold that chance alone would set for the sample at
hand: do the values of a dimension come in other shares; do their rates move against each other
(so that lifts learned before no longer hold); has conversion as a whole changed?

Two periods are compared that share no row, so the null distribution is that of two independent
samples. See docs/decisions/drift.md for measured false alarm rates.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import special

from conversion_assets.detectors.cells import Dimension
from conversion_assets.detectors.dimensions import list_dimensions
from conversion_assets.detectors.population import Population, select_population
from conversion_assets.domain.config import LearningConfig

Floats = NDArray[np.float64]
Window = tuple[datetime, datetime]

LEVEL = 0.05
"""Probability of any false alarm for one client and question: it is shared out evenly among the
dimensions that are looked at."""

LEAST_EXPECTED = 5.0
"""Cochran's rule: a bin that expects fewer rows of the smaller sample joins the other rare ones."""

ALL = "all"
"""Dimension of the base rates."""

# A value is known at once: for shares no row is too young. The quantile may not be 0.
_AT_ONCE = 1e-9

GROUP = ("client_id", "pattern_type", "dimension")
COUNTS: dict[str, pl.DataType] = {
    **dict.fromkeys(GROUP, pl.String()),
    "value": pl.String(),
    "n": pl.Int64(),
    "k": pl.Int64(),
    "own_squares": pl.Int64(),
    "products": pl.Int64(),
    "squares": pl.Int64(),
}
"""Rows and conversions of each value, and sums over leads that say how much the rows of one lead
are alike: of the squared number of its rows with the value, of that number times its number of
rows, and (the same for all values of a dimension) of its squared number of rows."""


def find_drift(
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    client_ids: Sequence[str],
    *,
    old: Window,
    new: Window,
    as_of: datetime,
    config: LearningConfig,
    level: float = LEVEL,
) -> pl.DataFrame:
    """Compare two periods of each client.

    Args:
        leads: `lead_features`.
        touches: `touch_features`.
        client_ids: Clients to compare.
        old: Start (excluded) and end of the period learned from.
        new: Start and end of the later period; it begins where `old` ends, or later.
        as_of: Nothing later is known.
        config: Maturity quantile. For rates only mature rows count, and a conversion only within
            the maturity delay, so that rows of both periods had the same time.
        level: Probability of any false alarm per client and question.

    Returns:
        One row per client, dimension and question, see `compare_shares` and `compare_rates`;
        `question` is shares, rates or base_rate. Sorted by client, question, type, dimension.
    """
    young = config.model_copy(update={"maturity_quantile": _AT_ONCE})
    parts = []
    for question, settings in (("shares", young), ("rates", config)):
        counts = [
            count_values(select_population(leads, touches, client_ids, as_of, settings, window=w))
            for w in (old, new)
        ]
        if question == "shares":
            parts.append(compare_shares(*counts, level=level))
        else:
            parts.append(compare_rates(*counts, level=level))
            parts.append(compare_base_rates(*counts, level=level))
    return pl.concat(parts).sort("client_id", "question", "pattern_type", "dimension")


def count_values(population: Population) -> pl.DataFrame:
    """Count every value of every dimension; columns of `COUNTS`.

    A flag (a row may carry several) is a dimension of its own with the values true and false.
    Sequences are left out: a lead stands in them once per length.
    """
    names = pl.DataFrame(
        {"client": range(len(population.client_ids)), "client_id": population.client_ids},
        schema={"client": pl.Int32, "client_id": pl.String},
    )
    equal_time = _number_leads(_equalize(population))
    parts = [
        _count(equal_time, plain)
        for dimension in list_dimensions(population.touches.columns)
        if dimension.rows != "sequences" and equal_time.frame(dimension.rows).height
        for plain in _split_flags(dimension)
    ]
    if not parts:
        return pl.DataFrame(schema=COUNTS)
    counted = pl.concat(pl.collect_all(parts)).join(names, on="client")
    return counted.select(pl.col(name).cast(kind) for name, kind in COUNTS.items())


def _equalize(population: Population) -> Population:
    """Count conversions only within the delay that every mature row had."""

    def within(start: str, end: str, delay: str) -> pl.Expr:
        days = (pl.col(end) - pl.col(start)).dt.total_microseconds() / 86_400e6
        return (days <= pl.col(delay).fill_null(np.inf)).fill_null(value=False)

    lead = within("created_at", "converted_at", "maturity_days")
    touch = within("occurred_at", "lead_converted_at", "touch_maturity_days")
    return replace(
        population,
        leads=population.leads.with_columns(pl.col("is_converted") & lead),
        touches=population.touches.with_columns(pl.col("is_outcome") & touch),
    )


def _number_leads(population: Population) -> Population:
    """Leads as numbers: text keys would take most of the time."""
    number = pl.struct("client", "lead_id").rle_id().alias("lead")
    return replace(
        population,
        leads=population.leads.sort("client", "lead_id").with_columns(number),
        touches=population.touches.sort("client", "lead_id").with_columns(number),
    )


def _split_flags(dimension: Dimension) -> list[Dimension]:
    if dimension.value is not None:
        return [dimension]
    return [
        replace(
            dimension,
            name=f"{dimension.name}.{label}",
            value=pl.when(column).then(pl.lit("true")).otherwise(pl.lit("false")),
            flags={},
        )
        for label, column in dimension.flags.items()
    ]


def _count(population: Population, dimension: Dimension) -> pl.LazyFrame:
    by_lead = (
        population.frame(dimension.rows)
        .lazy()
        .filter(dimension.counts_in)
        .select("client", "lead", value=dimension.value, outcome=dimension.outcome)
        .drop_nulls("value")
        .group_by("lead", "value")
        .agg(
            pl.col("client").first(),
            m=pl.len().cast(pl.Int64),
            k=pl.col("outcome").sum().cast(pl.Int64),
        )
    )
    of_lead = by_lead.group_by("lead").agg(pl.col("client").first(), total=pl.col("m").sum())
    squares = of_lead.group_by("client").agg(squares=(pl.col("total") ** 2).sum())
    return (
        by_lead.join(of_lead.select("lead", "total"), on="lead")
        .group_by("client", "value")
        .agg(
            n=pl.col("m").sum(),
            k=pl.col("k").sum(),
            own_squares=(pl.col("m") ** 2).sum(),
            products=(pl.col("m") * pl.col("total")).sum(),
        )
        .join(squares, on="client")
        .with_columns(
            pattern_type=pl.lit(dimension.pattern.value), dimension=pl.lit(dimension.name)
        )
    )


def compare_shares(old: pl.DataFrame, new: pl.DataFrame, *, level: float = LEVEL) -> pl.DataFrame:
    """Whether values come in other shares than before.

    The statistic is the chi-square of two samples, divided by the mean design effect of the rows
    of one lead being alike. PSI stands beside it with the threshold that it has under the same
    null: about (1/n + 1/m) times the quantile of the chi-square, times that effect.

    Args:
        old: `COUNTS` of the earlier period.
        new: `COUNTS` of the later period.
        level: Probability of any false alarm per client.

    Returns:
        client_id, pattern_type, dimension, question, n_old, n_new, bins, change (PSI),
        change_threshold, statistic, threshold, p_value, is_drift.

    Source:
        Yurdakul 2018 (distribution of PSI); Rao & Scott 1981 (design effect, first order).
    """
    both = _merge_rare(_align(old, new), "n")
    group, groups, first = _number_groups(both)
    n0, n1 = (both[c].to_numpy().astype(np.float64) for c in ("n_old", "n_new"))
    t0, t1 = (np.bincount(group, n, groups).astype(np.float64) for n in (n0, n1))
    p = (n0 + n1) / (t0 + t1)[group]
    q0, q1 = n0 / np.maximum(t0, 1.0)[group], n1 / np.maximum(t1, 1.0)[group]
    scale = 1.0 / np.maximum(t0, 1.0) + 1.0 / np.maximum(t1, 1.0)
    bins = np.bincount(group, minlength=groups).astype(np.int64)
    effect = _compute_design_effect(both, group, groups, p, t0 + t1)
    statistic = np.bincount(group, (q0 - q1) ** 2 / p, groups) / (scale * effect)
    # Half a row keeps the logarithm of an empty bin finite.
    r0 = (n0 + 0.5) / (t0 + 0.5 * bins)[group]
    r1 = (n1 + 0.5) / (t1 + 0.5 * bins)[group]
    psi = np.bincount(group, (r0 - r1) * np.log(r0 / r1), groups).astype(np.float64)
    usable = (bins > 1) & (t0 > 0) & (t1 > 0)
    found = _decide(
        both[first], statistic, (bins - 1).astype(np.int64), usable, level=level, question="shares"
    )
    return _finish(
        found,
        t0,
        t1,
        bins=bins,
        change=psi,
        change_threshold=found["threshold"].to_numpy() * scale * effect,
    )


def compare_rates(old: pl.DataFrame, new: pl.DataFrame, *, level: float = LEVEL) -> pl.DataFrame:
    """Whether the rates of a dimension's values moved against each other.

    Under the null every value's rate changed by one common factor, which is estimated. Given the
    conversions of a value in both periods, those in the later one are then binomial. A change of
    conversion as a whole is no drift here.

    Returns:
        As `compare_shares`; n_old and n_new count conversions, `change` is the largest factor by
        which a value's rate moved against the others (as a logarithm), its threshold is null.

    Source:
        Przyborowski & Wilenski 1940 (conditional comparison of rates).
    """
    both = _merge_rare(_align(old, new), "k")
    group, groups, first = _number_groups(both)
    n0, n1, k0, k1 = (
        both[c].to_numpy().astype(np.float64) for c in ("n_old", "n_new", "k_old", "k_new")
    )
    known = (n0 > 0) & (n1 > 0)
    n0, n1, k0, k1 = (np.where(known, x, 0.0) for x in (n0, n1, k0, k1))
    total = k0 + k1
    factor = _fit_factor(n0, n1, total, k1, group=group, groups=groups)
    ratio = factor[group] * n1
    part = np.divide(ratio, n0 + ratio, out=np.zeros_like(ratio), where=known)
    # Conversions of rows that may convert once vary less than Poisson ones.
    once = 1.0 - total / np.maximum(n0 + n1, 1.0)
    variance = total * part * (1.0 - part) * once
    used = variance > 0
    gap = np.where(used, (k1 - total * part) ** 2 / np.where(used, variance, 1.0), 0.0)
    statistic = np.bincount(group, gap, groups).astype(np.float64)
    bins = np.bincount(group, used.astype(np.float64), groups).astype(np.int64)
    t0, t1 = (np.bincount(group, k, groups).astype(np.float64) for k in (k0, k1))
    found = _decide(
        both[first],
        statistic,
        (bins - 1).astype(np.int64),
        (bins > 1) & (t0 + t1 > 0),
        level=level,
        question="rates",
    )
    expected = np.maximum(total * part, 0.5)
    moved = np.where(used, np.abs(np.log(np.maximum(k1, 0.5) / expected)), 0.0)
    largest = np.zeros(groups)
    np.maximum.at(largest, group, moved)
    return _finish(
        found, t0, t1, bins=bins, change=largest, change_threshold=np.full(groups, np.nan)
    )


def compare_base_rates(
    old: pl.DataFrame, new: pl.DataFrame, *, level: float = LEVEL
) -> pl.DataFrame:
    """Whether conversion as a whole changed, among leads and among touches.

    Returns:
        As `compare_shares`; `change` is the later rate over the earlier one.
    """
    # One dimension of each unit holds every row: a lead's hiring signal may be unknown, so the
    # dimension with the most rows stands for all.
    totals = []
    for frame in (old, new):
        summed = frame.group_by(*GROUP).agg(pl.col("n").sum(), pl.col("k").sum())
        unit = pl.when(pl.col("pattern_type") == "who").then(pl.lit("who")).otherwise(
            pl.lit("when")
        )  # fmt: skip
        totals.append(
            summed.filter(pl.col("pattern_type").is_in(["who", "when"]))
            .with_columns(pattern_type=unit)
            .sort("n", "k", descending=True)
            .group_by("client_id", "pattern_type", maintain_order=True)
            .agg(pl.col("n").first(), pl.col("k").first())
        )
    both = (
        totals[0]
        .join(totals[1], on=["client_id", "pattern_type"], suffix="_new")
        .rename({"n": "n_old", "k": "k_old"})
        .with_columns(dimension=pl.lit(ALL))
        .sort(GROUP)
    )
    n0, n1, k0, k1 = (
        both[c].to_numpy().astype(np.float64) for c in ("n_old", "n_new", "k_old", "k_new")
    )
    pooled = (k0 + k1) / np.maximum(n0 + n1, 1.0)
    variance = pooled * (1 - pooled) * (1 / np.maximum(n0, 1) + 1 / np.maximum(n1, 1))
    gap = k0 / np.maximum(n0, 1) - k1 / np.maximum(n1, 1)
    usable = variance > 0
    statistic = np.where(usable, gap**2 / np.where(usable, variance, 1.0), 0.0)
    ones = np.ones(both.height, np.int64)
    found = _decide(both, statistic, ones, usable, level=level, question="base_rate")
    change = (k1 / np.maximum(n1, 1)) / np.maximum(k0 / np.maximum(n0, 1), 1e-12)
    return _finish(
        found, n0, n1, bins=ones, change=change, change_threshold=np.full(both.height, np.nan)
    )


def _align(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """Both periods side by side, a value missing from one counted as 0."""
    keys = [*GROUP, "value"]
    both = old.join(new, on=keys, how="full", coalesce=True, suffix="_new").rename(
        {name: f"{name}_old" for name in ("n", "k", "own_squares", "products", "squares")}
    )
    numbers = [c for c in both.columns if c not in keys]
    # The squared rows of leads are a dimension's, not a value's.
    whole = pl.col("squares_old", "squares_new").max().over(GROUP)
    return both.with_columns(pl.col(numbers).fill_null(0)).with_columns(whole).sort(keys)


def _merge_rare(both: pl.DataFrame, sized_by: str) -> pl.DataFrame:
    """Values that expect too few in the smaller period become one bin, decided by totals alone."""
    old, new = f"{sized_by}_old", f"{sized_by}_new"
    total = pl.col(old) + pl.col(new)
    smaller = pl.min_horizontal(
        pl.col(old).sum().over(GROUP), pl.col(new).sum().over(GROUP)
    ) / total.sum().over(GROUP)
    sized = both.with_columns(expected=(total * smaller).fill_nan(0.0))
    is_rare = pl.col("expected") < LEAST_EXPECTED
    rare_sum = pl.col("expected").filter(is_rare).sum().over(GROUP)
    smallest_kept = pl.when(~is_rare).then("expected").min().over(GROUP)
    # Where even the rare together are too few, they join the smallest of the others.
    joins = (~is_rare & (pl.col("expected") == smallest_kept) & (rare_sum < LEAST_EXPECTED)) & (
        rare_sum > 0
    )
    merged = sized.with_columns(
        value=pl.when(is_rare | joins).then(pl.lit("\0rare")).otherwise("value")
    )
    sums = [c for c in both.columns if c not in {*GROUP, "value", "squares_old", "squares_new"}]
    return (
        merged.group_by(*GROUP, "value")
        .agg(pl.col(sums).sum(), pl.col("squares_old", "squares_new").max())
        .filter(pl.col("n_old") + pl.col("n_new") > 0)
        .sort(*GROUP, "value")
    )


def _number_groups(both: pl.DataFrame) -> tuple[NDArray[np.int64], int, NDArray[np.int64]]:
    """Number of each row's group, how many there are, and the first row of each."""
    if both.is_empty():
        return np.zeros(0, np.int64), 0, np.zeros(0, np.int64)
    group = both.select(pl.struct(GROUP).rle_id()).to_series().to_numpy().astype(np.int64)
    first = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    return group, int(group[-1]) + 1, first


def _compute_design_effect(
    both: pl.DataFrame, group: NDArray[np.int64], groups: int, p: Floats, total: Floats
) -> Floats:
    """Mean design effect of a dimension's bins: 1 where every row is a lead of its own."""
    own, products, squares = (
        (both[f"{c}_old"] + both[f"{c}_new"]).to_numpy().astype(np.float64)
        for c in ("own_squares", "products", "squares")
    )
    spread = own - 2.0 * p * products + p**2 * squares
    # (1 - p) times spread over N p (1 - p), for bins that are not empty.
    each = spread / np.maximum(total[group] * p, 1e-12)
    bins = np.bincount(group, minlength=groups)
    effect = np.bincount(group, each, groups) / np.maximum(bins - 1, 1)
    # Rows of one lead that avoid each other make shares steadier, but nothing is that steady.
    return np.maximum(effect, 0.05)


def _fit_factor(
    n0: Floats, n1: Floats, total: Floats, k1: Floats, *, group: NDArray[np.int64], groups: int
) -> Floats:
    """Common factor of the rates of each group, by bisection on its logarithm.

    The expected conversions of the later period rise with the factor; the factor is where they
    equal those observed.
    """
    wanted = np.bincount(group, k1, groups)
    low, high = np.full(groups, -12.0), np.full(groups, 12.0)
    for _ in range(50):
        middle = (low + high) / 2.0
        ratio = np.exp(middle)[group] * n1
        part = np.divide(ratio, n0 + ratio, out=np.zeros_like(ratio), where=n0 + ratio > 0)
        is_high = np.bincount(group, total * part, groups) > wanted
        low, high = np.where(is_high, low, middle), np.where(is_high, middle, high)
    return np.asarray(np.exp((low + high) / 2.0))


def _decide(
    keys: pl.DataFrame,
    statistic: Floats,
    freedom: NDArray[np.int64],
    usable: NDArray[np.bool_],
    *,
    level: float,
    question: str,
) -> pl.DataFrame:
    """p-values, and thresholds at the level shared out among a client's usable dimensions."""
    degrees = np.maximum(freedom, 1)
    p_value = np.where(usable, special.chdtrc(degrees, statistic), 1.0)
    return (
        keys.select(
            *GROUP,
            question=pl.lit(question),
            statistic=pl.Series(statistic, dtype=pl.Float64),
            p_value=pl.Series(p_value, dtype=pl.Float64),
            degrees=pl.Series(degrees, dtype=pl.Int64),
            is_usable=pl.Series(usable, dtype=pl.Boolean),
        )
        .with_columns(share=level / pl.col("is_usable").sum().over("client_id").clip(1))
        .with_columns(
            threshold=pl.struct("degrees", "share").map_batches(
                lambda rows: pl.Series(
                    special.chdtri(
                        rows.struct.field("degrees").to_numpy(),
                        rows.struct.field("share").to_numpy(),
                    ),
                    dtype=pl.Float64,
                ),
                return_dtype=pl.Float64,
            ),
            is_drift=pl.col("is_usable") & (pl.col("p_value") <= pl.col("share")),
        )
    )


def _finish(
    found: pl.DataFrame,
    n_old: Floats,
    n_new: Floats,
    *,
    bins: NDArray[np.int64],
    change: Floats,
    change_threshold: Floats,
) -> pl.DataFrame:
    return found.with_columns(
        n_old=pl.Series(n_old, dtype=pl.Float64).cast(pl.Int64),
        n_new=pl.Series(n_new, dtype=pl.Float64).cast(pl.Int64),
        bins=pl.Series(bins, dtype=pl.Int64),
        change=pl.Series(change, dtype=pl.Float64),
        change_threshold=pl.Series(change_threshold, dtype=pl.Float64).fill_nan(None),
    ).select(
        *GROUP, "question", "n_old", "n_new", "bins", "change", "change_threshold", "statistic",
        "threshold", "p_value", "is_drift",
    )  # fmt: skip
