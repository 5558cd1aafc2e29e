"""True claims keep their verdict, noise loses it: the rates stated in the decision record."""

import pytest

from benchmarks.forward_record import simulate

# Of 4,000 claims a share of 10 % has a standard error of 0.5 points.
CLAIMS = 4000


@pytest.mark.parametrize("per_window", [2.0, 5.0, 20.0])
@pytest.mark.parametrize(
    ("claimed", "spread"), [(1.3, 0.10), (1.6, 0.15), (2.0, 0.20), (0.6, 0.15)]
)
def test_at_most_a_tenth_of_true_claims_is_ever_lost(claimed, spread, per_window):
    found = simulate(claimed, spread, 0.0, per_window, claims=CLAIMS, seed=2)
    assert found["ever"] <= 0.11
    assert found["end"] <= 0.05


@pytest.mark.parametrize(("claimed", "spread"), [(1.6, 0.15), (2.0, 0.20), (0.6, 0.15)])
def test_noise_mostly_loses_its_verdict(claimed, spread):
    found = simulate(claimed, spread, 1.0, 5.0, claims=CLAIMS, seed=3)
    assert found["ever"] >= 0.8
    assert found["end"] >= 0.7
    # The rule "rather gone than not" leaves half of it standing.
    assert found["simple_end"] <= 0.55
