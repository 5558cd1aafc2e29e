"""Tests of many cells at once, and what remains after asking how many were looked at."""

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A rate three times the expected one is the largest effect worth waiting for; a cell too small to
# show even that at the 1 % level is not tested, so that it costs the ledger nothing. The rule
# looks at margins only, never at the outcome, so it cannot bias the tests that remain.
LARGEST_PLAUSIBLE_LIFT = 3.0
TESTABLE_LEVEL = 0.01


def compute_tail_probabilities(
    k: Floats, expected: Floats, variance: Floats
) -> tuple[Floats, Floats]:
    """Tails of a count whose null distribution is a sum of hypergeometric ones.

    A hypergeometric count is a sum of independent Bernoulli variables, and so is a sum of them
    over strata; such a sum is approximated by the binomial with the same mean and variance. With
    one stratum this is close to Fisher's exact test, with several to the exact stratified test.

    Args:
        k: Observed conversions, shape (cells,).
        expected: Mean of the count under the null, shape (cells,).
        variance: Its variance under the null, shape (cells,).

    Returns:
        Probability of k or more, and of k or fewer, each of shape (cells,). Both are 1 where the
        null leaves no freedom (variance 0).

    Source:
        Vatutin & Mikhailov 1982 (decomposition); Ehm 1991 (binomial approximation).

    Example:
        >>> upper, lower = compute_tail_probabilities(
        ...     np.array([8.0]), np.array([4.0]), np.array([3.0]))
        >>> bool(upper[0] < 0.05 < lower[0])
        True
    """
    free = (variance > 0) & (expected > 0)
    mean = np.where(free, expected, 1.0)
    # Below 1e-9 the binomial is a Poisson to double precision.
    success = np.clip(1.0 - np.where(free, variance, 0.5) / mean, 1e-9, 1.0 - 1e-9)
    trials = mean / success
    upper = np.where(k <= 0, 1.0, special.betainc(np.maximum(k, 1.0), _room(trials, k), success))
    above = special.betainc(k + 1.0, _room(trials, k + 1.0), success)
    ones = np.ones_like(mean)
    return np.where(free, upper, ones), np.where(free, 1.0 - above, ones)


def _room(trials: Floats, k: Floats) -> Floats:
    """Second beta parameter; beyond the last possible count the tail is cut, not negative."""
    return np.maximum(trials - k + 1.0, 1e-3)


def compute_two_sided_p(k: Floats, expected: Floats, variance: Floats) -> Floats:
    """Two-sided p-value: twice the smaller tail, at most 1. Shapes as in the tails.

    Example:
        >>> compute_two_sided_p(np.array([4.0]), np.array([4.0]), np.array([3.0])).tolist()
        [1.0]
    """
    upper, lower = compute_tail_probabilities(k, expected, variance)
    return np.minimum(1.0, 2.0 * np.minimum(upper, lower))


def find_testable(expected: Floats, variance: Floats) -> NDArray[np.bool_]:
    """Cells large enough to be worth a test; decided from margins, before any outcome is seen.

    Source:
        The idea is Tarone's (1990): hypotheses that cannot become significant cost no budget.

    Example:
        >>> find_testable(np.array([0.2, 30.0]), np.array([0.2, 25.0])).tolist()
        [False, True]
    """
    imagined = np.ceil(LARGEST_PLAUSIBLE_LIFT * expected)
    upper, _ = compute_tail_probabilities(imagined, expected, variance)
    return np.asarray((variance > 0) & (upper <= TESTABLE_LEVEL), dtype=np.bool_)


def adjust_benjamini_hochberg(p: Floats, group: Ints) -> Floats:
    """q-values of Benjamini and Hochberg within each group.

    Args:
        p: p-values, shape (tests,).
        group: Group of each test, any integers, shape (tests,).

    Returns:
        q-values in the order of the input, shape (tests,).

    Source:
        Benjamini & Hochberg 1995.

    Example:
        >>> adjust_benjamini_hochberg(np.array([0.01, 0.04, 0.5]), np.array([0, 0, 1])).tolist()
        [0.02, 0.04, 0.5]
    """
    if p.size == 0:
        return p.copy()
    order = np.lexsort((p, group))
    sorted_group, sorted_p = group[order], p[order]
    starts = np.flatnonzero(np.r_[True, sorted_group[1:] != sorted_group[:-1]])
    sizes = np.diff(np.r_[starts, p.size])
    rank = np.arange(p.size) - np.repeat(starts, sizes) + 1
    raw = np.minimum(sorted_p * np.repeat(sizes, sizes) / rank, 1.0)
    smallest = pl.DataFrame({"group": sorted_group, "raw": raw}).select(
        pl.col("raw").cum_min(reverse=True).over("group")
    )
    adjusted = np.empty_like(p)
    adjusted[order] = smallest.to_series().to_numpy()
    return adjusted
