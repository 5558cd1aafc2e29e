"""What a stated rate and a stated lift say about a sample that is yet to come."""

import numpy as np
from numpy.typing import NDArray
from scipy import special

from conversion_assets.stats.multiplicity import match_shifted_binomial

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# A 90 % interval of a normal distribution reaches this many standard deviations to either side.
_Z90 = float(special.ndtri(0.95))
# Points that stand for a stated lift: midpoints of 61 equal parts of its distribution. The mean of
# the ratio under a true statement, which should be 1, is 1.06 with 15 points and 1.02 with 61.
_LIFT_POINTS = special.ndtri((np.arange(61) + 0.5) / 61)


def compute_beta_binomial_tails(
    k: Floats, n: Floats, a: Floats, b: Floats
) -> tuple[Floats, Floats]:
    """Tails of the beta-binomial count that a Beta(a, b) rate predicts for a sample of n.

    Args:
        k: Observed counts, whole numbers in 0..n, shape (cells,).
        n: Samples, shape (cells,).
        a: First parameter of the rate's posterior, shape (cells,).
        b: Second parameter, shape (cells,).

    Returns:
        Probability of k or more and of k or fewer, each of shape (cells,).

    Example:
        >>> one = np.array([1.0])
        >>> upper, lower = compute_beta_binomial_tails(one, 2 * one, one, one)
        >>> (round(float(upper[0]), 6), round(float(lower[0]), 6))
        (0.666667, 0.666667)
    """
    counts = k.astype(np.int64)
    cell = np.repeat(np.arange(k.size), counts + 1)
    start = np.repeat(np.cumsum(counts + 1) - counts - 1, counts + 1)
    j = (np.arange(cell.size) - start).astype(np.float64)
    cn, ca, cb = n[cell], a[cell], b[cell]
    log_p = (
        special.gammaln(cn + 1.0)
        - special.gammaln(j + 1.0)
        - special.gammaln(cn - j + 1.0)
        + special.betaln(ca + j, cb + cn - j)
        - special.betaln(ca, cb)
    )
    p = np.exp(log_p)
    lower = np.minimum(np.bincount(cell, p, k.size), 1.0)
    at = p[np.cumsum(counts + 1) - 1] if k.size else p
    return np.clip(1.0 - lower + at, 0.0, 1.0), lower


def is_inside_predictive_interval(
    k: Floats, n: Floats, mean: Floats, strength: Floats, mass: float
) -> Bools:
    """Whether a new sample's count lies in the equal-tailed predictive interval of a rate.

    The rate's posterior has this mean and this strength (a + b). The new sample has noise of its
    own, so the interval is that of the beta-binomial count, wider than the posterior's. Counts are
    whole numbers: the interval holds at least `mass`, for small samples more.

    Example:
        >>> one = np.array([1.0])
        >>> is_inside_predictive_interval(0 * one, 50 * one, 0.1 * one, 400 * one, 0.9).tolist()
        [False]
    """
    upper, lower = compute_beta_binomial_tails(k, n, mean * strength, (1.0 - mean) * strength)
    tail = (1.0 - mass) / 2.0
    return np.asarray((upper > tail) & (lower > tail), np.bool_)


