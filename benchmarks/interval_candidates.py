"""Which interval of a lift: credible, plain, robust empirical Bayes, or adaptive.

Clients of ten dimensions with eight values each; what differs between the cases is how many values
truly convert differently. One ledger per client picks the cells that would be acts.

Run: python -m benchmarks.interval_candidates
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import special

from conversion_assets.detectors.cells import summarize_cells
from conversion_assets.detectors.ledger import _add_intervals, _estimate, _test
from conversion_assets.domain.config import LearningConfig
from conversion_assets.stats.adaptive import compute_adaptive_lift_interval

CLIENTS, DIMENSIONS, VALUES = 300, 10, 8
# Share of values with an effect, its log standard deviation, leads per client, base rate.
CASES = {
    "no effect, 400 leads": (0.0, 0.0, 400, 0.12),
    "few effects, 1,000 leads": (0.08, 0.6, 1000, 0.12),
    "few effects, 5,000 leads": (0.08, 0.5, 5000, 0.12),
    "few effects, 0.6 %": (0.08, 0.6, 50_000, 0.006),
    "every value differs": (1.0, 0.3, 2000, 0.12),
}
SETTINGS = LearningConfig()
NO_PREFERENCE = 1e4
Floats = NDArray[np.float64]
Interval = tuple[Floats, Floats]


def simulate(share: float, spread: float, leads: int, base: float) -> tuple[pl.DataFrame, Floats]:
    """Assessed cells of all clients, and the true lift of each."""
    rng = np.random.default_rng(0)
    shape = (CLIENTS, DIMENSIONS, VALUES)
    part = rng.gamma(1.0, 1.0, shape)
    n = np.maximum(np.round(leads * part / part.sum(axis=2, keepdims=True)), 1.0)
    effect = np.exp(rng.normal(0.0, spread, shape) * (rng.random(shape) < share))
    rate = np.minimum(base * effect, 0.95)
    k = rng.binomial(n.astype(int), rate)
    true = rate / ((n * rate).sum(axis=2, keepdims=True) / n.sum(axis=2, keepdims=True))
    client, dimension, value = (axis.ravel() for axis in np.indices(shape))
    counts = pl.DataFrame(
        {
            "client": client * DIMENSIONS + dimension,
            "value": value,
            "n": n.astype(int).ravel(),
            "k": k.ravel(),
            "base_n": np.repeat(n.sum(axis=2).astype(int), VALUES),
            "base_k": np.repeat(k.sum(axis=2), VALUES),
        }
    )
    cells = summarize_cells(counts).with_columns(
        counts["base_n"],
        counts["base_k"],
        client=pl.Series(client),
        dimension=pl.Series(dimension).cast(pl.String),
        pattern=pl.lit("who"),
        naive_expected="expected",
        prior_lift=pl.lit(1.0),
        is_repeated=pl.lit(value=False),
    )
    return _add_intervals(_estimate(cells, SETTINGS), SETTINGS), true.ravel()


def list_candidates(cells: pl.DataFrame, true: Floats) -> Iterator[tuple[str, Interval, Floats]]:
    """Name, interval, and log width of each candidate.

    The robust one is told the second moment of the true lifts, which it would have to estimate.
    """
    judged = _test(cells, SETTINGS)
    k, expected, variance, third = (
        cells[c].to_numpy().astype(float) for c in ("k", "expected", "variance", "third")
    )
    spread = max(float(np.sqrt(np.mean((true - 1.0) ** 2))), 0.01)
    one = np.ones_like(k)
    moments = (expected, variance, third)
    ends = {
        "plain": compute_adaptive_lift_interval(k, moments, one, NO_PREFERENCE * one, 0.9),
        "credible": _columns(cells, "credible_lift_low", "credible_lift_high"),
        "robust": bound_robustly(k, expected, variance, spread),
        "adaptive": _columns(cells, "lift_low", "lift_high"),
        "in use": _columns(judged, "lift_low", "lift_high"),
    }
    for name, (low, high) in ends.items():
        yield name, (low, high), np.log(np.clip(high, 1e-2, 1e3) / np.maximum(low, 1e-2))


def _columns(cells: pl.DataFrame, low: str, high: str) -> Interval:
    return cells[low].to_numpy(), cells[high].to_numpy()


def bound_robustly(k: Floats, expected: Floats, variance: Floats, spread: float) -> Interval:
    """Armstrong, Kolesar & Plagborg-Moller 2022, on the lift with a normal error."""
    free = np.maximum(variance, 1e-9)
    error = np.sqrt(free) / np.maximum(expected, 1e-9)
    weight = spread**2 / (spread**2 + error**2)
    middle = 1.0 + weight * (k / np.maximum(expected, 1e-9) - 1.0)
    reach = np.interp((error / spread) ** 2, *_tabulate_reach()) * weight * error
    return middle - reach, middle + reach


def _tabulate_reach() -> tuple[Floats, Floats]:
    """Critical value by the second moment of the bias over the error, for a miss of 10 %."""
    reaches = np.geomspace(1.645, 60.0, 300)
    squares = np.r_[0.0, np.geomspace(1e-3, 1e4, 1500)]
    bias = np.sqrt(squares)
    moments = []
    for reach in reaches:
        miss = special.ndtr(bias - reach) + special.ndtr(-bias - reach)
        # The worst distribution has two points, of which one may be 0: a concave majorant.
        slope = (miss[1:] - miss[0]) / squares[1:]
        top = int(slope.argmax()) + 1
        worst = np.where(squares < squares[top], miss[0] + squares * slope[top - 1], miss)
        moments.append(np.interp(0.1, worst, squares))
    return np.array(moments), reaches


def main() -> None:
    """Print coverage of all cells, of large effects and of chosen cells, and the width."""
    heads = ("all", "effects", "chosen", "width", "of chosen")
    print(f"{'case':26} {'interval':10} " + " ".join(f"{h:>9}" for h in heads))
    for case, (share, spread, leads, base) in CASES.items():
        cells, true = simulate(share, spread, leads, base)
        judged = _test(cells, SETTINGS)
        chosen = (judged["q_value"] <= SETTINGS.act_q).to_numpy()
        large = np.abs(np.log(true)) > np.log(1.3)
        typical = (cells["expected"] > 3).to_numpy()
        plain = None
        for name, (low, high), width in list_candidates(cells, true):
            plain = width if plain is None else plain
            covers = (low <= true) & (true <= high)
            figures = (
                covers.mean(),
                covers[large].mean() if large.any() else np.nan,
                covers[chosen].mean() if share else np.nan,
                np.median(width[typical]) / np.median(plain[typical]),
                np.median(width[chosen]) / np.median(plain[chosen]) if share else np.nan,
            )
            print(f"{case:26} {name:10} " + " ".join(f"{f:9.3f}" for f in figures))


if __name__ == "__main__":
    main()
