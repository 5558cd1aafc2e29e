"""Counting: how often each value of a dimension was seen, and how often it converted.

A dimension declares what it counts; one engine counts all dimensions the same way. For every cell
it gives the expected conversions under "this value makes no difference", with the strata it is
adjusted for held fixed, and the variance of the count under that assumption.

Rows are counted by codes (see `detectors/codes.py`): each column becomes small whole numbers once,
a cell is a mixed-radix number of client, value and strata, and counting is one pass over whole
numbers. Labels are made for the few cells, never for the many rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from conversion_assets.detectors.codes import (
    Codes,
    Ints,
    combine,
    count_codes,
    encode,
    find_distinct,
    split,
)
from conversion_assets.detectors.population import Population, Rows
from conversion_assets.domain.terms import PatternType, Unit
from conversion_assets.stats.multiplicity import compute_moments, describe_ends

Floats = NDArray[np.float64]

# Beyond this many values of one dimension the rest are too rare to say anything about and would
# only lengthen the document; they stay in the base that others are compared with.
MOST_VALUES = 50

ENDS = ("least", "most", "log_least", "log_most")
"""Columns of what `describe_ends` tells of a cell."""


@dataclass(frozen=True)
class Dimension:
    """One family of cells, such as seniority or weekday.

    Attributes:
        pattern: The document it belongs to.
        name: Path in the document, `title_rankings.seniority`.
        rows: Which rows of the population are counted.
        value: Label of a row's cell (String; null: in no cell). Either this or `flags`.
        bins: Columns of few values made of columns of many, by name.
        label: The same as `value`, over `bins`; not given where no column has many values.
        flags: Label of a cell to the Boolean column that says who is in it.
        counts_in: Rows that belong to the base at all.
        strata: Columns that are held fixed when the expected count is computed.
        within: Columns within which alone a value is compared, whatever else is asked: a tier's
            channels with that tier's, a sequence with those of its length. Each value lies in one.
        checked: Columns in whose strata a reversal is looked for, and that may explain an effect,
            one at a time.
        neighbours: Cells whose data lend themselves to each other, smoothed on a circle.
        only_winners: Asked alone is what works better, not what works worse.
    """

    pattern: PatternType
    name: str
    rows: Rows
    value: pl.Expr | None = None
    bins: Mapping[str, pl.Expr] = field(default_factory=dict)
    label: pl.Expr | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    counts_in: pl.Expr = field(default_factory=lambda: pl.lit(True))
    strata: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    neighbours: Literal["hours", "week"] | None = None
    only_winners: bool = False

    @property
    def unit(self) -> Unit:
        """What its sample counts."""
        return Unit.TOUCH if self.rows == "touches" else Unit.LEAD

    @property
    def outcome(self) -> str:
        """Column that says whether a row converted."""
        return "is_converted" if self.rows == "leads" else "is_outcome"


@dataclass(frozen=True)
class _Counts:
    """Cells in strata, sorted by client, label and stratum; arrays of shape (counts,).

    Attributes:
        client: Client index.
        label: Code of the cell's value in `labels`.
        labels: Values, ascending.
        strata: Codes of each stratum's columns.
        n: Rows in the cell and stratum; k: of them converted.
        base_n: Rows of the client in the stratum; base_k: of them converted.
    """

    client: Ints
    label: Ints
    labels: pl.Series
    strata: list[Ints]
    n: Ints
    k: Ints
    base_n: Ints
    base_k: Ints


def count_cells(
    population: Population,
    dimension: Dimension,
    strata: Sequence[str],
) -> pl.DataFrame:
    """Sample and conversions of every cell in every stratum, beside the stratum's totals.

    Args:
        population: Rows at risk.
        dimension: What to count.
        strata: Columns that split the count; null is a stratum of its own.

    Returns:
        Columns client, value, *strata, n, k, base_n, base_k, sorted by client, value, strata.
    """
    counts = _count(population, dimension, strata)
    return pl.DataFrame(
        {
            "client": counts.client.astype(np.int32),
            "value": counts.labels.gather(counts.label),
            **{
                name: population.encode(dimension.rows, name).values.gather(codes)
                for name, codes in zip(strata, counts.strata, strict=True)
            },
            "n": counts.n,
            "k": counts.k,
            "base_n": counts.base_n,
            "base_k": counts.base_k,
        }
    )


@dataclass(frozen=True)
class _Selection:
    """Rows that count, and the stratum each of them lies in.

    Attributes:
        places: Places of the rows in the frame; a slice where all of them count.
        converted: Which of these rows converted, as places among them.
        number: Client and strata of each as one number.
        radices: Of the client and of each column of the strata.
    """

    places: Ints | slice
    converted: Ints
    number: Ints
    radices: list[int]

    @property
    def size(self) -> int:
        """How many numbers there can be."""
        return math.prod(self.radices)


class _Cells(NamedTuple):
    """Cells in strata, in any order: label, client and strata in one number, rows, conversions."""

    label: Ints
    number: Ints
    n: Ints
    k: Ints


def _count(population: Population, dimension: Dimension, strata: Sequence[str]) -> _Counts:
    chosen = _select(population, dimension, strata)
    base_number, base_n, base_k = count_codes(chosen.number, chosen.size, chosen.converted)
    count = _count_flags if dimension.value is None else _count_values
    labels, cells = count(population, dimension, chosen)
    client = cells.number // math.prod(chosen.radices[1:])
    order = np.lexsort((cells.number, cells.label, client))
    number = cells.number[order]
    place = np.searchsorted(base_number, number)
    return _Counts(
        client=client[order],
        label=cells.label[order],
        labels=labels,
        strata=split(number, chosen.radices)[1:],
        n=cells.n[order],
        k=cells.k[order],
        base_n=base_n[place],
        base_k=base_k[place],
    )


def _select(population: Population, dimension: Dimension, strata: Sequence[str]) -> _Selection:
    rows = dimension.rows
    places = choose_rows(population, dimension)
    number, _ = population.combine(rows, strata)
    radices = [len(population.client_ids), *(population.encode(rows, s).radix for s in strata)]
    converted = np.flatnonzero(population.is_true(rows, dimension.outcome)[places])
    return _Selection(places, converted, number[places], radices)


def choose_rows(population: Population, dimension: Dimension) -> Ints | slice:
    """Places of the rows that count in a dimension; a slice where all do."""
    return population.choose(dimension.rows, dimension.counts_in)


def _count_values(
    population: Population, dimension: Dimension, chosen: _Selection
) -> tuple[pl.Series, _Cells]:
    """Count by the rows' labels."""
    labels = label_rows(population, dimension)
    number, size = combine([(labels.codes, labels.radix), (chosen.number, chosen.size)])
    occurring, n, k = count_codes(number, size, chosen.converted)
    label, place = split(occurring, [labels.radix, chosen.size])
    some = label > 0
    return labels.values[1:], _Cells(label[some] - 1, place[some], n[some], k[some])


