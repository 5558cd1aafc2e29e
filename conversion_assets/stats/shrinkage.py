"""Empirical-Bayes shrinkage of many small rates towards what they are expected to be.

Each cell has k conversions of n and a prior mean rate. The true lift of a cell over that mean has
a spread of its own: most cells have next to none, a few a large one. How common each spread is
among the cells of a group (a client and a dimension) is learned from the group itself, starting
from a heavy-tailed guess, so that noise is shrunk hard and a real exception is left standing.

Source:
    Stephens 2017, "False discovery rates: a new deal" (a mixture of spreads fitted by EM with a
    Dirichlet prior), for beta-binomial counts as in Robinson's empirical-Bayes series.
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
# Before data the spreads follow a half-Cauchy of this scale: ordinary lifts are 1 +- 0.2, and
# doubled rates are rare without being unthinkable. The guess counts as much as 5 cells. Both are
# the best compromise between many small and few large effects in docs/decisions/shrinkage.md.
SPREAD_SCALE = 0.2
PRIOR_CELLS = 5.0
# Steps of the fit: after 30 no weight of the groups tried there moved by more than 1 %.
FIT_STEPS = 30


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
    """Posterior weights of the candidate spreads for each cell.

    Args:
        k: Conversions, shape (cells,).
        n: Sample, shape (cells,).
        prior_mean: Rate expected before the cell's own data, in (0, 1), shape (cells,).
        group: Group of each cell, 0..groups-1, shape (cells,).
        groups: Number of groups.

    Returns:
        Weights of shape (cells, len(SPREADS)); rows sum to 1.

    Example:
        >>> k = np.append(np.full(9, 100.0), 300.0)
        >>> weights = weigh_spreads(k, np.full(10, 1000.0), np.full(10, 0.1),
        ...                         np.zeros(10, dtype=int), 1)
        >>> bool(weights[0, :7].sum() > 0.9), bool(weights[9, 8:].sum() > 0.9)
        (True, True)
    """
    mean = _clip_rate(prior_mean)[:, None]
    strength = compute_prior_strength(mean, SPREADS[None, :])
    prior_a, prior_b = strength * mean, strength * (1.0 - mean)
    log_likelihood = special.betaln(prior_a + k[:, None], prior_b + (n - k)[:, None])
    log_likelihood -= special.betaln(prior_a, prior_b)
    log_likelihood -= log_likelihood.max(axis=1, keepdims=True)
    likelihood = np.exp(log_likelihood)
    guess = get_prior_shares()
    cells = np.bincount(group, minlength=groups)[:, None]
    shares = np.tile(guess, (groups, 1))
    for _ in range(FIT_STEPS):
        weights = _weigh(shares[group], likelihood)
        for j in range(SPREADS.size):
            found = np.bincount(group, weights[:, j], groups)
            shares[:, j] = (found + PRIOR_CELLS * guess[j]) / (cells[:, 0] + PRIOR_CELLS)
    return _weigh(shares[group], likelihood)


def compute_typical_spread(weights: Floats, group: Ints, groups: int) -> Floats:
    """Spread that lifts have among the other cells of each cell's group, with the guess.

    The geometric mean over the candidate spreads. The cell itself is left out, so that what is
    expected of it does not depend on it.

    Args:
        weights: Result of `weigh_spreads`, shape (cells, len(SPREADS)).
        group: Group of each cell, 0..groups-1, shape (cells,).
        groups: Number of groups.

    Returns:
        Shape (cells,).

    Example:
        >>> weights = np.tile(get_prior_shares(), (3, 1))
        >>> alone = compute_typical_spread(weights, np.array([0, 1, 1]), 2)
        >>> bool(abs(alone[0] - alone[1]) < 1e-9)
        True
    """
    own = _row_sum(weights * np.log(SPREADS)[None, :])
    guess = float(_row_sum((get_prior_shares() * np.log(SPREADS))[None, :])[0])
    others = np.bincount(group, own, groups)[group] - own
    count = np.bincount(group, minlength=groups)[group] - 1.0
    return np.asarray(np.exp((others + PRIOR_CELLS * guess) / (count + PRIOR_CELLS)))


def get_prior_shares() -> Floats:
    """How common each spread is before any data, shape (len(SPREADS),).

    A half-Cauchy; the grid is geometric, so each point stands for a width like itself.
    """
    density = SPREADS / (SPREADS**2 + SPREAD_SCALE**2)
    return np.asarray(density / density.sum())


def _weigh(shares: Floats, likelihood: Floats) -> Floats:
    joint = shares * likelihood
    return np.asarray(joint / _row_sum(joint)[:, None])


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
