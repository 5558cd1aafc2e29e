"""Adaptive intervals against the test they turn over, one cell and one candidate at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from conversion_assets.stats.adaptive import (
    LEAST_SHARE,
    compute_adaptive_lift_interval,
    compute_adaptive_rate_interval,
    expect_without_cell,
)

spreads = st.floats(0.01, 3.0)
NO_PREFERENCE = 1e4


def _array(*values):
    return [np.array([v], dtype=float) for v in values]


def _slow_share(distance, error):
    """Upper tail's share of the error that minimises the prior predictive mass of the region."""

    def miss(share):
        return stats.norm.ppf(error * (1 - share)) - stats.norm.ppf(error * share) - distance

    if miss(LEAST_SHARE) <= 0:
        return LEAST_SHARE
    if miss(1 - LEAST_SHARE) >= 0:
        return 1 - LEAST_SHARE
    return optimize.brentq(miss, LEAST_SHARE, 1 - LEAST_SHARE)


def _slow_accepts(k, trials, odds, center, spread, error):
    """Whether a test of these log odds accepts k of so many trials."""
    p, expected = 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(-center))
    deviation = 1 / np.sqrt(trials * expected * (1 - expected))
    share = _slow_share(2 * deviation * (odds - center) / spread**2, error)
    count = stats.binom(trials, p)
    lower_idle = 0.5 * count.pmf(0) >= error * (1 - share)
    upper_idle = 0.5 * count.pmf(trials) >= error * share
    if lower_idle != upper_idle:
        share = 1.0 if lower_idle else 0.0
    at = 0.5 * count.pmf(k)
    return count.sf(k) + at >= error * share and count.cdf(k) - at >= error * (1 - share)


@st.composite
def binomial_cells(draw):
    trials = draw(st.integers(1, 400))
    k = draw(st.integers(0, trials))
    expected = draw(st.sampled_from([0.004, 0.03, 0.12, 0.5, 0.9]))
    return k, trials, expected


@settings(max_examples=40, deadline=None)
@given(binomial_cells(), spreads, st.sampled_from([0.8, 0.9, 0.95]))
def test_a_rate_is_inside_exactly_when_its_test_accepts_it(cell, spread, mass):
    k, trials, expected = cell
    low, high = (
        x[0] for x in compute_adaptive_rate_interval(*_array(k, trials, expected, spread), mass)
    )
    center = np.log(expected / (1 - expected))
    for odds in np.linspace(-9, 9, 61):
        rate = 1 / (1 + np.exp(-odds))
        # The ends are found to 1e-4; the tabulated split moves them by as much.
        if min(abs(rate - low), abs(rate - high)) < 2e-3 * rate * (1 - rate) * 5:
            continue
        accepts = _slow_accepts(k, trials, odds, center, spread / (1 - expected), 1 - mass)
        assert accepts == (low <= rate <= high), (rate, low, high)


@settings(max_examples=40, deadline=None)
@given(binomial_cells(), spreads, st.floats(0.5, 2.0))
def test_a_lift_is_inside_exactly_when_its_test_accepts_it(cell, spread, expected_lift):
    """Moments of a binomial: the shifted one is then that very binomial, without a shift."""
    k, trials, base = cell
    mean, variance = trials * base, trials * base * (1 - base)
    moments = tuple(_array(mean, variance, variance * (1 - 2 * base)))
    low, high = (
        x[0]
        for x in compute_adaptive_lift_interval(
            *_array(k), moments, *_array(expected_lift, spread), 0.9
        )
    )
    steep = mean / variance
    center = np.log(base / (1 - base)) + steep * np.log(expected_lift)
    for odds in np.linspace(-9, 9, 61):
        lift = 1 / (1 + np.exp(-odds)) / base
        if min(abs(lift - low), abs(lift - high)) < 1e-2 * lift:
            continue
        accepts = _slow_accepts(k, trials, odds, center, steep * spread, 0.1)
        assert accepts == (low <= lift <= high), (lift, low, high)


