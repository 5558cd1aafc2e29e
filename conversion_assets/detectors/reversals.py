"""Whether an effect holds within strata: what turns round there, and what fades.

Counting needs the rows, judging does not: a cell is promising when it stands out from chance, which
is known before its effect is estimated, so the strata of promising cells are counted while the rows
are at hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from conversion_assets.detectors.cells import Dimension, choose_rows, find_members
from conversion_assets.detectors.codes import Booleans, Ints, count_codes
from conversion_assets.detectors.population import LAST_TOUCH_STRATUM, Population
from conversion_assets.detectors.threads import run_together
from conversion_assets.domain.config import LearningConfig
from conversion_assets.stats.intervals import compute_probability_greater
from conversion_assets.stats.multiplicity import compute_mid_p, compute_moments

Floats = NDArray[np.float64]

STRATA: dict[str, pl.DataType] = {
    "cell": pl.Int64(), "variable": pl.String(), "stratum": pl.String(),
    "n": pl.Int64(), "k": pl.Int64(), "base_n": pl.Int64(), "base_k": pl.Int64(),
}  # fmt: skip
HELD: dict[str, pl.DataType] = {
    "cell": pl.Int64(), "variable": pl.String(), "k": pl.Int64(),
    "expected": pl.Float64(), "variance": pl.Float64(), "third": pl.Float64(),
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

_Bases = dict[tuple[str, ...], tuple[Ints, Ints, Ints]]
"""Numbers, rows and conversions of all of a dimension's rows, by what they are numbered by."""


@dataclass(frozen=True)
class Strata:
    """What is known of some cells within strata.

    Attributes:
        counts: Rows and conversions of the cell and of all its client's rows (those of its tier or
            length, where a dimension compares within these) in each stratum of one variable:
            columns of `STRATA`, by cell, variable and the variable's values.
        held: Conversions of the cell, and mean, variance and third central moment of them without
            effect, where one more variable is held fixed than its dimension holds: columns of
            `HELD`, by cell and variable.
    """

    counts: pl.DataFrame
    held: pl.DataFrame


@dataclass(frozen=True)
class _Members:
    """Rows of some cells of one dimension.

    Attributes:
        dimension: The dimension.
        cells: The cells, columns cell and client among them.
        cell: Place of its cell, of each row in one.
        row: Its place in the frame.
        converted: Whether it converted.
    """

    dimension: Dimension
    cells: pl.DataFrame
    cell: Ints
    row: Ints
    converted: Booleans


def count_strata(
    population: Population, dimensions: Sequence[Dimension], promising: pl.DataFrame
) -> Strata:
    """Counts of some cells in the strata of each variable that their dimension is checked by.

    Args:
        population: Rows at risk.
        dimensions: The dimensions the cells are of.
        promising: Columns cell (a number to know it by), client, pattern, dimension, value.
    """
    by_name: Mapping[tuple[str, str], Dimension] = {
        (d.pattern.value, d.name): d for d in dimensions
    }
    bases: _Bases = {}
    parts = run_together(
        [
            partial(_count_dimension, population, by_name[str(pattern), str(name)], chosen, bases)
            for (pattern, name), chosen in promising.group_by("pattern", "dimension")
        ]
    )
    # Strata of one cell and variable are listed together and in order; a stable sort keeps that.
    counts, held = (
        pl.concat([pl.DataFrame(schema=schema), *found]).sort(
            "cell", "variable", maintain_order=True
        )
        for schema, found in (
            (STRATA, (part.counts for part in parts)),
            (HELD, (part.held for part in parts)),
        )
    )
    return Strata(counts, held)


def _count_dimension(
    population: Population, dimension: Dimension, chosen: pl.DataFrame, bases: _Bases
) -> Strata:
    """The cells of one dimension by each variable; `bases` is filled as it is needed."""
    cell, row = find_members(population, dimension, chosen)
    converted = population.is_true(dimension.rows, dimension.outcome)[row]
    members = _Members(dimension, chosen, cell, row, converted)
    counts, held = [pl.DataFrame(schema=STRATA)], [pl.DataFrame(schema=HELD)]
    for variable in dimension.checked:
        counts.append(_count_variable(population, members, variable, bases))
        if variable not in dimension.strata:
            held.append(_hold_fixed(population, members, variable, bases))
    return Strata(pl.concat(counts), pl.concat(held))


