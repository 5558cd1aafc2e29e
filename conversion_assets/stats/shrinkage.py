"""Empirical-Bayes shrinkage of many small rates towards what they are expected to be.

Each cell has k conversions of n and a prior mean rate; the cells of one group (a client and a
dimension) share one unknown spread: the standard deviation of their true lifts. The spread is not
fixed but averaged over, with weights from the group's marginal beta-binomial likelihood, so that a
group of few cells says little about it and one of many says much.

Source:
    Robinson, empirical-Bayes series (beta-binomial); Efron 2010, ch. 1; the averaging over the
    spread follows Kass & Steffey 1989.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from conversion_assets.stats.intervals import match_beta

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Standard deviations of the true lift that are considered: from "all alike" to "twice and none".
# Steps of about 1.5: finer grids moved no posterior mean by more than 0.3 % of its value.
SPREADS: Floats = np.array([0.01, 0.02, 0.035, 0.05, 0.08, 0.12, 0.18, 0.27, 0.4, 0.6, 0.9, 1.3])
# Before data, lifts of 1 +- 0.3 are ordinary and those beyond 2 are rare: a half-normal of 0.3.
SPREAD_SCALE = 0.3


@dataclass(frozen=True)
class ShrunkRates:
    """Posterior of each cell's rate, a beta distribution; all of shape (cells,)."""

    a: Floats
    b: Floats
    own_weight: Floats

    @property
    def mean(self) -> Floats:
        """Posterior mean rate."""
        return self.a / (self.a + self.b)


def weigh_spreads(k: Floats, n: Floats, prior_mean: Floats, group: Ints, groups: int) -> Floats:
    """Posterior weights of the candidate spreads in each group of cells.

    Args:
        k: Conversions, shape (cells,).
        n: Sample, shape (cells,).
        prior_mean: Rate expected before the cell's own data, in (0, 1), shape (cells,).
        group: Group of each cell, 0..groups-1, shape (cells,).
        groups: Number of groups.

    Returns:
        Weights of shape (groups, len(SPREADS)); rows sum to 1.

    Example:
        >>> alike = weigh_spreads(np.full(9, 100.0), np.full(9, 1000.0), np.full(9, 0.1),
        ...                       np.zeros(9, dtype=int), 1)
        >>> bool(alike[0, :4].sum() > 0.5)
        True
    """
    mean = _clip_rate(prior_mean)[:, None]
    strength = compute_prior_strength(mean, SPREADS[None, :])
    prior_a, prior_b = strength * mean, strength * (1.0 - mean)
    log_likelihood = special.betaln(prior_a + k[:, None], prior_b + (n - k)[:, None])
    log_likelihood -= special.betaln(prior_a, prior_b)
    # The grid is geometric, so each point stands for a width proportional to itself.
    total = np.log(SPREADS) - 0.5 * (SPREADS / SPREAD_SCALE) ** 2 + np.zeros((groups, 1))
    for j in range(SPREADS.size):
        total[:, j] += np.bincount(group, log_likelihood[:, j], groups)
    total -= total.max(axis=1, keepdims=True)
    weights = np.exp(total)
    return np.asarray(weights / _row_sum(weights)[:, None])


def shrink_rates(
    k: Floats, n: Floats, prior_mean: Floats, weights: Floats, scale: Floats | None = None
) -> ShrunkRates:
    """Posterior rates of cells, averaged over the spread of their true lifts.

    Args:
        k: Conversions, shape (cells,).
        n: Sample, shape (cells,).
        prior_mean: Rate expected before the cell's own data, in (0, 1), shape (cells,).
        weights: Weights of the spreads for each cell, shape (cells, len(SPREADS)).
        scale: Factor on the spread of each cell, shape (cells,); 1 when not given.

    Returns:
        Beta posteriors matched in mean and variance to the mixture over the spread.

    Example:
        >>> one, two, prior = np.array([1.0]), np.array([2.0]), np.array([0.1])
        >>> weights = weigh_spreads(one, two, prior, np.array([0]), 1)
        >>> bool(0.1 < shrink_rates(one, two, prior, weights).mean[0] < 0.5)
        True
    """
    mean = _clip_rate(prior_mean)[:, None]
    factor = np.ones(k.size) if scale is None else scale
    spreads = np.minimum(SPREADS[None, :] * factor[:, None], SPREADS[-1])
    strength = compute_prior_strength(mean, spreads)
    trials = strength + n[:, None]
    means = (strength * mean + k[:, None]) / trials
    variances = means * (1.0 - means) / (trials + 1.0)
    posterior_mean = _row_sum(weights * means)
    deviation = means - posterior_mean[:, None]
    a, b = match_beta(posterior_mean, _row_sum(weights * (variances + deviation**2)))
    return ShrunkRates(a=a, b=b, own_weight=_row_sum(weights * (n[:, None] / trials)))


def compute_prior_strength(mean: Floats, spread: Floats) -> Floats:
    """Trials that a beta prior is worth when the lift's standard deviation is `spread`.

    Beta(M p, M (1 - p)) has a relative variance of (1 - p) / (p (M + 1)).

    Example:
        >>> float(compute_prior_strength(np.array(0.1), np.array(1.0)))
        8.0
    """
    return np.maximum((1.0 - mean) / (mean * spread**2) - 1.0, 0.5)


def _clip_rate(rate: Floats) -> Floats:
    return np.asarray(np.clip(rate, 1e-9, 1.0 - 1e-9))


def _row_sum(values: Floats) -> Floats:
    """Sum over the spreads in a fixed order, so that a row never depends on the array's size."""
    total = values[:, 0].copy()
    for j in range(1, values.shape[1]):
        total += values[:, j]
    return total