@pytest.mark.parametrize("spread", [0.03, 0.15, 0.5, NO_PREFERENCE])
@pytest.mark.parametrize("true_lift", [0.3, 0.7, 1.0, 1.4, 3.0])
def test_coverage_is_that_promised_whatever_the_truth(true_lift, spread):
    """Exactly, by summation over all counts, at 3 to 60 expected conversions.

    Credible intervals with the spread 0.15 cover 1.0 nearly always and 3.0 in less than half.
    """
    covered = []
    for trials in range(30, 620, 30):
        count = stats.binom(trials, 0.1 * true_lift)
        k = np.arange(trials + 1.0)
        full = np.ones(k.size)
        low, high = compute_adaptive_rate_interval(k, trials * full, 0.1 * full, spread * full, 0.9)
        rate = 0.1 * true_lift
        covered.append(count.pmf(k)[(low <= rate) & (rate <= high)].sum())
    assert 0.88 < np.mean(covered) < 0.92, covered
    assert min(covered) > 0.80


def test_tiny_counts_do_not_cover_much_more_than_promised():
    """0.1 to 2 expected: the lower tail cannot reject, and its error goes to the upper one.

    With half of the error on either side it would be 95 %.
    """
    covered = []
    for mean in np.geomspace(0.1, 2.0, 120):
        trials = 1000
        k = np.arange(40.0)
        full = np.ones(k.size)
        low, high = compute_adaptive_rate_interval(
            k, trials * full, mean / trials * full, NO_PREFERENCE * full, 0.9
        )
        rate = mean / trials
        covered.append(stats.binom(trials, rate).pmf(k)[(low <= rate) & (rate <= high)].sum())
    assert 0.89 < np.mean(covered) < 0.925, np.mean(covered)


def test_what_is_expected_makes_intervals_shorter():
    rng = np.random.default_rng(4)
    n = np.full(4000, 500.0)
    k = rng.binomial(500, 0.1, 4000).astype(float)
    rate, full = np.full(4000, 0.1), np.ones(4000)
    widths = []
    for spread in (0.05, NO_PREFERENCE):
        low, high = compute_adaptive_rate_interval(k, n, rate, spread * full, 0.9)
        widths.append(np.log(high / low).mean())
    assert widths[0] < 0.9 * widths[1]


def test_without_preference_the_interval_is_the_plain_one():
    k, n = _array(40, 500)
    low, high = compute_adaptive_rate_interval(k, n, *_array(0.3, NO_PREFERENCE), 0.9)

    def upper(p):
        return stats.binom.sf(40, 500, p) + 0.5 * stats.binom.pmf(40, 500, p)

    assert upper(low[0]) == pytest.approx(0.05, rel=1e-3)
    assert 1 - upper(high[0]) == pytest.approx(0.05, rel=1e-3)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 10**6), st.floats(1e-6, 1 - 1e-6), st.floats(1e-3, 1e3),
    st.sampled_from([0.6, 0.9, 0.999]),
)  # fmt: skip
def test_ends_are_ordered_hold_what_was_seen_and_lie_within_0_and_1(k, n, expected, spread, mass):
    k = min(k, n)
    arrays = _array(k, n, expected, spread)
    low, high = (x[0] for x in compute_adaptive_rate_interval(*arrays, mass))
    assert 0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000), st.floats(0.01, 0.99), st.floats(0.02, 2.0), st.data())
def test_failures_turn_the_interval_over(n, expected, spread, data):
    k = data.draw(st.integers(0, n))
    low, high = compute_adaptive_rate_interval(*_array(k, n, expected, spread), 0.9)
    # The spread is relative to the rate; relative to the failures it is another number.
    turned = spread * expected / (1 - expected)
    other_low, other_high = compute_adaptive_rate_interval(
        *_array(n - k, n, 1 - expected, turned), 0.9
    )
    assert low[0] == pytest.approx(1 - other_high[0], abs=1e-5)
    assert high[0] == pytest.approx(1 - other_low[0], abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.floats(0.01, 0.6), st.floats(0.02, 2.0))
