"""Vectorised statistics against slow and obvious references, on whatever Hypothesis draws.

The statistics whose own test files compare them on fixed examples only; the others have their
reference beside them: shrinkage (EM by loops), pool (loops), q-values (scipy), tails of a forecast
(scipy), AUC and Brier (scikit-learn), life table (statsmodels), Markov chain (loops).
"""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, special, stats

from conversion_assets.stats.intervals import compute_probability_greater
from conversion_assets.stats.logistic import compute_probabilities, fit_calibration, fit_logistic
from conversion_assets.stats.multiplicity import (
    compute_mid_p,
    describe_ends,
    find_testable,
    settle_ends,
)
from conversion_assets.stats.predictive import (
    compute_forward_lift,
    compute_log_evidence_against,
    is_inside_predictive_interval,
)
from conversion_assets.stats.sequential import BET_ODDS, compute_always_valid_p
from conversion_assets.stats.smoothing import (
    build_day_kernel,
    build_week_kernel,
    smooth_day_hour,
    smooth_hours,
)

whole = st.integers(0, 60)
tables = st.tuples(
    st.integers(20, 400), st.floats(0.01, 0.6), st.floats(0.02, 0.9), st.floats(0, 1)
)


def _one(*values: float) -> list[np.ndarray]:
    return [np.array([float(value)]) for value in values]


@settings(max_examples=120, deadline=None)
@given(st.lists(tables, min_size=1, max_size=5))
def test_mid_p_is_close_to_that_of_the_exact_distribution(strata):
    """Of the convolved hypergeometric counts, summed one by one; mid-p by its definition."""
    exact, k, drawn = np.ones(1), 0, []
    for rows, rate, share, place in strata:
        conversions, size = max(1, round(rows * rate)), max(1, round(rows * share))
        assume(size < rows)
        law = stats.hypergeom(rows, conversions, size)
        exact = np.convolve(exact, law.pmf(np.arange(min(conversions, size) + 1)))
        k += int(law.ppf(min(max(place, 1e-9), 1 - 1e-9)))
        drawn.append((size, rows, conversions))
    counts = np.arange(exact.size)
    mean = sum(p * c for p, c in zip(exact, counts, strict=True))
    variance, third = (
        sum(p * (c - mean) ** power for p, c in zip(exact, counts, strict=True)) for power in (2, 3)
    )
    assume(variance > 1e-9)
    above, below = sum(exact[counts > k]), sum(exact[counts < k])
    upper, lower = above + exact[k] / 2, below + exact[k] / 2
    ends = describe_ends(*np.array(drawn, dtype=float).T)
    found = settle_ends(
        compute_mid_p(*_one(k, mean, variance, third)), *_one(k), [x.sum() for x in ends.values()]
    )
    reference = min(1.0, 2 * min(upper, lower))
    doubled = min(1.0, 2 * min(float(found[0][0]), float(found[1][0])))
    if k in (ends["least"].sum(), ends["most"].sum()):
        # Nothing lies beyond: the tail is the end itself.
        assert doubled == pytest.approx(reference, rel=1e-6)
        return
    # Over 20,000 drawn margins the ratio was 0.75 to 1.06 above 0.01. Below that it has no bound in
    # each single table; the quantiles that the tails promise there are in test_multiplicity.py.
    assert doubled == pytest.approx(reference, abs=0.06, rel=0.2)
    # Rarer than one in a million it may be too cautious: no verdict depends on it.
    assert doubled < 1.1 * max(reference, 1e-6)
    if reference > 0.01:
        assert doubled > 0.7 * reference
    if find_testable(*_one(mean, variance, third))[0]:
        imagined = math.ceil(3 * mean)
        # A cell that may be tested could have shown something, had it been three times the mean.
        assert sum(exact[imagined:]) < 0.02


@settings(max_examples=80, deadline=None)
@given(*(st.floats(0.5, 400) for _ in range(4)))
def test_probability_greater_is_the_integral(a, b, other_a, other_b):
    # Over the quantiles of the one, which keeps the integrand bounded however skew it is.
    reference, _ = integrate.quad(
        lambda u: special.betainc(other_a, other_b, special.betaincinv(a, b, u)), 0, 1, limit=100
    )
    (found,) = compute_probability_greater(*_one(a, b, other_a, other_b))
    assert found == pytest.approx(reference, abs=0.01)


