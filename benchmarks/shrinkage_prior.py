"""Which prior on the spread of true lifts shrinks best: one spread per group, or a mixture.

Run: python -m benchmarks.shrinkage_prior
"""

import numpy as np
from numpy.typing import NDArray
from scipy import special

from conversion_assets.stats.intervals import compute_beta_interval
from conversion_assets.stats.shrinkage import (
    SPREADS,
    compute_prior_strength,
    shrink_rates,
    weigh_spreads,
)

GROUPS = 400
# Cells a group, share of cells with an effect, its log standard deviation, mean sample, base rate.
CASES = {
    "no effect": (8, 0.0, 0.0, 150, 0.12),
    "few effects, small cells": (8, 0.15, 0.5, 150, 0.12),
    "few effects, touches": (30, 0.1, 0.5, 300, 0.03),
    "few effects, large cells": (8, 0.15, 0.6, 1500, 0.12),
    "one hour of 24": (24, 0.04, 0.6, 800, 0.025),
    "every cell differs": (10, 1.0, 0.3, 200, 0.12),
}
Floats = NDArray[np.float64]


def weigh_one_spread(k: Floats, n: Floats, mean: Floats, group: NDArray[np.int64]) -> Floats:
    """The rejected rule: all cells of a group share one spread, half-normal (0.3) before data."""
    strength = compute_prior_strength(mean[:, None], SPREADS[None, :])
    a, b = strength * mean[:, None], strength * (1 - mean[:, None])
    log = special.betaln(a + k[:, None], b + (n - k)[:, None]) - special.betaln(a, b)
    total = np.tile(np.log(SPREADS) - 0.5 * (SPREADS / 0.3) ** 2, (GROUPS, 1))
    for j in range(SPREADS.size):
        total[:, j] += np.bincount(group, log[:, j], GROUPS)
    weights = np.exp(total - total.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True))[group]


def main() -> None:
    """Simulate the cases, and print error, coverage, and what is found."""
    rng = np.random.default_rng(0)
    print(f"{'case':26} {'prior':12} {'error/raw':>9} {'cover':>6} {'of found':>8} {'found':>6}")
    for name, (size, share, spread, sample, base) in CASES.items():
        group = np.repeat(np.arange(GROUPS), size)
        n = rng.poisson(sample * rng.gamma(1.0, 1.0, group.size)) + 1.0
        effect = np.exp(rng.normal(0.0, spread, group.size) - spread**2 / 2)
        lift = np.where(rng.random(group.size) < share, effect, 1.0)
        truth = np.minimum(base * lift, 0.95)
        k = rng.binomial(n.astype(int), truth).astype(float)
        mean = np.full(group.size, base)
        priors = {
            "one spread": weigh_one_spread(k, n, mean, group),
            "mixture": weigh_spreads(k, n, mean, group, GROUPS),
        }
        for label, weights in priors.items():
            shrunk = shrink_rates(k, n, mean, weights)
            low, high = compute_beta_interval(shrunk.a, shrunk.b, 0.9)
            covers, stands_out = (low <= truth) & (truth <= high), (low > base) | (high < base)
            is_large = np.abs(np.log(lift)) > 0.3
            error = np.sqrt(np.mean((shrunk.mean - truth) ** 2) / np.mean((k / n - truth) ** 2))
            found = f"{stands_out[is_large].mean():6.2f}" if is_large.any() else "     -"
            print(
                f"{name:26} {label:12} {error:9.2f} {covers.mean():6.3f} "
                f"{covers[stands_out].mean() if stands_out.any() else np.nan:8.2f} {found}"
            )


if __name__ == "__main__":
    main()
