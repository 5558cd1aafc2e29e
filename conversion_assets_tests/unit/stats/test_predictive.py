import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from conversion_assets.stats.predictive import (
    compute_beta_binomial_tails,
    compute_forward_lift,
    compute_log_evidence_against,
    is_inside_predictive_interval,
)


def array(*values):
    return np.array(values, dtype=np.float64)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 300), st.floats(0, 1), st.floats(0.05, 400), st.floats(0.05, 4000)
        ),
        max_size=6,
    )
)
def test_tails_are_those_of_scipy(cells):
    n = array(*(c[0] for c in cells))
    k = np.floor(n * array(*(c[1] for c in cells)))
    a, b = (array(*(c[i] for c in cells)) for i in (2, 3))
    upper, lower = compute_beta_binomial_tails(k, n, a, b)
    reference = [stats.betabinom(int(m), x, y) for m, x, y in zip(n, a, b, strict=True)]
    np.testing.assert_allclose(
        lower, [r.cdf(i) for r, i in zip(reference, k, strict=True)], atol=1e-7
    )
    np.testing.assert_allclose(
        upper, [r.sf(i - 1) for r, i in zip(reference, k, strict=True)], atol=1e-7
    )


@pytest.mark.parametrize("n", [0, 20, 200, 3000])
def test_predictive_intervals_hold_their_mass(n):
    draws, mean, strength = 4000, 0.08, 900.0
    generator = np.random.default_rng(n)
    rates = generator.beta(mean * strength, (1 - mean) * strength, draws)
    k = generator.binomial(n, rates).astype(np.float64)
    ones = np.ones(draws)
    inside = is_inside_predictive_interval(k, n * ones, mean * ones, strength * ones, 0.9)
    assert inside.mean() >= 0.885
    if n >= 200:
        assert inside.mean() <= 0.96


@pytest.mark.parametrize("lift", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("rate", [0.03, 0.4])
def test_forward_lift_intervals_cover(lift, rate):
    draws, n, base_n = 4000, 300, 2500
    generator = np.random.default_rng(7)
    # The base rate holds the cell: the rest makes up for it.
    rest_rate = (base_n * rate - n * rate * lift) / (base_n - n)
    k = generator.binomial(n, rate * lift, draws).astype(np.float64)
    rest_k = generator.binomial(base_n - n, rest_rate, draws)
    base_k = k + rest_k
    expected = n * base_k / base_n
    variance = expected * (1 - n / base_n) * (base_n - base_k) / (base_n - 1)
    found, low, high, above = compute_forward_lift(k, expected, variance, base_k, 0.9)
    covered = ((low <= lift) & (lift <= high)).mean()
    # The variance is that without effect: at rates of 40 % it is too large for winners, too small
    # for losers.
    assert (0.87 <= covered <= 0.96) if rate < 0.1 else (0.85 <= covered <= 0.99)
    assert abs(np.median(found) - lift) < 0.06
    if lift > 1:
        assert (above > 0.5).mean() > 0.95


def test_a_sample_without_expectation_says_nothing():
    nothing = array(0.0)
    values = compute_forward_lift(nothing, nothing, nothing, nothing, 0.9)
    assert all(np.isnan(v[0]) for v in values)
    claim = (array(1.2), array(2.0))
    assert compute_log_evidence_against(nothing, nothing, nothing, nothing, claim) == 0.0


@pytest.mark.parametrize("expected", [1.0, 4.0, 25.0])
def test_evidence_against_a_true_claim_is_one_on_average(expected):
    """The bound on losing a true claim rests on this mean."""
    draws, share = 200_000, 0.1
    generator = np.random.default_rng(3)
    z = stats.norm.ppf(0.95)
    lifts = np.exp(np.log(1.5) + 0.15 * generator.standard_normal(draws))
    trials = int(expected / share)
    k = generator.binomial(trials, lifts * share).astype(np.float64)
    ones = np.ones(draws)
    log_against = compute_log_evidence_against(
        k,
        expected * ones,
        expected * (1 - share) * ones,
        # So large a sample that the cell is none of it.
        1e9 * ones,
        (1.5 * np.exp(-0.15 * z) * ones, 1.5 * np.exp(0.15 * z) * ones),
    )
    assert np.exp(log_against).mean() == pytest.approx(1.0, abs=0.03)


TABLES = [
    (rows, round(rows * rate), round(rows * share), lift)
    for rows in (50, 1000, 5000)
    for rate, share in ((0.03, 0.1), (0.12, 0.6), (0.3, 0.3), (0.6, 0.3))
    for lift in (0.7, 1.3, 2.0)
    # The margins leave room for the lift, and one conversion is expected.
    if rows * rate * share >= 1
    and lift * rate * share < 0.95 * min(rate, share)
    and 0.5 * rate * share > rate + share - 1
]


@pytest.mark.parametrize(("rows", "hits", "n", "lift"), TABLES)
def test_evidence_against_a_true_claim_in_any_table(rows, hits, n, lift):
    """By summation over all counts; with mean and variance alone it came to 228,000."""
    mean = n * hits / rows
    low, high = max(0, n + hits - rows), min(n, hits)
    counts = np.arange(low, high + 1)
    none = stats.hypergeom(rows, hits, n).logpmf(counts)
    deviates = stats.norm.ppf((np.arange(21) + 0.5) / 21)
    z, spread, ones = stats.norm.ppf(0.95), 0.1, np.ones(counts.size)
    variance = mean * (1 - n / rows) * (rows - hits) / (rows - 1)
    ratio = np.exp(
        compute_log_evidence_against(
            counts.astype(float), mean * ones, variance * ones, hits * ones,
            (lift * np.exp(-spread * z) * ones, lift * np.exp(spread * z) * ones),
        )
    )  # fmt: skip

    def tilt(by):
        """The count under one odds ratio for all."""
        log = none + by * counts
        weight = np.exp(log - log.max())
        return weight / weight.sum()

    total = 0.0
    for true in lift * np.exp(spread * deviates):
        target = np.clip(true * mean, low + 0.01, high - 0.01)
        by = optimize.brentq(lambda b, t=target: (tilt(b) * counts).sum() - t, -20, 20)
        chance = tilt(by)
        total += (chance * np.where(chance > 0, np.minimum(ratio, 1e250), 0.0)).sum()
    assert total / deviates.size <= 1.75
