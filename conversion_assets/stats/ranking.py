"""How well scores rank and predict: AUC and its difference, Brier score, top share."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, factorial

import numpy as np
from numpy.typing import NDArray

from conversion_assets.domain.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Words = NDArray[np.uint64]

# Constants of the splitmix64 generator (Steele, Lea & Flood 2014).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST_MIX = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_MIX = np.uint64(0x94D049BB133111EB)

# A 64-bit word gives four replicates 16 bits each. Their weights are Poisson(1) to within 2^-16
# in every probability, an error no interval from hundreds of replicates can show.
_LANES = 4
_LANE_BITS = 16

# With fewer usable replicates than this share the percentiles would describe only the resamples
# that happened to hold both classes.
LEAST_USABLE_REPLICATES = 0.9


@dataclass(frozen=True)
class AucDifference:
    """Percentile interval of AUC(first score) - AUC(second score), arrays of shape (groups,).

    Attributes:
        low: Lower end; NaN when too many replicates lacked a class.
        high: Upper end; NaN likewise.
        replicates: Replicates that held both classes.
    """

    low: Floats
    high: Floats
    replicates: Ints


@dataclass(frozen=True)
class _Ranking:
    """A score's order: negatives sorted by group and score, and where each positive stands.

    `negatives` are row indices; a positive has `below` negatives before it and `through` before
    or tied with it, counted over the whole array.
    """

    negatives: Ints
    below: Ints
    through: Ints


def compute_auc(group: Ints, score: Floats, label: Bools, groups: int) -> Floats:
    """Probability that a random positive scores above a random negative, ties counting half.

    Args:
        group: Group of the row, 0 .. groups - 1, in any order, shape (rows,).
        score: Finite scores, shape (rows,).
        label: Outcome, shape (rows,).
        groups: Number of groups.

    Returns:
        Shape (groups,); NaN where a class is missing. Exact: only integers are summed.

    Example:
        >>> compute_auc(np.zeros(4, int), np.array([1.0, 2.0, 2.0, 3.0]),
        ...             np.array([False, False, True, True]), 1).tolist()
        [0.875]
    """
    ranking = _rank(group, score, label)
    positives, negatives = _count_classes(group, label, groups)
    before = np.cumsum(negatives) - negatives
    twice = ranking.below + ranking.through - 2 * before[group[label]]
    wins = np.bincount(group[label], twice.astype(np.float64), groups)
    pairs = 2.0 * positives * negatives
    return np.where(pairs > 0, wins / np.where(pairs > 0, pairs, 1.0), np.nan)


def _count_classes(group: Ints, label: Bools, groups: int) -> tuple[Ints, Ints]:
    positives = np.bincount(group[label], minlength=groups).astype(np.int64)
    rows = np.bincount(group, minlength=groups).astype(np.int64)
    return positives, rows - positives


def _rank(group: Ints, score: Floats, label: Bools) -> _Ranking:
    order = np.lexsort((score, group))
    is_negative = ~label[order]
    seen = np.concatenate([[0], np.cumsum(is_negative)])
    start, end = _find_ties(group[order], score[order])
    below, through = np.empty_like(start), np.empty_like(start)
    below[order], through[order] = seen[start], seen[end]
    return _Ranking(order[is_negative], below[label], through[label])


def _find_ties(group: Ints, score: Floats) -> tuple[Ints, Ints]:
    """First position of each sorted row's block of equal scores, and the one behind its last."""
    is_start = np.ones(group.size, dtype=np.bool_)
    is_start[1:] = (group[1:] != group[:-1]) | (score[1:] != score[:-1])
    starts = np.flatnonzero(is_start)
    block = np.cumsum(is_start) - 1
    ends = np.append(starts[1:], group.size)
    return starts[block].astype(np.int64), ends[block].astype(np.int64)


def bootstrap_auc_difference(
    group: Ints,
    scores: tuple[Floats, Floats],
    label: Bools,
    groups: int,
    *,
    replicates: int,
    seed: int,
    mass: float = 0.90,
) -> AucDifference:
    """Percentile bootstrap of the difference in AUC of two scores of the same rows.

    Rows get independent Poisson(1) weights. They come from a counter-based stream of (seed, rank
    of the row within its group, replicate), so a group's interval depends on its own rows only.

    Args:
        group: Group of the row, ascending, shape (rows,). Within a group the caller's order is
            the rank: let it follow an identifier, so that it does not depend on how rows arrive.
        scores: The two scores, each finite and of shape (rows,).
        label: Outcome, shape (rows,).
        groups: Number of groups.
        replicates: Number of bootstrap replicates.
        seed: Seed of the stream.
        mass: Mass of the interval.

    Raises:
        InputError: The groups are not ascending.

    Source:
        Efron & Tibshirani 1993; Hanley & MacGibbon 2006 (Poisson bootstrap of the AUC).

    Example:
        >>> label = np.arange(200) % 4 == 0
        >>> good = label + 0.01 * np.arange(200)
        >>> poor = np.arange(200) % 7 + 0.0
        >>> interval = bootstrap_auc_difference(
        ...     np.zeros(200, int), (good, poor), label, 1, replicates=100, seed=1)
        >>> bool(0 < interval.low[0] < interval.high[0])
        True
    """
    if (group[1:] < group[:-1]).any():
        raise InputError("bootstrap_auc_difference: rows must be sorted by group")
    rankings = [_rank(group, score, label) for score in scores]
    positives, negatives = _count_classes(group, label, groups)
    borders = (
        np.concatenate([[0], np.cumsum(positives)]),
        np.concatenate([[0], np.cumsum(negatives)]),
    )
    is_positive = np.flatnonzero(label)
    differences = np.empty((replicates, groups))
    for replicate, weight in enumerate(_iterate_weights(group, replicates, seed)):
        positive_weight = weight[is_positive].astype(np.int64)
        first, second = (
            _compute_weighted_auc(weight, positive_weight, ranking, borders) for ranking in rankings
        )
        differences[replicate] = first - second
    return _take_percentiles(differences, mass)


