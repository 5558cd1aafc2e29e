"""Drift: whether leads and touches, or their conversion, are no longer what was learned from.

Three questions per client, each with the threshold that chance alone would set for the sample at
hand: do the values of a dimension come in other shares; do their rates move against each other
(so that lifts learned before no longer hold); has conversion as a whole changed?

Two periods are compared that share no row, so the null distribution is that of two independent
samples. See docs/decisions/drift.md for measured false alarm rates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import chain

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import special

from conversion_assets.detectors.cells import Dimension, choose_rows, label_rows
from conversion_assets.detectors.codes import (
    Booleans,
    Codes,
    Ints,
    combine,
    find_distinct,
    split,
)
from conversion_assets.detectors.dimensions import list_dimensions
from conversion_assets.detectors.population import (
    Population,
    Rows,
    find_lead_starts,
    select_population,
)
from conversion_assets.detectors.threads import run_together
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

GROUP = ("client_id", "pattern_type", "dimension")
COUNTS: dict[str, pl.DataType] = {
    **dict.fromkeys(GROUP, pl.String()),
    "value": pl.String(),
    "n": pl.Int64(),
    "settled": pl.Int64(),
    "k": pl.Int64(),
    "own_squares": pl.Int64(),
    "products": pl.Int64(),
    "squares": pl.Int64(),
}
"""Rows of each value, those old enough for their outcome to be known, conversions among these, and
sums over leads that say how much the rows of one lead are alike: of the squared number of its rows
with the value, of that number times its number of rows, and (the same for all values of a
dimension) of its squared number of rows."""


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
    # A value is known at once: for shares no row is too young.
    population = select_population(
        leads, touches, client_ids, as_of, config, window=(old[0], new[1]), keeps_young=True
    )
    counts = count_values(population, (old, new))
    parts = [
        compare(*counts, level=level)
        for compare in (compare_shares, compare_rates, compare_base_rates)
    ]
    return pl.concat(parts).sort("client_id", "question", "pattern_type", "dimension")


def count_values(
    population: Population, periods: tuple[Window, Window]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Count every value of every dimension in two periods; columns of `COUNTS`.

    A flag (a row may carry several) is a dimension of its own with the values true and false.
    Sequences are left out: a lead stands in them once per length. Conversions count only within
    the maturity delay, so that rows of both periods had the same time.

    Args:
        population: With its young rows.
        periods: Start (excluded) and end of each, one after the other.
    """
    rows = {
        frame: _describe_rows(population, frame, periods)
        for frame in ("leads", "touches")
        if population.frame(frame).height
    }
    parts = [
        partial(_count, population, dimension, rows[dimension.rows])
        for dimension in list_dimensions(population.touches.columns)
        if dimension.rows in rows
    ]
    counted = pl.concat([pl.DataFrame(schema=_COUNTED), *chain(*run_together(parts))])
    old, new = (counted.filter(period=period).drop("period") for period in (0, 1))
    return old, new


_COUNTED: dict[str, pl.DataType] = {"period": pl.Int64(), **COUNTS}
_TIMES = {
    "leads": ("created_at", "converted_at", "maturity_days"),
    "touches": ("occurred_at", "lead_converted_at", "touch_maturity_days"),
}
"""When a row began, when it converted, and within how many days that counts."""


@dataclass(frozen=True)
class _Rows:
    """What all dimensions of one frame share; arrays of shape (rows,).

    Attributes:
        client: Client index.
        period: 0 or 1; -1 outside both.
        lead: Number of the row's lead.
        is_settled: Old enough for its outcome to be known.
        converted: Settled, and converted within the maturity delay.
    """

    client: Ints
    period: Ints
    lead: Ints
    is_settled: Booleans
    converted: Booleans


def _describe_rows(population: Population, frame: Rows, periods: tuple[Window, Window]) -> _Rows:
    start, end, delay = _TIMES[frame]
    days = (pl.col(end) - pl.col(start)).dt.total_microseconds() / 86_400e6
    found = population.frame(frame)
    is_old, is_new, is_settled, is_soon = (
        column.to_numpy()
        for column in found.select(
            is_old=(pl.col(start) > periods[0][0]) & (pl.col(start) <= periods[0][1]),
            is_new=(pl.col(start) > periods[1][0]) & (pl.col(start) <= periods[1][1]),
            is_settled="is_settled",
            is_soon=(days <= pl.col(delay).fill_null(np.inf)).fill_null(value=False),
        )
    )
    starts = np.arange(found.height) if frame == "leads" else find_lead_starts(found)
    outcome = "is_converted" if frame == "leads" else "is_outcome"
    return _Rows(
        client=population.clients(frame),
        period=np.where(is_old, 0, np.where(is_new, 1, -1)),
        lead=np.repeat(np.arange(starts.size), np.diff(np.append(starts, found.height))),
        is_settled=is_settled,
        converted=population.is_true(frame, outcome) & is_settled & is_soon,
    )


