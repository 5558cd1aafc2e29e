"""How often intervals cover the truth of a randomised experiment with three arms.

Two arms convert alike, the third by a factor more. Arms are the only cells of their dimension.

Run: python -m benchmarks.experiment_coverage
"""

import numpy as np
import polars as pl

from conversion_assets.detectors.cells import summarize_cells
from conversion_assets.detectors.ledger import _add_intervals, _estimate
from conversion_assets.domain.config import LearningConfig
from conversion_assets.stats.intervals import compute_beta_interval

REPEATS, ARM, BASE = 600, 21_333, 0.006
CASES = {"64,000, x1.35": (1, 1.35), "128,000, x1.35": (2, 1.35), "256,000, x1.35": (4, 1.35),
         "640,000, x1.35": (10, 1.35), "64,000, x2": (1, 2.0), "256,000, x2": (4, 2.0),
         "64,000, no effect": (1, 1.0)}  # fmt: skip


def simulate(times: int, factor: float) -> tuple[pl.DataFrame, np.ndarray]:
    """Cells of all repeated experiments, ready to be estimated, and the arms' true rates."""
    rates = BASE * np.array([1.0, 1.0, factor])
    size = np.full((REPEATS, 3), ARM * times)
    k = np.random.default_rng(0).binomial(size, rates)
    counts = pl.DataFrame(
        {
            "client": np.repeat(np.arange(REPEATS), 3),
            "value": np.tile(["a", "b", "c"], REPEATS),
            "n": size.ravel(),
            "k": k.ravel(),
            "base_n": np.repeat(size.sum(axis=1), 3),
            "base_k": np.repeat(k.sum(axis=1), 3),
        }
    )
    cells = summarize_cells(counts).with_columns(
        counts["base_n"],
        counts["base_k"],
        pattern=pl.lit("what"),
        dimension=pl.lit("templates"),
        naive_expected="expected",
        prior_lift=pl.lit(1.0),
    )
    settings = LearningConfig()
    return _add_intervals(_estimate(cells, settings), settings), rates


def main() -> None:
    """Print coverage by arm, and how often an interval lies beyond the truth."""
    print(f"{'case':20} {'own rate':>16} {'shrunk rate':>16} {'lift':>16} {'beyond':>16}")
    for name, (times, factor) in CASES.items():
        cells, rates = simulate(times, factor)
        rate = np.tile(rates, REPEATS)
        lift = np.tile(rates / rates.mean(), REPEATS)
        k, n = (cells[c].to_numpy().astype(float) for c in ("k", "n"))
        own = compute_beta_interval(k + 0.5, n - k + 0.5, 0.9)
        low, high = cells["lift_low"].to_numpy(), cells["lift_high"].to_numpy()
        shares = [
            (own[0] <= rate) & (rate <= own[1]),
            (cells["low"].to_numpy() <= rate) & (rate <= cells["high"].to_numpy()),
            (low <= lift) & (lift <= high),
            np.where(lift > 1, low > lift, high < lift),
        ]
        words = (" ".join(f"{x:.2f}" for x in s.reshape(-1, 3).mean(axis=0)) for s in shares)
        print(f"{name:20} " + " ".join(f"{w:>16}" for w in words))


if __name__ == "__main__":
    main()