def _compute_weighted_auc(
    weight: NDArray[np.uint8],
    positive_weight: Ints,
    ranking: _Ranking,
    borders: tuple[Ints, Ints],
) -> Floats:
    """AUC per group under integer weights: integer sums, so the order of adding is immaterial."""
    seen = np.zeros(ranking.negatives.size + 1, dtype=np.int64)
    np.cumsum(weight[ranking.negatives], dtype=np.int64, out=seen[1:])
    twice = positive_weight * (seen[ranking.below] + seen[ranking.through])
    positive_border, negative_border = borders
    positives = _sum_between(positive_weight, positive_border)
    before = seen[negative_border]
    pairs = 2 * positives * np.diff(before)
    wins = _sum_between(twice, positive_border) - 2 * before[:-1] * positives
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)


def _sum_between(values: Ints, border: Ints) -> Ints:
    total = np.zeros(values.size + 1, dtype=np.int64)
    np.cumsum(values, out=total[1:])
    return np.diff(total[border])


def _iterate_weights(group: Ints, replicates: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Poisson(1) weights of all rows, one array per replicate."""
    index = np.arange(group.size)
    start = np.searchsorted(group, group, side="left")
    rank = (index - start + 1).astype(np.uint64)
    key = _mix(np.full(1, seed % 2**64, dtype=np.uint64) + _STEP)
    key = _mix(key + rank * _STEP)
    table = _build_poisson_table()
    for replicate in range(replicates):
        lane = replicate % _LANES
        if lane == 0:
            key = key + _STEP
            word = _mix(key)
        yield table[(word >> np.uint64(lane * _LANE_BITS)) & np.uint64(2**_LANE_BITS - 1)]


def _mix(word: Words) -> Words:
    """Finalizer of splitmix64; arithmetic is modulo 2^64."""
    word = (word ^ (word >> np.uint64(30))) * _FIRST_MIX
    word = (word ^ (word >> np.uint64(27))) * _SECOND_MIX
    return np.asarray(word ^ (word >> np.uint64(31)), dtype=np.uint64)


def _build_poisson_table() -> NDArray[np.uint8]:
    """Poisson(1) quantile of each 16-bit number."""
    # A weight above 8 has probability 1e-6, below the resolution of the table.
    distribution = np.cumsum([exp(-1.0) / factorial(count) for count in range(9)])
    position = (np.arange(2**_LANE_BITS) + 0.5) / 2**_LANE_BITS
    return np.asarray(np.searchsorted(distribution, position), dtype=np.uint8)


def _take_percentiles(differences: Floats, mass: float) -> AucDifference:
    """Percentiles per column, linear between order statistics, NaN left out."""
    replicates, groups = differences.shape
    ordered = np.sort(differences, axis=0)  # NaN last
    usable = np.isfinite(ordered).sum(axis=0)
    is_enough = usable >= max(1.0, LEAST_USABLE_REPLICATES * replicates)
    ends = []
    for share in ((1.0 - mass) / 2.0, (1.0 + mass) / 2.0):
        place = share * np.maximum(usable - 1, 0)
        floor = place.astype(np.int64)
        ceiling = np.minimum(floor + 1, np.maximum(usable - 1, 0))
        column = np.arange(groups)
        lower, upper = ordered[floor, column], ordered[ceiling, column]
        value = lower + (place - floor) * (upper - lower)
        ends.append(np.where(is_enough, value, np.nan))
    return AucDifference(ends[0], ends[1], usable.astype(np.int64))


def compute_brier(group: Ints, probability: Floats, label: Bools, groups: int) -> Floats:
    """Mean squared difference of predicted probability and outcome, shape (groups,).

    NaN for a group without rows. Sums run in the order of the rows.

    Source:
        Brier 1950.

    Example:
        >>> compute_brier(np.zeros(2, int), np.array([0.5, 1.0]), np.array([True, True]), 1)
        array([0.125])
    """
    rows = np.bincount(group, minlength=groups)
    total = np.bincount(group, (probability - label) ** 2, groups)
    return np.where(rows > 0, total / np.maximum(rows, 1), np.nan)


def compute_top_share(
    group: Ints, score: Floats, label: Bools, groups: int, *, top: float = 0.20
) -> Floats:
    """Share of a group's positives among its rows with the highest scores.

    Rows tied at the border of the top count in part: with all scores equal the result is `top`.

    Args:
        group: Group of the row, 0 .. groups - 1, in any order, shape (rows,).
        score: Finite scores, shape (rows,).
        label: Outcome, shape (rows,).
        groups: Number of groups.
        top: Share of the rows that are the top, within (0, 1].

    Returns:
        Shape (groups,); NaN for a group without a positive.

    Example:
        >>> compute_top_share(np.zeros(10, int), np.arange(10.0), np.arange(10) > 7, 1).tolist()
        [1.0]
    """
    order = np.lexsort((-score, group))
    sorted_group = group[order]
    rows = np.bincount(group, minlength=groups)
    first = (np.cumsum(rows) - rows)[sorted_group]
    start, end = _find_ties(sorted_group, score[order])
    room = top * rows[sorted_group] - (start - first)
    part = np.clip(room / (end - start), 0.0, 1.0)
    is_positive = label[order]
    positives = np.bincount(sorted_group[is_positive], minlength=groups)
    found = np.bincount(sorted_group[is_positive], part[is_positive], groups)
    return np.where(positives > 0, found / np.maximum(positives, 1), np.nan)