@settings(max_examples=80, deadline=None)
@given(whole, st.floats(0.05, 50), st.floats(0.05, 0.99), st.floats(-1, 1))
def test_always_valid_p_is_the_mean_of_the_bets(k, expected, shrinks, skew):
    variance = expected * shrinks
    third = variance * skew
    success = min(max((1 - third / variance) / 2, 1e-9), 1 - 1e-9)
    trials = variance / (success * (1 - success))
    shifted = k - (expected - trials * success)
    bets = [
        math.exp(shifted * math.log(w) - trials * math.log1p(success * (w - 1))) for w in BET_ODDS
    ]
    evidence = min(max(sum(bets) / len(bets) / 1.1, 1.0), 1e6)
    (found,) = compute_always_valid_p(*_one(k, expected, variance, third))
    assert found == pytest.approx(1 / evidence, rel=1e-9)


@settings(max_examples=80, deadline=None)
@given(whole, st.integers(1, 60), st.floats(0.02, 0.9), st.floats(0.3, 1.0))
def test_forward_lift_is_a_beta_posterior_of_the_share(k, rest, share, shrinks):
    base_k = k + rest
    expected = share * base_k
    variance = expected * (1 - share) * shrinks
    posterior = stats.beta(k / shrinks + 0.5, rest / shrinks + 0.5)
    lift, low, high, above = (
        float(x[0]) for x in compute_forward_lift(*_one(k, expected, variance, base_k), 0.9)
    )
    assert lift == pytest.approx(k / expected)
    assert low == pytest.approx(posterior.ppf(0.05) / share, rel=1e-6)
    assert high == pytest.approx(posterior.ppf(0.95) / share, rel=1e-6)
    assert above == pytest.approx(posterior.sf(share), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(whole, st.floats(0.5, 30), st.floats(0.02, 0.6), st.floats(0.02, 0.6), st.floats(0.4, 2.5),
       st.floats(0.03, 0.5))  # fmt: skip
def test_evidence_against_is_a_sum_over_the_claimed_lifts(k, expected, share, rate, lift, spread):
    variance = expected * (1 - share) * (1 - rate)
    third = variance * (1 - 2 * share) * (1 - 2 * rate)
    plain = 1 - variance / expected
    assume(k <= expected / plain)
    z = stats.norm.ppf(0.95)
    low, high = _one(*(lift * math.exp(sign * spread * z) for sign in (-1, 1)))
    (found,) = compute_log_evidence_against(
        *_one(k, expected, variance, expected / share), (low, high)
    )

    def ratio(deviate: float, trials: float, success: float, shift: float) -> float:
        """A binomial count plus a shift, its mean multiplied by a lift."""
        times = lift * math.exp(spread * deviate)
        raised = min(max(success + (times - 1) * expected / trials, 1e-9), 1 - 1e-9)
        hits = min(max(k - shift, 0.0), trials)
        log = hits * math.log(raised / success)
        return math.exp(log + (trials - hits) * (math.log1p(-raised) - math.log1p(-success)))

    success = (1 - third / variance) / 2
    trials = variance / (success * (1 - success))
    laws = [
        (expected / plain, plain, 0.0),
        (trials, success, expected - trials * success),
    ]
    # The claimed lift is one of 61 equally likely ones: the middles of its distribution's parts.
    claimed = max(
        sum(ratio(stats.norm.ppf((part + 0.5) / 61), *law) for part in range(61)) / 61
        for law in laws
    )
    # Beyond, the loop itself runs out of digits.
    assume(claimed > 1e-200)
    assert found == pytest.approx(-math.log(claimed), abs=1e-6, rel=1e-6)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 200), st.floats(0, 1), st.floats(0.02, 0.9), st.floats(2, 500))
