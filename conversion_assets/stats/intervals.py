"""Credible intervals of rates and of ratios of rates."""

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]


def compute_beta_interval(a: Floats, b: Floats, mass: float) -> tuple[Floats, Floats]:
    """Equal-tailed interval of Beta(a, b), elementwise.

    Example:
        >>> low, high = compute_beta_interval(np.array([1.0]), np.array([1.0]), 0.9)
        >>> (round(float(low[0]), 6), round(float(high[0]), 6))
        (0.05, 0.95)
    """
    tail = (1.0 - mass) / 2.0
    low, high = (np.asarray(special.betaincinv(a, b, t), np.float64) for t in (tail, 1.0 - tail))
    return low, high


def match_beta(mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """Parameters of the beta distribution with this mean and variance, elementwise.

    Example:
        >>> a, b = match_beta(np.array([0.5]), np.array([1 / 12]))
        >>> (round(float(a[0]), 6), round(float(b[0]), 6))
        (1.0, 1.0)
    """
    strength = mean * (1.0 - mean) / variance - 1.0
    return mean * strength, (1.0 - mean) * strength


def compute_log_ratio_cumulants(
    a: Floats, b: Floats, other_a: Floats, other_b: Floats
) -> tuple[Floats, Floats, Floats]:
    """First three cumulants of log(X / Y), X ~ Beta(a, b), Y ~ Beta(other_a, other_b).

    The cumulants of log X are differences of polygamma functions, and those of independent
    variables add.
    """
    first = special.digamma(a) - special.digamma(a + b)
    first -= special.digamma(other_a) - special.digamma(other_a + other_b)
    second = special.polygamma(1, a) - special.polygamma(1, a + b)
    second += special.polygamma(1, other_a) - special.polygamma(1, other_a + other_b)
    third = special.polygamma(2, a) - special.polygamma(2, a + b)
    third -= special.polygamma(2, other_a) - special.polygamma(2, other_a + other_b)
    return first, second, third


def compute_ratio_quantile(cumulants: tuple[Floats, Floats, Floats], probability: float) -> Floats:
    """Quantile of a ratio of rates by the Cornish-Fisher expansion of its logarithm.

    Source:
        Cornish & Fisher 1938; skewness only, which is what a log-beta needs.

    Example:
        >>> one = np.array([50.0]); rest = np.array([500.0])
        >>> c = compute_log_ratio_cumulants(one, rest, one, rest)
        >>> round(float(compute_ratio_quantile(c, 0.5)[0]), 6)
        1.0
    """
    mean, variance, third = cumulants
    spread = np.sqrt(variance)
    z = float(special.ndtri(probability))
    skewness = third / spread**3
    return np.asarray(np.exp(mean + spread * (z + (z * z - 1.0) * skewness / 6.0)), np.float64)


# Below this many conversions, or this many that did not convert, the logarithm of a rate is too
# skew for an expansion; above both the expansion is within 0.01 of the integral.
FEWEST_FOR_EXPANSION = 8.0


def compute_probability_greater(a: Floats, b: Floats, other_a: Floats, other_b: Floats) -> Floats:
    """Probability that X ~ Beta(a, b) exceeds Y ~ Beta(other_a, other_b), elementwise.

    By the expansion of the logarithm of X / Y, and by integration where either is too skew.

    Example:
        >>> one, two = np.array([1.0]), np.array([2.0])
        >>> round(float(compute_probability_greater(one, two, two, one)[0]), 4)
        0.1667
    """
    found = compute_probability_above_one(compute_log_ratio_cumulants(a, b, other_a, other_b))
    skew = np.minimum(np.minimum(a, other_a), np.minimum(b, other_b)) < FEWEST_FOR_EXPANSION
    found[skew] = _integrate_greater(a[skew], b[skew], other_a[skew], other_b[skew])
    return found


def _integrate_greater(a: Floats, b: Floats, other_a: Floats, other_b: Floats) -> Floats:
    """Mean of Y's distribution function over the quantiles of X, by Gauss and Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    total = np.zeros_like(a)
    for node, weight in zip((nodes + 1.0) / 2.0, weights / 2.0, strict=True):
        total += weight * special.betainc(other_a, other_b, special.betaincinv(a, b, node))
    return total


def compute_probability_above_one(cumulants: tuple[Floats, Floats, Floats]) -> Floats:
    """Probability that a ratio of rates exceeds 1, by the Edgeworth expansion of its logarithm.

    Example:
        >>> one = np.array([50.0]); rest = np.array([500.0])
        >>> c = compute_log_ratio_cumulants(one, rest, one, rest)
        >>> round(float(compute_probability_above_one(c)[0]), 6)
        0.5
    """
    mean, variance, third = cumulants
    spread = np.sqrt(variance)
    z = -mean / spread
    skewness = third / spread**3
    density = np.exp(-z * z / 2.0) / np.sqrt(2.0 * np.pi)
    below = special.ndtr(z) - density * skewness / 6.0 * (z * z - 1.0)
    return np.asarray(np.clip(1.0 - below, 0.0, 1.0), np.float64)