def _count(population: Population, dimension: Dimension, rows: _Rows) -> list[pl.DataFrame]:
    """Counts of a dimension, or of each of its flags."""
    places = choose_rows(population, dimension)
    if dimension.value is not None:
        named = [(dimension.name, label_rows(population, dimension))]
    else:
        named = [
            (
                f"{dimension.name}.{label}",
                Codes(
                    population.is_true(dimension.rows, column)[places].astype(np.uint8) + 1,
                    pl.Series([None, "false", "true"]),
                ),
            )
            for label, column in dimension.flags.items()
        ]
    ids = pl.Series(population.client_ids, dtype=pl.String)
    parts = []
    for name, labels in named:
        client, period, value, sums = _count_labels(rows, places, labels)
        parts.append(
            pl.DataFrame(
                {
                    "period": period,
                    "client_id": ids.gather(client),
                    "pattern_type": [dimension.pattern.value] * client.size,
                    "dimension": [name] * client.size,
                    "value": labels.values.gather(value),
                    **sums,
                },
                schema=_COUNTED,
            )
        )
    return parts


def _count_labels(
    rows: _Rows, places: Ints | slice, labels: Codes
) -> tuple[Ints, Ints, Ints, dict[str, Ints]]:
    """Client, period, label and sums of each cell that occurs."""
    is_counted = (rows.period[places] >= 0) & (labels.codes > 0)
    label = labels.codes[is_counted].astype(np.int64)
    client, period, lead = (
        column[places][is_counted] for column in (rows.client, rows.period, rows.lead)
    )
    is_settled, converted = (
        column[places][is_counted] for column in (rows.is_settled, rows.converted)
    )
    clients = int(client.max(initial=-1)) + 1
    # A lead's rows of the other period are another lead's: the samples share none.
    occurring, lead = find_distinct(lead * 2 + period, 2 * int(lead.max(initial=-1)) + 2)
    number, size = combine([(client, clients), (period, 2), (label, labels.radix)])
    cells, cell = find_distinct(number, size)
    # Rows of a lead with one value: all of them for a frame of leads.
    pairs, pair = find_distinct(*combine([(lead, occurring.size), (cell, cells.size)]))
    of_lead, of_cell = split(pairs, [occurring.size, cells.size])
    m = np.bincount(pair, minlength=pairs.size)
    total = np.bincount(lead, minlength=occurring.size)
    client, period, label = split(cells, [clients, 2, labels.radix])
    group = client * 2 + period
    group_of_lead = np.zeros(occurring.size, dtype=np.int64)
    group_of_lead[of_lead] = group[of_cell]

    def add_up(numbers: Ints, into: Ints, count: int) -> Ints:
        # Exact: the sums stay far below 2**53.
        return np.bincount(into, numbers, count).astype(np.int64)

    sums = {
        "n": np.bincount(cell, minlength=cells.size),
        "settled": np.bincount(cell[is_settled], minlength=cells.size),
        "k": np.bincount(cell[converted], minlength=cells.size),
        "own_squares": add_up(m * m, of_cell, cells.size),
        "products": add_up(m * total[of_lead], of_cell, cells.size),
        "squares": add_up(total * total, group_of_lead, 2 * clients)[group],
    }
    return client, period, label, sums


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
    both = _merge_rare(_align(*(frame.filter(pl.col("settled") > 0) for frame in (old, new))), "k")
    group, groups, first = _number_groups(both)
    n0, n1, k0, k1 = (
        both[c].to_numpy().astype(np.float64)
        for c in ("settled_old", "settled_new", "k_old", "k_new")
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
        summed = (
            frame.filter(pl.col("settled") > 0)
            .group_by(*GROUP)
            .agg(n=pl.col("settled").sum(), k=pl.col("k").sum())
        )
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
        {name: f"{name}_old" for name in COUNTS if name not in keys}
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