def compute_forward_lift(
    k: Floats, expected: Floats, variance: Floats, base_k: Floats, mass: float
) -> tuple[Floats, Floats, Floats, Floats]:
    """Lift of a count over its expectation, from this sample alone.

    Given the sample's conversions, each falls into the cell with probability share x lift, where
    the share is expected / base_k; Jeffreys' prior on that probability. Where rates are high the
    count varies less than a binomial one; both parameters grow by the ratio of the variances.

    Args:
        k: Conversions of the cell, shape (cells,).
        expected: Those expected without any effect, shape (cells,).
        variance: Variance of the count without any effect, shape (cells,).
        base_k: Conversions of the whole sample, shape (cells,).
        mass: Mass of the interval.

    Returns:
        Lift, its low and high end, and the probability that it exceeds 1; NaN where nothing was
        expected or the cell is the whole sample.

    Example:
        >>> lift, low, high, p = compute_forward_lift(
        ...     *(np.array([x]) for x in (30.0, 20.0, 15.0, 100.0)), 0.9)
        >>> (float(lift[0]), bool(low[0] > 1.0), bool(p[0] > 0.95))
        (1.5, True, True)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        share = expected / base_k
        known = (expected > 0) & (variance > 0) & (share < 1.0)
        shrinks = np.where(known, variance / (expected * (1.0 - share)), 1.0)
        scale = 1.0 / np.clip(shrinks, 1e-3, 1.0)
        a = np.where(known, k * scale + 0.5, 1.0)
        b = np.where(known, np.maximum(base_k - k, 0.0) * scale + 0.5, 1.0)
        s = np.where(known, share, 0.5)
        tail = (1.0 - mass) / 2.0
        found = (
            k / expected,
            special.betaincinv(a, b, tail) / s,
            special.betaincinv(a, b, 1.0 - tail) / s,
            1.0 - special.betainc(a, b, s),
        )
    lift, low, high, above = (np.where(known, values, np.nan) for values in found)
    return lift, low, high, above


def state_claimed_lift(lift: Floats, rate: Floats, strength: Floats) -> tuple[Floats, Floats]:
    """90 % interval of the log-normal distribution that a claim says its lift has.

    Its mean is the lift, its relative variance that of the rate's posterior, a beta distribution
    of this mean and strength (a + b). The interval beside an estimate is another: it is to hold
    the truth of any cell, and says little about where in it the truth is likely to be.

    Example:
        >>> one = np.array([1.0])
        >>> low, high = state_claimed_lift(1.5 * one, 0.06 * one, 2000 * one)
        >>> bool(1.2 < low[0] < 1.5 < high[0] < 1.8)
        True
    """
    relative = (1.0 - rate) / (np.maximum(rate, 1e-12) * (strength + 1.0))
    spread = np.sqrt(np.log1p(relative))
    middle = np.maximum(lift, 1e-6) / np.sqrt(1.0 + relative)
    return middle * np.exp(-_Z90 * spread), middle * np.exp(_Z90 * spread)


def compute_log_evidence_against(
    k: Floats,
    expected: Floats,
    variance: Floats,
    base_k: Floats,
    interval: tuple[Floats, Floats],
) -> Floats:
    """Logarithm of how many times likelier a count is without effect than with a stated lift.

    The stated lift is a log-normal distribution with this 90 % interval; the count is binomial,
    its mean multiplied by the lift. Let the sample grow after the statement was made: where it is
    true the ratio is on average 1 at any time, so the chance that it ever reaches x is at most
    1 / x (Ville's inequality).

    The smaller of two ratios counts: that of the binomial with the mean and variance without
    effect, and that of the shifted binomial which has the third moment of one table as well. Each
    alone can be far above 1 on average where a cell holds much of a sample that converts often.

    Args:
        k: Conversions of the cell, shape (cells,).
        expected: Those expected without any effect, shape (cells,).
        variance: Variance of the count without any effect, shape (cells,).
        base_k: Conversions of the whole sample, shape (cells,).
        interval: Low and high end of the stated interval, each of shape (cells,).

    Returns:
        Shape (cells,); 0 where the sample says nothing.

    Source:
        Shafer et al. 2011 (test martingales); Grünwald, de Heide & Koolen 2024 (e-values).

    Example:
        >>> k, mean, variance, base_k, low, high = (
        ...     np.array([x]) for x in (20.0, 20.0, 16.0, 200.0, 1.5, 2.5))
        >>> e = compute_log_evidence_against(k, mean, variance, base_k, (low, high))
        >>> bool(e[0] > 2.0)
        True
    """
    free = (variance > 0) & (expected > 0)
    mean = np.where(free, expected, 1.0)
    spread = np.where(free, variance, 0.5)
    lift_low, lift_high = interval
    middle = (np.log(lift_high) + np.log(lift_low)) / 2.0
    width = (np.log(lift_high) - np.log(lift_low)) / (2.0 * _Z90)
    lifts = np.exp(middle[:, None] + width[:, None] * _LIFT_POINTS[None, :])
    success = np.clip(1.0 - spread / mean, 1e-9, 1.0 - 1e-9)
    plain = _compare_binomials(k, mean / success, success, lifts * success[:, None])
    # In one table variance = expected (1 - share) (1 - rate), and the skewness follows.
    share = np.clip(mean / np.maximum(base_k, mean), 0.0, 1.0 - 1e-9)
    rate = np.clip(1.0 - spread / (mean * (1.0 - share)), 0.0, 1.0)
    third = spread * (1.0 - 2.0 * rate) * (1.0 - 2.0 * share)
    hits, trials, success = match_shifted_binomial(k, mean, spread, third)
    raised = success[:, None] + (lifts - 1.0) * (mean / trials)[:, None]
    shifted = _compare_binomials(np.clip(hits, 0.0, trials), trials, success, raised)
    return np.where(free, -np.maximum(plain, shifted), 0.0)


def _compare_binomials(k: Floats, trials: Floats, success: Floats, raised: Floats) -> Floats:
    """Logarithm of the mean likelihood of k over the columns of `raised`, against `success`."""
    other = np.clip(raised, 1e-9, 1.0 - 1e-9)
    misses = np.maximum(trials - k, 0.0)[:, None]
    log_ratio = k[:, None] * np.log(other / success[:, None]) + misses * (
        np.log1p(-other) - np.log1p(-success)[:, None]
    )
    return np.asarray(special.logsumexp(log_ratio, axis=1) - np.log(other.shape[1]), np.float64)
