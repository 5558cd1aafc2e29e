"""Counting: how often each value of a dimension was seen, and how often it converted.

A dimension declares what it counts; one engine counts all dimensions the same way. For every cell
it gives the expected conversions under "this value makes no difference", with the strata it is
adjusted for held fixed, and the variance of the count under that assumption.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl

from conversion_assets.detectors.population import Population
from conversion_assets.domain.terms import PatternType, Unit

# Beyond this many values of one dimension the rest are too rare to say anything about and would
# only lengthen the document; they stay in the base that others are compared with.
MOST_VALUES = 50


@dataclass(frozen=True)
class Dimension:
    """One family of cells, such as seniority or weekday.

    Attributes:
        pattern: The document it belongs to.
        name: Path in the document, `title_rankings.seniority`.
        rows: Which rows of the population are counted.
        value: Label of a row's cell (String; null: in no cell). Either this or `flags`.
        flags: Label of a cell to the Boolean column that says who is in it.
        counts_in: Rows that belong to the base at all.
        strata: Columns that are held fixed when the expected count is computed.
        within: Columns within which alone a value is compared, whatever else is asked: a tier's
            channels with that tier's, a sequence with those of its length. Each value lies in one.
        checked: Columns in whose strata a reversal is looked for, one at a time.
        neighbours: Cells whose data lend themselves to each other, smoothed on a circle.
    """

    pattern: PatternType
    name: str
    rows: Literal["leads", "touches", "sequences"]
    value: pl.Expr | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    counts_in: pl.Expr = field(default_factory=lambda: pl.lit(True))
    strata: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    neighbours: Literal["hours", "week"] | None = None

    @property
    def unit(self) -> Unit:
        """What its sample counts."""
        return Unit.TOUCH if self.rows == "touches" else Unit.LEAD

    @property
    def outcome(self) -> str:
        """Column that says whether a row converted."""
        return "is_converted" if self.rows == "leads" else "is_outcome"


def count_cells(
    population: Population,
    dimension: Dimension,
    strata: Sequence[str],
    clients: pl.Series | None = None,
) -> pl.DataFrame:
    """Sample and conversions of every cell in every stratum, beside the stratum's totals.

    Args:
        population: Rows at risk.
        dimension: What to count.
        strata: Columns that split the count; null is a stratum of its own.
        clients: Client indices to count; all when not given.

    Returns:
        Columns client, value, *strata, n, k, base_n, base_k, sorted by client, value, strata.
    """
    rows = _select_rows(population, dimension, strata)
    if clients is not None:
        rows = rows.filter(pl.col("client").is_in(clients.implode()))
    keys = ["client", *strata]
    outcome = pl.col(dimension.outcome)
    base = rows.group_by(keys).agg(
        base_n=pl.len().cast(pl.Int64), base_k=outcome.sum().cast(pl.Int64)
    )
    if dimension.value is not None:
        counted = (
            rows.with_columns(value=dimension.value)
            .filter(pl.col("value").is_not_null())
            .group_by("client", "value", *strata)
            .agg(n=pl.len().cast(pl.Int64), k=outcome.sum().cast(pl.Int64))
        )
    else:
        counted = _count_flags(rows, dimension, keys)
    return counted.join(base, on=keys, nulls_equal=True).sort("client", "value", *strata)


def _select_rows(
    population: Population, dimension: Dimension, strata: Sequence[str]
) -> pl.DataFrame:
    """Rows that count in a dimension, with no more columns than counting needs.

    The frames are some sixty columns wide; filtering them whole took a third of the counting.
    """
    rows: pl.DataFrame = getattr(population, dimension.rows)
    needed = {"client", dimension.outcome, *strata, *dimension.flags.values()}
    for expression in (dimension.value, dimension.counts_in):
        if expression is not None:
            needed |= set(expression.meta.root_names())
    narrow = rows.select(column for column in rows.columns if column in needed)
    return narrow.filter(dimension.counts_in)


def _count_flags(rows: pl.DataFrame, dimension: Dimension, keys: list[str]) -> pl.DataFrame:
    """Counts of Boolean columns, which may overlap, in one pass over the rows."""
    outcome = pl.col(dimension.outcome)
    wide = rows.group_by(keys).agg(
        *[pl.col(c).sum().cast(pl.Int64).alias(f"n|{v}") for v, c in dimension.flags.items()],
        *[
            (pl.col(c) & outcome).sum().cast(pl.Int64).alias(f"k|{v}")
            for v, c in dimension.flags.items()
        ],
    )
    long = [
        wide.select(*keys, value=pl.lit(value), n=f"n|{value}", k=f"k|{value}")
        for value in dimension.flags
    ]
    return pl.concat(long).filter(pl.col("n") > 0).select("client", "value", *keys[1:], "n", "k")


def summarize_cells(counts: pl.DataFrame) -> pl.DataFrame:
    """Add strata up: one row per cell with its expected count and variance under no effect.

    Args:
        counts: Result of `count_cells`.

    Returns:
        Columns client, value, n, k; expected, variance and third (central moment) of k under no
        effect; and base_variance, the sampling variance of `expected` itself, which comes from
        the strata's own conversions. Sorted by client and value.

    Source:
        Mantel & Haenszel 1959: expected count and variance of a stratified two-by-two table.
    """
    cells = (
        counts.group_by("client", "value")
        .agg(pl.col("n").sum(), pl.col("k").sum())
        .sort("client", "value")
    )
    cell = counts.select(pl.struct("client", "value").rle_id()).to_series().to_numpy()
    n, k_all, n_all = (counts[c].to_numpy().astype(np.float64) for c in ("n", "base_k", "base_n"))
    expected = n * k_all / n_all
    free = n_all > 1
    variance = np.where(
        free,
        expected * (1 - n / n_all) * (n_all - k_all) / np.where(free, n_all - 1, 1.0),
        0.0,
    )
    # Skewness of the hypergeometric distribution; of two rows there is none.
    third = variance * (n_all - 2 * k_all) * (n_all - 2 * n)
    third /= np.where(n_all > 2, n_all * (n_all - 2), np.inf)
    base_variance = n**2 * k_all * (n_all - k_all) / n_all**3
    return cells.with_columns(
        # Of no rows bincount makes integers.
        expected=np.bincount(cell, expected, cells.height).astype(np.float64),
        variance=np.bincount(cell, variance, cells.height).astype(np.float64),
        third=np.bincount(cell, third, cells.height).astype(np.float64),
        base_variance=np.bincount(cell, base_variance, cells.height).astype(np.float64),
    )


def count_dimension(population: Population, dimension: Dimension) -> pl.DataFrame:
    """Every cell of one dimension with its expected count, adjusted for the dimension's strata.

    Returns:
        One row per client and value: client, pattern, dimension, value, unit, n, k, base_n,
        base_k (the client's totals in the dimension), expected, variance, third, base_variance,
        naive_expected (of the unadjusted comparison), is_adjusted, frequency_rank (1 for the
        client's most frequent value).
    """
    if dimension.rows == "sequences":
        # A lead stands in `sequences` once for every length, so the base is counted on the leads.
        base = population.leads.group_by("client").agg(
            base_n=pl.len().cast(pl.Int64), base_k=pl.col("is_converted").sum().cast(pl.Int64)
        )
    else:
        base = (
            _select_rows(population, dimension, ())
            .group_by("client")
            .agg(
                base_n=pl.len().cast(pl.Int64),
                base_k=pl.col(dimension.outcome).sum().cast(pl.Int64),
            )
        )
    strata = [*dimension.within, *dimension.strata]
    cells = summarize_cells(count_cells(population, dimension, strata)).join(base, on="client")
    if dimension.within and dimension.strata:
        naive = summarize_cells(count_cells(population, dimension, dimension.within))
        cells = cells.join(
            naive.select("client", "value", naive_expected="expected"), on=["client", "value"]
        )
    else:
        # By numpy: Polars multiplies by the reciprocal where all divisors happen to be one number,
        # and a client's last digit would then depend on who else is there.
        n, k_all, n_all = (
            cells[c].to_numpy().astype(np.float64) for c in ("n", "base_k", "base_n")
        )
        unadjusted = pl.Series(n * k_all / n_all)
        cells = cells.with_columns(
            naive_expected=pl.col("expected") if dimension.within else unadjusted
        )
    return cells.select(
        "client",
        pl.lit(dimension.pattern.value).alias("pattern"),
        pl.lit(dimension.name).alias("dimension"),
        "value",
        pl.lit(dimension.unit.value).alias("unit"),
        "n",
        "k",
        "base_n",
        "base_k",
        "expected",
        "variance",
        "third",
        "base_variance",
        "naive_expected",
        pl.lit(bool(dimension.strata)).alias("is_adjusted"),
        pl.struct(-pl.col("n"), "value").rank("ordinal").over("client").alias("frequency_rank"),
    ).sort("client", "value")