def test_more_conversions_never_lower_an_end(n, expected, spread):
    k = np.arange(n + 1.0)
    full = np.ones(k.size)
    low, high = compute_adaptive_rate_interval(k, n * full, expected * full, spread * full, 0.9)
    assert (np.diff(low) > -1e-5).all()
    assert (np.diff(high) > -1e-5).all()


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 5000), st.data())
def test_lifts_of_any_margins(total, data):
    n = data.draw(st.integers(1, total - 1))
    converted = data.draw(st.integers(1, total - 1))
    k = data.draw(st.integers(max(0, n + converted - total), min(n, converted)))
    mean = n * converted / total
    variance = mean * (1 - n / total) * (total - converted) / (total - 1)
    third = variance * (total - 2 * n) * (total - 2 * converted) / max(total * (total - 2), 1)
    low, high = compute_adaptive_lift_interval(
        *_array(k), tuple(_array(mean, variance, third)), *_array(1.0, 0.2), 0.9
    )
    assert 0 <= low[0] <= high[0] < np.inf
    # What was seen lies inside, but where the matched binomial cannot come so far.
    assert low[0] <= k / mean + 1e-6
    if k > 0 and n + converted - total <= 0:
        assert high[0] >= min(k / mean, 1.0) - 1e-6


def test_margins_without_freedom():
    mean, nothing = np.array([0.0, 5.0]), np.zeros(2)
    low, high = compute_adaptive_lift_interval(
        mean, (mean, nothing, nothing), np.ones(2), np.full(2, 0.2), 0.9
    )
    assert low.tolist() == [0.0, 1.0]
    assert high.tolist() == [np.inf, 1.0]


def test_the_rest_of_one_stratum_is_the_rest():
    n, k, total, converted = 300.0, 45.0, 1000.0, 100.0
    mean = n * converted / total
    variance = mean * (1 - n / total) * (total - converted) / total
    rate, error = expect_without_cell(*_array(k, mean, variance, n))
    assert rate[0] == pytest.approx((converted - k) / (total - n))
    base = converted / total
    assert error[0] == pytest.approx(np.sqrt((1 - base) / (base * (total - n))))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_rest_stays_a_rate(n, seen, base, share):
    k, mean = np.floor(seen * n), n * base
    variance = mean * (1 - base) * (1 - share)
    rate, error = expect_without_cell(*_array(k, mean, variance, n))
    assert 0 < rate[0] < 1
    assert np.isfinite(error[0])


def test_no_cells():
    none = np.zeros(0)
    for ends in (
        compute_adaptive_rate_interval(none, none, none, none, 0.9),
        compute_adaptive_lift_interval(none, (none, none, none), none, none, 0.9),
    ):
        assert [end.shape for end in ends] == [(0,), (0,)]


def test_a_cell_does_not_move_with_other_cells():
    rng = np.random.default_rng(3)
    n = rng.integers(1, 3000, 201).astype(float)
    k = rng.binomial(n.astype(int), 0.05).astype(float)
    rate, spread = rng.uniform(0.01, 0.2, 201), rng.uniform(0.01, 1.3, 201)
    mean = n * rate
    variance = 0.8 * mean * (1 - rate)

    def compute(part):
        moments = (mean[part], variance[part], 0.7 * variance[part])
        return (
            *compute_adaptive_rate_interval(k[part], n[part], rate[part], spread[part], 0.9),
            *compute_adaptive_lift_interval(k[part], moments, 1.0 + rate[part], spread[part], 0.9),
        )

    whole = compute(slice(None))
    for first in (0, 1, 3, 7, 100):
        for last in (first + 1, first + 2, first + 5, 201):
            for alone, together in zip(compute(slice(first, last)), whole, strict=True):
                assert alone.tobytes() == together[first:last].tobytes()