def label_rows(population: Population, dimension: Dimension) -> Codes:
    """Value of each row that counts in a dimension of one value a row, null where it has none.

    The rows are those of `choose_rows`, in their order. Texts are made for the few combinations of
    what the label is made of that occur.
    """
    label_by = dimension.value if dimension.label is None else dimension.label
    assert label_by is not None  # noqa: S101 - for the types
    return population.once(
        dimension.rows,
        f"labels {dimension.name}: {label_by} where {dimension.counts_in}",
        lambda _: _label_rows(population, dimension, label_by),
    )


def _label_rows(population: Population, dimension: Dimension, label_by: pl.Expr) -> Codes:
    parts = {
        name: population.encode(dimension.rows, name, dimension.bins.get(name))
        for name in dict.fromkeys(label_by.meta.root_names())
    }
    places = choose_rows(population, dimension)
    number, size = combine([(one.codes[places], one.radix) for one in parts.values()])
    occurring, place = find_distinct(number, size)
    columns = split(occurring, [one.radix for one in parts.values()])
    values = {
        name: one.values.gather(code)
        for (name, one), code in zip(parts.items(), columns, strict=True)
    }
    labels = encode(pl.DataFrame(values).select(label=label_by.cast(pl.String))["label"])
    return Codes(labels.codes[place], labels.values)