def test_predictive_intervals_are_those_of_the_beta_binomial(n, place, mean, strength):
    k = round(n * place)
    law = stats.betabinom(n, mean * strength, (1 - mean) * strength)
    edges = [law.sf(k - 1), law.cdf(k)]
    assume(min(abs(edge - 0.05) for edge in edges) > 1e-7)
    found = is_inside_predictive_interval(*_one(k, n, mean, strength), 0.9)[0]
    assert found == (edges[0] > 0.05 and edges[1] > 0.05)


def _smooth_slowly(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    flat = values.reshape(-1)
    found = [
        sum(kernel[(target - source) % flat.size] * flat[source] for source in range(flat.size))
        for target in range(flat.size)
    ]
    return np.array(found).reshape(values.shape)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.floats(0.4, 4.0), st.floats(0.0, 0.3), st.sampled_from([0.1, 40])
)
def test_smoothing_is_a_weighted_sum_over_the_circle(seed, bandwidth, day_weight, rate):
    rng = np.random.default_rng(seed)
    n = rng.poisson(rate, (2, 7, 24)).astype(float)
    k, expected = rng.binomial(n.astype(int), 0.2).astype(float), 0.2 * n
    kernel = build_week_kernel(bandwidth, day_weight)
    week = smooth_day_hour(n, k, expected, kernel=kernel)
    hours = smooth_hours(n[:, 0], k[:, 0], expected[:, 0])
    for group in range(2):
        for found, values in ((week.n, n), (week.k, k), (week.expected, expected)):
            slow = _smooth_slowly(values[group], kernel)
            np.testing.assert_allclose(found[group], slow, rtol=1e-10, atol=1e-12)
        for found, values in ((hours.n, n), (hours.k, k), (hours.expected, expected)):
            slow = _smooth_slowly(values[group, 0], build_day_kernel())
            np.testing.assert_allclose(found[group], slow, rtol=1e-10, atol=1e-12)


@st.composite
def _labelled(draw):
    rows = draw(st.integers(6, 40))
    features = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = np.round(rng.random((2 * rows, features)), 1)
    y = rng.random(2 * rows) < draw(st.floats(0.1, 0.9))
    return np.repeat([0, 1], rows), x, y


@settings(max_examples=25, deadline=None)
@given(_labelled(), st.floats(0.05, 10))
def test_logistic_fit_is_that_of_a_general_optimizer(data, ridge):
    group, x, y = data
    fit = fit_logistic(group, x, y, 2, ridge=ridge)
    for g in range(2):
        mine, own = x[group == g], y[group == g]
        if own.all() or not own.any():
            assert not fit.converged[g]
            continue

        def loss(theta, mine=mine, own=own):
            eta = theta[0] + mine @ theta[1:]
            penalty = ridge / 2 * float((theta[1:] ** 2).sum())
            return float(np.logaddexp(0, eta).sum() - eta[own].sum() + penalty)

        bounds = [(None, None)] + [(0, None)] * x.shape[1]
        reference = optimize.minimize(loss, np.zeros(1 + x.shape[1]), bounds=bounds)
        theta = np.r_[fit.intercept[g], fit.coefficients[g]]
        assert (theta[1:] >= 0).all()
        # The general one stops early; ours must not be worse.
        assert loss(theta) <= reference.fun + 1e-6
        np.testing.assert_allclose(theta, reference.x, atol=0.02)
    said = compute_probabilities(group, x, fit)
    for row in range(len(group)):
        eta = fit.intercept[group[row]] + float(fit.coefficients[group[row]] @ x[row])
        if fit.converged[group[row]]:
            assert said[row] == pytest.approx(1 / (1 + math.exp(-eta)), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(30, 120), st.floats(-2, 2))
def test_calibration_is_that_of_a_general_optimizer(seed, rows, slope):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    y = rng.random(rows) < 1 / (1 + np.exp(0.5 - slope * x))
    fit = fit_calibration(np.zeros(rows, np.int64), x, y, 1)
    assume(fit.converged[0])

    def loss(theta):
        eta = theta[0] + theta[1] * x
        return float(np.logaddexp(0, eta).sum() - eta[y].sum())

    reference = optimize.minimize(loss, np.zeros(2))
    assert loss(np.r_[fit.intercept[0], fit.coefficients[0]]) <= reference.fun + 1e-6
