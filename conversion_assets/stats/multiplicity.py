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

# A table is worth the exact sum where the answer matters and the sum is short: twelve deviations
# of such a cell are 66 terms. Larger counts are as good as continuous.
REFINED_BELOW = 0.1
REFINED_VARIANCE = 30.0

# What the pool says moves the level from cells that fail everywhere to such as work elsewhere.
POOL_SQUARINGS = 3
# A pool that is wrong about a client costs it at most this factor.
LARGEST_WEIGHT = 20.0
# Where nobody tells, three quarters of a cell's level go to "works": documents are read for what
# works, and what fails shows as the rest of the dimension working better.
UNTOLD_UP = 1.5


def compute_moments(n: Floats, rows: Floats, hits: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean, variance and third central moment of hypergeometric counts.

    Args:
        n: Rows of a cell in each stratum, shape (strata,).
        rows: All rows of the stratum, at least n, same shape.
        hits: Conversions among them, same shape.

    Returns:
        Each of shape (strata,). They add up over the strata of a cell.

    Source:
        Mantel & Haenszel 1959 (mean and variance).

    Example:
        >>> [x.round(3).tolist() for x in compute_moments(*map(np.array, ([2.0], [4.0], [2.0])))]
        [[1.0], [0.333], [0.0]]
    """
    expected = n * hits / rows
    free = rows > 1
    variance = np.where(
        free, expected * (1 - n / rows) * (rows - hits) / np.where(free, rows - 1, 1.0), 0.0
    )
    # Skewness of the hypergeometric distribution; of two rows there is none.
    third = variance * (rows - 2 * hits) * (rows - 2 * n)
    third /= np.where(rows > 2, rows * (rows - 2), np.inf)
    return expected, variance, third


def compute_tail_probabilities(
    k: Floats, expected: Floats, variance: Floats, third: Floats
) -> tuple[Floats, Floats]:
    """Tails of a count whose null distribution is a sum of hypergeometric ones.

    A hypergeometric count is a sum of independent Bernoulli variables, and so is a sum of them
    over strata; such a sum is approximated by the shifted binomial with the same mean, variance
    and third central moment. Looking at the rest of the sample instead of the cell, or at failures
    instead of conversions, turns the shifted binomial over and changes no p-value.

    Between 1e-6 and 1e-2 the tail is 0.99 times the exact one in the middle, 0.7 to 1 times in
    90 % of cells of one stratum and 0.97 to 1 times in those of many. In small tables whose count
    lies at the very end of what their margins allow it can be far off: `settle_ends` and, for a
    lone table, `refine_mid_p` are for these. Matching mean and variance alone gave
    0.17 to 0.99 times for upper tails, and a thousandth for cells that hold most of the sample.

    Args:
        k: Observed conversions, shape (cells,).
        expected: Mean of the count under the null, shape (cells,).
        variance: Its variance under the null, shape (cells,).
        third: Its third central moment under the null, shape (cells,).

    Returns:
        Probability of k or more, and of k or fewer, each of shape (cells,). Both are 1 where the
        null leaves no freedom (variance 0).

    Source:
        Vatutin & Mikhailov 1982 (decomposition); Pekoz, Rollin, Cekanavicius & Shwartz 2009
        (binomial with shift, three moments).

    Example:
        >>> upper, lower = compute_tail_probabilities(
        ...     np.array([8.0]), np.array([4.0]), np.array([3.0]), np.array([1.5]))
        >>> bool(upper[0] < 0.05 < lower[0])
        True
    """
    moments = (expected, variance, third)
    return _compute_upper_tail(k, *moments), _compute_lower_tail(k, *moments)


def _compute_upper_tail(k: Floats, expected: Floats, variance: Floats, third: Floats) -> Floats:
    shifted, trials, success = match_shifted_binomial(k, expected, variance, third)
    upper = _sum_from(shifted, trials, success)
    return np.where(has_freedom(expected, variance), upper, 1.0)


def _compute_lower_tail(k: Floats, expected: Floats, variance: Floats, third: Floats) -> Floats:
    """The upper tail of the failures: 1 less the other tail would lose its digits."""
    shifted, trials, success = match_shifted_binomial(k, expected, variance, third)
    lower = _sum_from(trials - shifted, trials, 1.0 - success)
    return np.where(has_freedom(expected, variance), lower, 1.0)


def has_freedom(expected: Floats, variance: Floats) -> NDArray[np.bool_]:
    """Cells whose count could have been another one under the null, shape (cells,)."""
    return np.asarray((variance > 0) & (expected > 0), dtype=np.bool_)


def match_shifted_binomial(
    k: Floats, expected: Floats, variance: Floats, third: Floats
) -> tuple[Floats, Floats, Floats]:
    """Counts less their shift, trials and success of the binomials with these three moments.

    Shapes as in `compute_tail_probabilities`, where the source is named; any finite numbers come
    back for cells without freedom.

    Example:
        >>> k, mean, variance, third = (np.array([x]) for x in (5.0, 4.0, 2.0, 0.0))
        >>> [x.round(3).tolist() for x in match_shifted_binomial(k, mean, variance, third)]
        [[5.0], [8.0], [0.5]]
    """
    free = has_freedom(expected, variance)
    spread = np.where(free, variance, 1.0)
    # A sum of Bernoulli variables has |third| <= variance, so this is a probability. Below 1e-9
    # the binomial is a Poisson to double precision.
    success = np.clip((1.0 - np.where(free, third, 0.0) / spread) / 2.0, 1e-9, 1.0 - 1e-9)
    trials = spread / (success * (1.0 - success))
    return k - (expected - trials * success), trials, success


def _sum_from(k: Floats, trials: Floats, success: Floats) -> Floats:
    """Probability of k or more, with k and trials any real numbers.

    Beyond the last possible count the tail is cut, not negative.
    """
    room = np.maximum(trials - k + 1.0, 1e-3)
    inside = special.betainc(np.maximum(k, 1e-9), room, success)
    return np.asarray(np.where(k <= 0, 1.0, inside), np.float64)


def compute_mid_p(
    k: Floats, expected: Floats, variance: Floats, third: Floats
) -> tuple[Floats, Floats]:
    """Upper and lower mid-p-value: each tail, of which what was seen counts half.

    Counting all of what was seen makes small counts too shy; with half of it the p-value has mean
    one half under the null, as a continuous one has. Shapes as in the tails.

    Source:
        Lancaster 1961; Hwang & Yang 2001 for its error rates in tables.

    Example:
        >>> one = np.array([1.0])
        >>> upper, lower = compute_mid_p(4 * one, 4 * one, 3 * one, 1.5 * one)
        >>> round(float((upper + lower)[0]), 9)
        1.0
    """
    lower, below = (_compute_lower_tail(x, expected, variance, third) for x in (k, k - 1.0))
    # Half of what was seen: the mean of the tails with it and without it.
    return compute_upper_mid_p(k, expected, variance, third), (lower + below) / 2.0


def compute_upper_mid_p(k: Floats, expected: Floats, variance: Floats, third: Floats) -> Floats:
    """The first of `compute_mid_p`, at half the cost.

    Example:
        >>> one = np.array([1.0])
        >>> round(float(compute_upper_mid_p(4 * one, 4 * one, 3 * one, 0 * one)[0]), 2)
        0.5
    """
    upper, beyond = (_compute_upper_tail(x, expected, variance, third) for x in (k, k + 1.0))
    return (upper + beyond) / 2.0


def refine_mid_p(
    mid_p: tuple[Floats, Floats], k: Floats, n: Floats, table: tuple[Floats, Floats]
) -> tuple[Floats, Floats]:
    """Exact mid-p-values of small cells in one table, where the approximate ones speak.

    At the end of what the margins of a lone small table allow, three moments do not tell the tail;
    the hypergeometric distribution does.

    Args:
        mid_p: Result of `compute_mid_p`, each of shape (cells,).
        k: Observed conversions, shape (cells,).
        n: Rows of the cell, shape (cells,).
        table: Rows and conversions of the only stratum, 0 where a cell lies in several.

    Returns:
        The same, exact where the smaller of both is at most `REFINED_BELOW`, the cell lies in one
        stratum and the variance of its count is at most `REFINED_VARIANCE`.

    Example:
        >>> one = np.ones(1)
        >>> upper, _ = refine_mid_p((0.001 * one, 0.999 * one), 5 * one, 5 * one,
        ...                         (20 * one, 6 * one))
        >>> round(float(upper[0]), 6)  # 6 / 15504 / 2
        0.000193
    """
    rows, hits = table
    share = np.divide(n, rows, out=np.zeros_like(n), where=rows > 1)
    variance = share * (1.0 - share) * hits * (rows - hits) / np.maximum(rows - 1.0, 1.0)
    upper, lower = (one.copy() for one in mid_p)
    chosen = (
        (rows > 1) & (variance <= REFINED_VARIANCE) & (np.minimum(upper, lower) <= REFINED_BELOW)
    )
    is_high = chosen & (upper <= lower)
    is_low = chosen & ~is_high
    upper[is_high] = _sum_hypergeometric(*(x[is_high] for x in (k, n, rows, hits)))
    lower[is_high] = 1.0 - upper[is_high]
    # Few conversions in the cell are many failures.
    lower[is_low] = _sum_hypergeometric(*(x[is_low] for x in (n - k, n, rows, rows - hits)))
    upper[is_low] = 1.0 - lower[is_low]
    return upper, lower


def describe_ends(n: Floats, rows: Floats, hits: Floats) -> dict[str, Floats]:
    """What the margins of two-by-two tables allow at the utmost, and how probable that is.

    Args:
        n: Rows of the cell in each table, shape (tables,).
        rows: Rows of the table.
        hits: Conversions in the table.

    Returns:
        least and most, the ends of the conversions in the cell; log_least and log_most, logarithms
        of their probabilities under no effect. All four add up over independent tables.

    Example:
        >>> two = np.array([2.0])
        >>> ends = describe_ends(two, np.array([6.0]), two)
        >>> float(ends["most"][0]), round(float(np.exp(ends["log_most"][0])), 6)  # 1 of 15 pairs
        (2.0, 0.066667)
    """
    most, log_most = _describe_end(n, rows, hits)
    # As few conversions as can be are as many failures.
    failures, log_least = _describe_end(n, rows, rows - hits)
    return {"least": n - failures, "most": most, "log_least": log_least, "log_most": log_most}


def _describe_end(n: Floats, rows: Floats, hits: Floats) -> tuple[Floats, Floats]:
    """The most hits among n of the rows: choose(larger, smaller) of choose(rows, smaller) ways."""
    smaller, larger = np.minimum(n, hits), np.maximum(n, hits)
    ways = special.gammaln(larger + 1.0) - special.gammaln(larger - smaller + 1.0)
    of = special.gammaln(rows + 1.0) - special.gammaln(rows - smaller + 1.0)
    return smaller, np.asarray(np.minimum(ways - of, 0.0), np.float64)


def settle_ends(
    mid_p: tuple[Floats, Floats], k: Floats, ends: tuple[Floats, Floats, Floats, Floats]
) -> tuple[Floats, Floats]:
    """Exact mid-p-values of cells whose count lies where their margins end.

    Beyond an end there is nothing, so half the probability of the end itself is the whole tail,
    and that is a product over strata. Three moments tell it worst: in several small strata the
    approximation was 0.007 to 2.7 times the exact tail where that is 0.01 to 0.05.

    Args:
        mid_p: Upper and lower mid-p-values, each of shape (cells,).
        k: Observed conversions, shape (cells,).
        ends: least, most, log_least and log_most of `describe_ends`, added up over strata.

    Example:
        >>> one = np.ones(1)
        >>> ends = (0 * one, 2 * one, np.log(0.4) * one, np.log(0.1) * one)
        >>> [round(float(p[0]), 6) for p in settle_ends((0.5 * one, 0.5 * one), 2 * one, ends)]
        [0.05, 0.95]
    """
    least, most, log_least, log_most = ends
    at_least, at_most = (k == least) & (least < most), (k == most) & (least < most)
    low, high = np.exp(log_least) / 2.0, np.exp(log_most) / 2.0
    upper = np.where(at_most, high, np.where(at_least, 1.0 - low, mid_p[0]))
    lower = np.where(at_least, low, np.where(at_most, 1.0 - high, mid_p[1]))
    return upper, lower


def _sum_hypergeometric(k: Floats, n: Floats, rows: Floats, hits: Floats) -> Floats:
    """Chance of more than k hits among n of the rows, and half of that of k itself."""

    def log_choose(of: Floats, taken: Floats) -> Floats:
        parts = (special.gammaln(x + 1.0) for x in (of, taken, of - taken))
        whole, one, other = parts
        return np.asarray(whole - one - other, np.float64)

    first = np.exp(log_choose(hits, k) + log_choose(rows - hits, n - k) - log_choose(rows, n))
    term, total, at = np.ones_like(k), np.full_like(k, 0.5), k.copy()
    # Each probability from the one before, until none adds anything or the margins end.
    while (term > 1e-17 * total).any():
        term = term * (hits - at) * (n - at) / ((at + 1.0) * (rows - hits - n + at + 1.0))
        total += term
        at += 1.0
    return np.asarray(first * total, np.float64)


def compute_two_sided_p(k: Floats, expected: Floats, variance: Floats, third: Floats) -> Floats:
    """Two-sided mid-p-value: twice the smaller of `compute_mid_p`, shapes as there.

    Example:
        >>> one = np.array([1.0])
        >>> compute_two_sided_p(4 * one, 4 * one, 3 * one, 1.5 * one).round(1).tolist()
        [1.0]
    """
    upper, lower = compute_mid_p(k, expected, variance, third)
    return np.asarray(np.minimum(1.0, 2.0 * np.minimum(upper, lower)), np.float64)


def find_testable(expected: Floats, variance: Floats, third: Floats) -> NDArray[np.bool_]:
    """Cells large enough to be worth a test; decided from margins, before any outcome is seen.

    Source:
        The idea is Tarone's (1990): hypotheses that cannot become significant cost no budget.

    Example:
        >>> mean = np.array([0.2, 30.0])
        >>> find_testable(mean, 0.9 * mean, 0.7 * mean).tolist()
        [False, True]
    """
    imagined = np.ceil(LARGEST_PLAUSIBLE_LIFT * expected)
    upper, _ = compute_tail_probabilities(imagined, expected, variance, third)
    return np.asarray((variance > 0) & (upper <= TESTABLE_LEVEL), dtype=np.bool_)


def adjust_benjamini_hochberg(p: Floats, group: Ints, weight: Floats | None = None) -> Floats:
    """q-values of Benjamini and Hochberg within each group.

    Args:
        p: p-values, shape (tests,).
        group: Group of each test, any integers, shape (tests,).
        weight: How likely each is to be worth a look beside the others of its group, above 0 and
            independent of its p-value, shape (tests,); scaled to mean 1 within the group. All the
            same when not given.

    Returns:
        q-values in the order of the input, shape (tests,).

    Source:
        Benjamini & Hochberg 1995; with weights Genovese, Roeder & Wasserman 2006.

    Example:
        >>> adjust_benjamini_hochberg(np.array([0.01, 0.04, 0.5]), np.array([0, 0, 1])).tolist()
        [0.02, 0.04, 0.5]
        >>> adjust_benjamini_hochberg(
        ...     np.array([0.01, 0.04]), np.array([0, 0]), np.array([1.0, 4.0])).round(4).tolist()
        [0.025, 0.025]
    """
    if p.size == 0:
        return p.copy()
    if weight is not None:
        place = pl.Series(group).rank("dense").cast(pl.Int64).to_numpy() - 1
        mean = np.bincount(place, weight) / np.bincount(place)
        p = p * mean[place] / weight
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


def weigh_directions(pool_lift: Floats) -> tuple[Floats, Floats]:
    """How likely each cell is to be a winner, and a loser, by what other clients say of it.

    A weight may depend on anything but the client's own outcome. The best one for a shift of
    `log(lift)` is about `lift ** (z * sqrt(variance))` at the threshold z; for the cells that need
    it, of some ten conversions at z = 3, that is lift ** 8 to 10. Larger cells are found without.

    Args:
        pool_lift: Lift of the cell in the pool without the client itself, NaN where there is no
            pool, shape (cells,).

    Returns:
        Weights of "more than expected" and of "less than expected", each of shape (cells,).

    Source:
        Roeder & Wasserman 2009 (best weights); Ignatiadis et al. 2016 (independent information).

    Example:
        >>> up, down = weigh_directions(np.array([1.0, 1.25, np.nan]))
        >>> up.round(2).tolist(), down.round(2).tolist()
        ([1.0, 5.96, 1.5], [1.0, 0.17, 0.5])
    """
    is_told = np.isfinite(pool_lift)
    # Three squarings make the eighth power, to the same bytes wherever a cell stands.
    told = np.where(is_told, pool_lift, 1.0)
    for _ in range(POOL_SQUARINGS):
        told = told * told
    told = np.clip(told, 1.0 / LARGEST_WEIGHT, LARGEST_WEIGHT)
    up = np.where(is_told, told, UNTOLD_UP)
    down = np.where(is_told, 1.0 / told, 2.0 - UNTOLD_UP)
    return up, down


def adjust_directions(
    upper: Floats, lower: Floats, weights: tuple[Floats, Floats], group: Ints
) -> Floats:
    """q-value of each cell when both directions are hypotheses of one ledger.

    With even weights this is Benjamini and Hochberg's procedure on twice the smaller p-value.

    Args:
        upper: p-values of "no more than expected", shape (cells,).
        lower: p-values of "no less than expected", shape (cells,).
        weights: Of both; 0 where a direction is no question, and then it costs nothing.
        group: Ledger of each cell, shape (cells,).

    Returns:
        The smaller q-value of both directions, shape (cells,).

    Example:
        >>> two = np.ones(2)
        >>> adjust_directions(np.array([0.01, 0.5]), np.array([0.99, 0.5]), (two, two),
        ...                   np.array([0, 0])).tolist()
        [0.04, 0.6666666666666666]
    """
    p, weight = np.concatenate([upper, lower]), np.concatenate(weights)
    is_asked = weight > 0.0
    q = np.ones(p.size)
    q[is_asked] = adjust_benjamini_hochberg(
        p[is_asked], np.concatenate([group, group])[is_asked], weight[is_asked]
    )
    return np.minimum(q[: upper.size], q[upper.size :])