def find_members(
    population: Population, dimension: Dimension, wanted: pl.DataFrame
) -> tuple[Ints, Ints]:
    """Rows of some cells of a dimension.

    Args:
        population: Rows at risk.
        dimension: The dimension.
        wanted: client and value of the cells.

    Returns:
        Place of the cell in `wanted` and of the row in its frame; a row of several flags is listed
        with each of them.
    """
    places = choose_rows(population, dimension)
    owner = population.clients(dimension.rows)
    client = wanted["client"].to_numpy()
    if dimension.value is not None:
        labels = label_rows(population, dimension)
        rank = wanted["value"].replace_strict(
            labels.values, range(labels.radix), return_dtype=pl.Int64
        )
        cell_of = np.full(len(population.client_ids) * labels.radix, -1, dtype=np.int64)
        cell_of[client * labels.radix + rank.to_numpy()] = np.arange(wanted.height)
        cell = cell_of[owner[places] * labels.radix + labels.codes]
        own = np.flatnonzero(cell >= 0)
        return cell[own], own if isinstance(places, slice) else places[own]
    found = []
    for name in wanted["value"].unique().sort():
        is_named = (wanted["value"] == name).to_numpy()
        of_client = np.full(len(population.client_ids), -1, dtype=np.int64)
        of_client[client[is_named]] = np.flatnonzero(is_named)
        rows = _places_of(places, population.is_true(dimension.rows, dimension.flags[name]))
        cell = of_client[owner[rows]]
        found.append((cell[cell >= 0], rows[cell >= 0]))
    cells, rows_of_cells = zip(*found, strict=True)
    return np.concatenate(cells), np.concatenate(rows_of_cells)


def _places_of(places: Ints | slice, flag: NDArray[np.bool_]) -> Ints:
    """Places of the rows that count and carry a flag."""
    with_flag = np.flatnonzero(flag[places])
    return with_flag if isinstance(places, slice) else places[with_flag]


def _count_flags(
    population: Population, dimension: Dimension, chosen: _Selection
) -> tuple[pl.Series, _Cells]:
    """Count Boolean columns, which may overlap."""
    labels = pl.Series(sorted(dimension.flags), dtype=pl.String)
    found = []
    for label, name in enumerate(labels):
        flag = population.is_true(dimension.rows, dimension.flags[name])[chosen.places]
        with_flag = np.flatnonzero(flag)
        converted = np.searchsorted(with_flag, chosen.converted[flag[chosen.converted]])
        number, n, k = count_codes(chosen.number[with_flag], chosen.size, converted)
        found.append((np.full(number.size, label), number, n, k))
    return labels, _Cells(*(np.concatenate(column) for column in zip(*found, strict=True)))


def summarize_cells(counts: pl.DataFrame) -> pl.DataFrame:
    """Add strata up: one row per cell with its expected count and variance under no effect.

    Args:
        counts: Result of `count_cells`.

    Returns:
        Columns client, value, n, k; expected, variance and third (central moment) of k under no
        effect; base_variance, the sampling variance of `expected` itself, which comes from the
        strata's own conversions; table_n and table_k, rows and conversions of a cell's only
        stratum, 0 where there are several; and least, most, log_least and log_most, between which
        counts k can lie and how probable these ends are (`describe_ends`). Sorted by client and
        value.

    Source:
        Mantel & Haenszel 1959: expected count and variance of a stratified two-by-two table.
    """
    cell = counts.select(pl.struct("client", "value").rle_id()).to_series().to_numpy()
    n, k, base_n, base_k = (counts[c].to_numpy() for c in ("n", "k", "base_n", "base_k"))
    sums, moments = _add_strata_up(cell.astype(np.int64), n, k, (base_n, base_k))
    first = np.flatnonzero(np.diff(cell.astype(np.int64), prepend=-1))
    return counts[first].select("client", "value").with_columns(**sums, **moments)


