"""How often the forward record takes the verdict of true claims and of noise.

`python -m benchmarks.forward_record` prints the table of docs/decisions/forward-record.md: claims
of three sizes, a year of windows, the share that ever loses and the share that is lost at its end,
beside the simpler rule "forward lift more likely gone than not".
"""

import numpy as np

from conversion_assets.evaluation.forward import LEAST_EXPECTED, decide_status
from conversion_assets.stats.predictive import compute_forward_lift, compute_log_evidence_against

WINDOWS = 13
SHARE = 0.1
"""Share of a client's conversions that falls into the cell without effect."""
BASE_RATE = 0.1
Z90 = 1.6449


def simulate(
    claimed: float, spread: float, true: float, per_window: float, *, claims: int, seed: int
) -> dict[str, float]:
    """Shares of `claims` claims of one lift that lose their verdict within a year.

    Args:
        claimed: Lift of the claim.
        spread: Standard deviation of its logarithm.
        true: Lift in truth; 1 is noise. 0: drawn from the claim, as a claim says of itself.
        per_window: Conversions that a window expects of the cell without effect.
        claims: Number of claims.
        seed: Of the random stream.
    """
    generator = np.random.default_rng(seed)
    drawn = claimed * np.exp(spread * generator.standard_normal(claims))
    lift = drawn if true == 0 else np.full(claims, true)
    low, high = (np.full(claims, claimed * np.exp(s * Z90 * spread)) for s in (-1, 1))
    expected, variance, k, base_k = (np.zeros(claims) for _ in range(4))
    ever, ever_simple = np.zeros(claims, bool), np.zeros(claims, bool)
    lost = simple = ever
    for _ in range(WINDOWS):
        base_n = per_window / SHARE / BASE_RATE
        new_base_k = np.full(claims, base_n * BASE_RATE)
        new_k = generator.binomial(int(per_window / BASE_RATE), np.minimum(lift * BASE_RATE, 1.0))
        new_expected = np.full(claims, per_window)
        new_variance = new_expected * (1 - SHARE) * (1 - BASE_RATE)
        expected, variance = expected + new_expected, variance + new_variance
        k, base_k = k + new_k, base_k + new_base_k
        against = compute_log_evidence_against(k, expected, variance, base_k, (low, high))
        above = compute_forward_lift(k, expected, variance, base_k, 0.9)[3]
        on_side = above if claimed > 1 else 1 - above
        lost = decide_status(expected, on_side, against) == "lost"
        simple = (on_side < 0.5) & (expected >= LEAST_EXPECTED)
        ever, ever_simple = ever | lost, ever_simple | simple
    return {
        "ever": float(ever.mean()),
        "end": float(lost.mean()),
        "simple_ever": float(ever_simple.mean()),
        "simple_end": float(simple.mean()),
    }


def main() -> None:
    """Print the table."""
    print("| claimed | true | conversions a window | ever lost | at the end | simple: ever | end |")
    print("|---|---|---|---|---|---|---|")
    for claimed, spread in ((1.3, 0.10), (1.6, 0.15), (2.0, 0.20), (0.6, 0.15)):
        for true in (0.0, 1.0):
            for per_window in (2.0, 5.0, 20.0):
                found = simulate(claimed, spread, true, per_window, claims=20_000, seed=1)
                name = "as claimed" if true == 0 else "none"
                print(
                    f"| {claimed} | {name} | {per_window:.0f} | {found['ever']:.1%} "
                    f"| {found['end']:.1%} | {found['simple_ever']:.1%} "
                    f"| {found['simple_end']:.1%} |"
                )


if __name__ == "__main__":
    main()
