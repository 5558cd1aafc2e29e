"""Whether an effect holds within strata: counts by one variable at a time, and what turns round.

Counting needs the rows, judging does not: a cell is promising when it stands out from chance, which
is known before its effect is estimated, so the strata of promising cells are counted while the rows
are at hand.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from conversion_assets.detectors.cells import Dimension, choose_rows, find_members
from conversion_assets.detectors.codes import Booleans, Ints, count_codes
from conversion_assets.detectors.population import Population
from conversion_assets.detectors.threads import run_together
from conversion_assets.domain.config import LearningConfig
from conversion_assets.stats.intervals import compute_probability_greater

Floats = NDArray[np.float64]

STRATA: dict[str, pl.DataType] = {
    "cell": pl.Int64(), "variable": pl.String(), "stratum": pl.String(),
    "n": pl.Int64(), "k": pl.Int64(), "base_n": pl.Int64(), "base_k": pl.Int64(),
}  # fmt: skip
_REVERSAL = pl.Struct(
    {"variable": pl.String, "stratum": pl.String, "share": pl.Float64, "probability": pl.Float64}
)
MOST_AGAINST_MEANS = 0.75
"""More than the probability with which one rate can exceed another that has the larger mean. The
worst is a rate after no conversions beside one that is known: a chi-square variable with one degree
of freedom stays below its mean with 0.683."""

UNKNOWN = "unknown"
"""Stratum of the rows that say nothing about a variable."""


def count_strata(
    population: Population, dimensions: Sequence[Dimension], promising: pl.DataFrame
) -> pl.DataFrame:
    """Counts of some cells in the strata of each variable that their dimension is checked by.

    Args:
        population: Rows at risk.
        dimensions: The dimensions the cells are of.
        promising: Columns cell (a number to know it by), client, pattern, dimension, value.

    Returns:
        Columns of `STRATA`: rows and conversions of the cell and of all its client's rows (those
        of its tier or length, where a dimension compares within these) in each stratum; by cell,
        variable and the variable's values.
    """
    by_name: Mapping[tuple[str, str], Dimension] = {
        (d.pattern.value, d.name): d for d in dimensions
    }
    bases: dict[tuple[str, ...], tuple[Ints, Ints, Ints]] = {}
    parts = run_together(
        [
            partial(_count_dimension, population, by_name[str(pattern), str(name)], chosen, bases)
            for (pattern, name), chosen in promising.group_by("pattern", "dimension")
        ]
    )
    # Strata of one cell and variable are listed together and in order; a stable sort keeps that.
    return pl.concat([pl.DataFrame(schema=STRATA), *parts]).sort(
        "cell", "variable", maintain_order=True
    )


def _count_dimension(
    population: Population,
    dimension: Dimension,
    chosen: pl.DataFrame,
    bases: dict[tuple[str, ...], tuple[Ints, Ints, Ints]],
) -> pl.DataFrame:
    """The cells of one dimension by each variable; `bases` is filled as it is needed."""
    parts = [pl.DataFrame(schema=STRATA)]
    rows, within = dimension.rows, list(dimension.within)
    cell, row = find_members(population, dimension, chosen)
    cells = chosen.height
    converted = population.is_true(rows, dimension.outcome)[row]
    # All rows of a cell are of one client, and compared within the same tier or length.
    place = np.zeros(cells, dtype=np.int64)
    place[cell] = population.combine(rows, within)[0][row]
    for variable in dimension.checked:
        key = (rows, str(dimension.counts_in), *within, variable)
        if key not in bases:
            bases[key] = _count_base(population, dimension, [*within, variable])
        numbers, all_n, all_k = bases[key]
        coded = population.encode(rows, variable)
        stratum = cell * coded.radix + coded.codes[row]
        n = np.bincount(stratum, minlength=cells * coded.radix)
        occurring = np.flatnonzero(n)
        k = np.bincount(stratum[converted], minlength=n.size)[occurring]
        which, code = occurring // coded.radix, occurring % coded.radix
        base = np.searchsorted(numbers, place[which] * coded.radix + code)
        counted = pl.DataFrame(
            {
                "cell": chosen["cell"].gather(which),
                "variable": pl.repeat(variable, occurring.size, eager=True),
                "stratum": coded.values.cast(pl.String).fill_null(UNKNOWN).gather(code),
                "n": n[occurring],
                "k": k,
                "base_n": all_n[base],
                "base_k": all_k[base],
            },
            schema=STRATA,
        )
        parts.append(counted)
    return pl.concat(parts)


def _count_base(
    population: Population, dimension: Dimension, names: Sequence[str]
) -> tuple[Ints, Ints, Ints]:
    places = choose_rows(population, dimension)
    number, size = population.combine(dimension.rows, names)
    outcome = population.is_true(dimension.rows, dimension.outcome)[places]
    return count_codes(number[places], size, np.flatnonzero(outcome))


def find_reversals(
    acts: pl.DataFrame, strata: pl.DataFrame, config: LearningConfig
) -> pl.DataFrame:
    """Strata in which an effect points the other way.

    Args:
        acts: cell, lift and naive_lift of the cells to look at.
        strata: Result of `count_strata` for these cells, others ignored.
        config: Probability from which a stratum counts as reversed.

    Returns:
        One row per cell: cell, turns_sign (an adjusted effect has the other sign than the naive
        one), reversed_share (of its rows, largest over the checked variables), reversals (list of
        structs variable, stratum, share, probability).
    """
    counts = strata.join(
        acts.select("cell", "lift", "naive_lift"), on="cell", maintain_order="left"
    )
    n, k, base_n, base_k, lift, naive = (
        counts[name].to_numpy().astype(np.float64)
        for name in ("n", "k", "base_n", "base_k", "lift", "naive_lift")
    )
    rest_n, rest_k = base_n - n, base_k - k
    probability = _compute_turning(
        (k, n - k),
        (rest_k, np.maximum(rest_n - rest_k, 0.0)),
        lift >= 1.0,
        rest_n > 0,
        least=config.reversal_probability,
    )
    is_reversed = probability >= config.reversal_probability
    table = counts.select(pl.struct("cell", "variable").rle_id()).to_series().to_numpy()
    first = np.flatnonzero(np.diff(table.astype(np.int64), prepend=-1))
    all_n, all_k, adjusted, reversed_n = (
        np.bincount(table, x, first.size)
        for x in (n, k, n * base_k / base_n, np.where(is_reversed, n, 0.0))
    )
    raises = naive[first] > 1.0
    judged = pl.DataFrame(
        {
            "cell": counts["cell"].gather(first),
            "reversed_share": reversed_n / all_n,
            "turns_sign": ((all_k > adjusted) != raises) | ((lift[first] > 1.0) != raises),
        }
    )
    listed = counts.select(
        "cell",
        reversals=pl.struct(
            "variable",
            "stratum",
            share=pl.Series(n / all_n[table], dtype=pl.Float64),
            probability=pl.Series(probability, dtype=pl.Float64),
        ).cast(_REVERSAL),
    ).filter(pl.Series(is_reversed, dtype=pl.Boolean))
    return (
        judged.group_by("cell")
        .agg(pl.col("turns_sign").any(), pl.col("reversed_share").max())
        .join(listed.group_by("cell", maintain_order=True).all(), on="cell", how="left")
    )


def _compute_turning(
    own: tuple[Floats, Floats],
    rest: tuple[Floats, Floats],
    is_up: Booleans,
    is_known: Booleans,
    *,
    least: float,
) -> Floats:
    """Probability that the rate lies on the other side of the rest's than the effect says.

    Args:
        own: Conversions and failures of the cell in each stratum.
        rest: The same of the rest of the stratum.
        is_up: The effect raises the rate.
        is_known: There is a rest to compare with.
        least: Smaller probabilities do not matter: where it is certain to be smaller, 0 stands.
    """
    # Jeffreys' prior on both sides.
    a, b, c, d = (counts + 0.5 for counts in (*own, *rest))
    mean, rest_mean = a / (a + b), c / (c + d)
    # Where the means agree with the effect, skewness alone is for the other side.
    is_open = is_known & (((mean < rest_mean) == is_up) | (least < MOST_AGAINST_MEANS))
    above = compute_probability_greater(a[is_open], b[is_open], c[is_open], d[is_open])
    found = np.zeros(a.size)
    found[is_open] = np.where(is_up[is_open], 1.0 - above, above)
    return found