def _add_strata_up(
    cell: Ints, n: Ints, k: Ints, base: tuple[Ints, Ints]
) -> tuple[dict[str, Ints], dict[str, Floats]]:
    """Counts, and moments of the conversions without effect, over the strata of each cell.

    Args:
        cell: Number of the cell each stratum belongs to, ascending from 0 without gaps.
        n: Rows of the cell in the stratum.
        k: Of them converted.
        base: Rows and conversions of the client in the stratum.
    """
    cells = int(cell[-1]) + 1 if cell.size else 0
    n_in, n_all, k_all = (one.astype(np.float64) for one in (n, *base))
    expected, variance, third = compute_moments(n_in, n_all, k_all)
    base_variance = n_in**2 * k_all * (n_all - k_all) / n_all**3
    # The one table of a cell that lies in a single stratum: its null distribution is known exactly.
    is_lone = (np.bincount(cell, minlength=cells) == 1)[cell]
    sums = {"expected": expected, "variance": variance, "third": third,
            "base_variance": base_variance, "table_n": np.where(is_lone, n_all, 0.0),
            "table_k": np.where(is_lone, k_all, 0.0),
            **describe_ends(n_in, n_all, k_all)}  # fmt: skip
    return (
        # Counts stay below 2**53 and are exact as floats.
        {name: np.bincount(cell, x, cells).astype(np.int64) for name, x in (("n", n), ("k", k))},
        # Of no rows bincount makes integers.
        {name: np.bincount(cell, x, cells).astype(np.float64) for name, x in sums.items()},
    )


def count_dimension(population: Population, dimension: Dimension) -> pl.DataFrame:
    """Every cell of one dimension with its expected count, adjusted for the dimension's strata.

    Returns:
        One row per client and value: client, pattern, dimension, value, unit, n, k, base_n,
        base_k (the client's totals in the dimension), expected, variance, third, base_variance,
        table_n and table_k (totals of the only stratum, 0 where there are several), least, most,
        log_least and log_most (the ends of k and their probability),
        naive_expected (of the unadjusted comparison), is_adjusted, frequency_rank (1 for the
        client's most frequent value).
    """
    counts = _count(population, dimension, [*dimension.within, *dimension.strata])
    client, label, sums, moments = _sum_cells(counts)
    base_n, base_k = (total[client] for total in _count_base(population, dimension))
    if dimension.within and dimension.strata:
        naive = _sum_cells(_count(population, dimension, dimension.within))[3]["expected"]
    elif dimension.within:
        naive = moments["expected"]
    else:
        naive = sums["n"] * base_k / base_n
    return pl.DataFrame(
        {
            "client": client.astype(np.int32),
            "value": counts.labels.gather(label),
            **sums,
            **moments,
            "base_n": base_n,
            "base_k": base_k,
            "naive_expected": naive,
            "frequency_rank": _rank_by_frequency(client, label, sums["n"]),
        }
    ).select(
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
        "table_n",
        "table_k",
        *ENDS,
        "naive_expected",
        pl.lit(bool(dimension.strata)).alias("is_adjusted"),
        "frequency_rank",
    )


def _sum_cells(counts: _Counts) -> tuple[Ints, Ints, dict[str, Ints], dict[str, Floats]]:
    """Client, label, counts and moments of each cell, sorted by client and label."""
    is_new = np.diff(counts.client * max(len(counts.labels), 1) + counts.label, prepend=-1) != 0
    sums = _add_strata_up(np.cumsum(is_new) - 1, counts.n, counts.k, (counts.base_n, counts.base_k))
    return counts.client[is_new], counts.label[is_new], *sums


def _rank_by_frequency(client: Ints, label: Ints, n: Ints) -> NDArray[np.uint32]:
    """Rank of each cell within its client: the largest first, ties by label."""
    order = np.lexsort((label, -n, client))
    starts = np.flatnonzero(np.diff(client, prepend=-1))
    first = np.repeat(starts, np.diff(np.append(starts, client.size)))
    rank = np.empty(client.size, dtype=np.uint32)
    rank[order] = np.arange(client.size) - first + 1
    return rank


def _count_base(population: Population, dimension: Dimension) -> tuple[Ints, Ints]:
    """Rows and conversions of each client in a dimension, whatever their value."""
    clients = len(population.client_ids)
    if dimension.rows == "sequences":
        # A lead stands in `sequences` once for every length, so the base is counted on the leads.
        owner, outcome = population.clients("leads"), population.is_true("leads", "is_converted")
    else:
        chosen = choose_rows(population, dimension)
        owner = population.clients(dimension.rows)[chosen]
        outcome = population.is_true(dimension.rows, dimension.outcome)[chosen]
    return np.bincount(owner, minlength=clients), np.bincount(owner[outcome], minlength=clients)