def _count_variable(
    population: Population, members: _Members, variable: str, bases: _Bases
) -> pl.DataFrame:
    """Columns of `STRATA` for one variable alone."""
    dimension, cell, row = members.dimension, members.cell, members.row
    rows, within = dimension.rows, list(dimension.within)
    cells = members.cells.height
    # All rows of a cell are of one client, and compared within the same tier or length.
    place = np.zeros(cells, dtype=np.int64)
    place[cell] = population.combine(rows, within)[0][row]
    numbers, all_n, all_k = _find_base(population, dimension, [*within, variable], bases)
    coded = population.encode(rows, variable)
    stratum = cell * coded.radix + coded.codes[row]
    n = np.bincount(stratum, minlength=cells * coded.radix)
    occurring = np.flatnonzero(n)
    k = np.bincount(stratum[members.converted], minlength=n.size)[occurring]
    which, code = occurring // coded.radix, occurring % coded.radix
    base = np.searchsorted(numbers, place[which] * coded.radix + code)
    return pl.DataFrame(
        {
            "cell": members.cells["cell"].gather(which),
            "variable": pl.repeat(variable, occurring.size, eager=True),
            "stratum": _name_strata(variable, coded.values).gather(code),
            "n": n[occurring],
            "k": k,
            "base_n": all_n[base],
            "base_k": all_k[base],
        },
        schema=STRATA,
    )


def _name_strata(variable: str, values: pl.Series) -> pl.Series:
    """Values of a variable as its reader knows them: months as 2026-01, the last touches as 8+."""
    if variable == "month":
        year, month = (values - 1) // 12, (values - 1) % 12 + 1
        names = year.cast(pl.String) + "-" + month.cast(pl.String).str.zfill(2)
    elif variable == "touch_stratum":
        names = values.cast(pl.String).replace(str(LAST_TOUCH_STRATUM), f"{LAST_TOUCH_STRATUM}+")
    else:
        names = values.cast(pl.String)
    return names.fill_null(UNKNOWN)


def _hold_fixed(
    population: Population, members: _Members, variable: str, bases: _Bases
) -> pl.DataFrame:
    """Columns of `HELD` for one variable beside those that the dimension holds fixed."""
    dimension, cell, cells = members.dimension, members.cell, members.cells.height
    names = [*dimension.within, *dimension.strata, variable]
    numbers, all_n, all_k = _find_base(population, dimension, names, bases)
    number, size = population.combine(dimension.rows, names)
    of_client = size // len(population.client_ids)
    # A cell is of one client, so the cell's place stands for the client's.
    key = cell * of_client + number[members.row] % of_client
    occurring, n, _ = count_codes(key, cells * of_client, key[:0])
    which, stratum = occurring // of_client, occurring % of_client
    owner = members.cells["client"].to_numpy().astype(np.int64)
    base = np.searchsorted(numbers, owner[which] * of_client + stratum)
    moments = compute_moments(*(x.astype(np.float64) for x in (n, all_n[base], all_k[base])))
    expected, variance, third = (np.bincount(which, x, cells) for x in moments)
    return pl.DataFrame(
        {
            "cell": members.cells["cell"],
            "variable": pl.repeat(variable, cells, eager=True),
            "k": np.bincount(cell[members.converted], minlength=cells),
            "expected": expected,
            "variance": variance,
            "third": third,
        },
        schema=HELD,
    )


def _find_base(
    population: Population, dimension: Dimension, names: list[str], bases: _Bases
) -> tuple[Ints, Ints, Ints]:
    key = (dimension.rows, str(dimension.counts_in), *names)
    if key not in bases:
        bases[key] = _count_base(population, dimension, names)
    return bases[key]


def _count_base(
    population: Population, dimension: Dimension, names: Sequence[str]
) -> tuple[Ints, Ints, Ints]:
    places = choose_rows(population, dimension)
    number, size = population.combine(dimension.rows, names)
    outcome = population.is_true(dimension.rows, dimension.outcome)[places]
    return count_codes(number[places], size, np.flatnonzero(outcome))


def find_explanations(acts: pl.DataFrame, held: pl.DataFrame, level: float) -> pl.DataFrame:
    """Variables that explain an effect: held fixed, it no longer stands out.

    An effect that another variable brings about need not turn round within its strata; it vanishes.

    Args:
        acts: cell and lift of the cells to look at.
        held: `Strata.held` of these cells, others ignored.
        level: p-value, on the side that lift says, up to which an effect stands out.

    Returns:
        One row per cell that is explained: cell, explained_by (list of variables).

    Source:
        Mantel & Haenszel 1959.
    """
    counts = held.join(acts.select("cell", "lift"), on="cell", maintain_order="left")
    k, expected, variance, third, lift = (
        counts[name].to_numpy().astype(np.float64)
        for name in ("k", "expected", "variance", "third", "lift")
    )
    upper, lower = compute_mid_p(k, expected, variance, third)
    explains = np.where(lift >= 1.0, upper, lower) > level
    return (
        counts.filter(pl.Series(explains, dtype=pl.Boolean))
        .group_by("cell", maintain_order=True)
        .agg(explained_by="variable")
    )


def find_reversals(
    acts: pl.DataFrame, strata: pl.DataFrame, config: LearningConfig
) -> pl.DataFrame:
    """Strata in which an effect points the other way.

    Args:
        acts: cell, lift and naive_lift of the cells to look at.
        strata: `Strata.counts` of these cells, others ignored.
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
