import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from conversion_assets.stats.shrinkage import (
    FIT_STEPS,
    PRIOR_CELLS,
    SPREAD_SCALE,
    SPREADS,
    compute_prior_strength,
    compute_typical_spread,
    get_prior_shares,
    shrink_rates,
    weigh_spreads,
)


def _slow_weights(k, n, prior):
    """Weights of the spreads of one group, one cell and one spread at a time."""
    guess = np.array([s / (s**2 + SPREAD_SCALE**2) for s in SPREADS])
    guess /= guess.sum()
    likelihood = []
    for ki, ni, mean in zip(k, n, prior, strict=True):
        logs = []
        for spread in SPREADS:
            strength = max((1 - mean) / (mean * spread**2) - 1, 0.5)
            logs.append(stats.betabinom.logpmf(ki, ni, strength * mean, strength * (1 - mean)))
        likelihood.append(np.exp(np.array(logs) - max(logs)))
    shares = guess.copy()
    for _ in range(FIT_STEPS):
        weights = [shares * one / (shares * one).sum() for one in likelihood]
        shares = (sum(weights) + PRIOR_CELLS * guess) / (len(weights) + PRIOR_CELLS)
    return [shares * one / (shares * one).sum() for one in likelihood]


def _grid_posterior(k, n, mean, weights):
    """Mean and variance of the mixture's posterior of a rate, by brute force on a grid of rates."""
    density = np.zeros(200_001)
    edges = np.linspace(0, 1, density.size)
    for weight, spread in zip(weights, SPREADS, strict=True):
        strength = max((1 - mean) / (mean * spread**2) - 1, 0.5)
        a, b = strength * mean + k, strength * (1 - mean) + n - k
        density[1:] += weight * np.diff(stats.beta.cdf(edges, a, b))
    middle = edges - 0.5 / (density.size - 1)
    average = (density * middle).sum()
    return average, (density * (middle - average) ** 2).sum()


@st.composite
def groups_of_cells(draw):
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    group = np.repeat(np.arange(len(sizes)), sizes)
    n = np.array([draw(st.sampled_from([1, 2, 17, 300, 20_000])) for _ in group])
    k = np.array([draw(st.integers(0, int(size))) for size in n])
    prior = np.array([draw(st.sampled_from([1e-4, 0.01, 0.12, 0.5, 0.97])) for _ in group])
    return k.astype(float), n.astype(float), prior, group, len(sizes)


@settings(max_examples=60, deadline=None)
@given(groups_of_cells())
def test_weights_of_the_spreads_are_those_of_the_em_algorithm(cells):
    k, n, prior, group, groups = cells
    weights = weigh_spreads(k, n, prior, group, groups)
    for g in range(groups):
        mine = group == g
        slow = _slow_weights(k[mine], n[mine], prior[mine])
        # Log-likelihoods of 20,000 trials are of size 1e5: eleven digits of a weight remain.
        np.testing.assert_allclose(weights[mine], slow, rtol=1e-6, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(groups_of_cells())
def test_the_typical_spread_is_that_of_the_others_and_the_guess(cells):
    k, n, prior, group, groups = cells
    weights = weigh_spreads(k, n, prior, group, groups)
    typical = compute_typical_spread(weights, group, groups)
    for cell, own_group in enumerate(group):
        total = PRIOR_CELLS * get_prior_shares()
        for other in np.flatnonzero(group == own_group):
            total = total + (weights[other] if other != cell else 0.0)
        log_mean = (total / total.sum() * np.log(SPREADS)).sum()
        assert np.log(typical[cell]) == pytest.approx(log_mean, abs=1e-9)


@pytest.mark.parametrize(
    ("k", "n", "prior"),
    [(0, 1, 0.1), (1, 1, 0.1), (3, 10, 0.12), (0, 40, 0.05), (40, 40, 0.5), (90, 500, 0.12),
     (1400, 10_000, 0.12), (2, 30, 0.9)],
)  # fmt: skip
def test_posterior_is_that_of_a_grid(k, n, prior):
    arrays = [np.array([float(x)]) for x in (k, n)]
    mean = np.array([prior])
    weights = weigh_spreads(*arrays, mean, np.array([0]), 1)
    got = shrink_rates(*arrays, mean, weights)
    average, variance = _grid_posterior(k, n, prior, weights[0])
    # The grid's step is 5e-6; densities that rise at 0 or 1 cost it a few of them.
    assert got.mean[0] == pytest.approx(average, rel=2e-4)
    assert stats.beta.var(got.a[0], got.b[0]) == pytest.approx(variance, rel=2e-3)


def test_own_weight_is_the_mean_share_of_own_trials():
    k, n, prior = np.array([4.0]), np.array([50.0]), np.array([0.1])
    weights = weigh_spreads(k, n, prior, np.array([0]), 1)
    strength = np.array([max(0.9 / (0.1 * s**2) - 1, 0.5) for s in SPREADS])
    expected = (weights[0] * 50 / (50 + strength)).sum()
    assert shrink_rates(k, n, prior, weights).own_weight[0] == pytest.approx(expected, rel=1e-12)


def test_the_strength_gives_the_lift_its_standard_deviation():
    for mean in (0.001, 0.12, 0.3):
        for spread in SPREADS[SPREADS < 0.9]:
            strength = float(compute_prior_strength(np.array(mean), np.array(spread)))
            lift = stats.beta(strength * mean, strength * (1 - mean)).std() / mean
            assert lift == pytest.approx(spread, rel=1e-9)


@settings(max_examples=150, deadline=None)
@given(groups_of_cells())
def test_a_shrunk_rate_lies_between_what_was_seen_and_what_was_expected(cells):
    k, n, prior, group, groups = cells
    weights = weigh_spreads(k, n, prior, group, groups)
    shrunk = shrink_rates(k, n, prior, weights)
    low, high = np.minimum(k / n, prior), np.maximum(k / n, prior)
    assert (shrunk.mean >= low * (1 - 1e-9)).all()
    assert (shrunk.mean <= high * (1 + 1e-9)).all()
    assert ((shrunk.a > 0) & (shrunk.b > 0) & np.isfinite(shrunk.a) & np.isfinite(shrunk.b)).all()
    assert ((shrunk.own_weight > 0) & (shrunk.own_weight <= 1)).all()


@pytest.mark.parametrize("prior", [0.0, 1e-300, 1e-9, 1 - 1e-12, 1.0])
@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 1e6), (1e6, 1e6), (5, 10)])
def test_extremes_stay_finite(k, n, prior):
    arrays = [np.array([float(x)]) for x in (k, n, prior)]
    weights = weigh_spreads(*arrays, np.array([0]), 1)
    assert weights.sum() == pytest.approx(1.0)
    shrunk = shrink_rates(*arrays, weights)
    assert np.isfinite([shrunk.a[0], shrunk.b[0], shrunk.own_weight[0]]).all()
    assert 0 <= shrunk.mean[0] <= 1


def test_more_of_the_same_data_is_believed_more():
    previous = 0.0
    for size in (10, 100, 1000, 10_000, 100_000):
        k, n, prior = np.array([0.2 * size]), np.array([float(size)]), np.array([0.1])
        weights = weigh_spreads(k, n, prior, np.array([0]), 1)
        own = shrink_rates(k, n, prior, weights).own_weight[0]
        assert own > previous
        previous = own
    assert previous > 0.99


def test_shrinking_halves_the_error_of_many_small_cells():
    """The specification's own figure: 200 segments of 10 to 80, rates Beta(2, 38).

    Error of raw rates 0.037, of empirical Bayes 0.024; the averaging over the spread with its
    heavy-tailed guess has to do as well as a fitted beta, within a tenth.
    """
    rng = np.random.default_rng(8)
    errors = []
    for _ in range(20):
        n = rng.integers(10, 81, 200).astype(float)
        truth = rng.beta(2, 38, 200)
        k = rng.binomial(n.astype(int), truth).astype(float)
        prior = np.full(200, k.sum() / n.sum())
        weights = weigh_spreads(k, n, prior, np.zeros(200, dtype=int), 1)
        shrunk = shrink_rates(k, n, prior, weights).mean
        errors.append([np.mean((k / n - truth) ** 2), np.mean((shrunk - truth) ** 2)])
    raw, shrunk = np.sqrt(np.mean(errors, axis=0))
    assert raw == pytest.approx(0.037, abs=0.003)
    assert shrunk < 0.0265


def test_intervals_of_the_posterior_hold_what_they_promise():
    """Truths drawn from the prior itself: 90 % intervals cover 88 to 92 %.

    The one step that is not exact is that the mixture is told as one beta distribution.
    """
    rng = np.random.default_rng(9)
    cells, groups = 24, 400
    spread = rng.choice(SPREADS, groups * cells, p=get_prior_shares())
    group = np.repeat(np.arange(groups), cells)
    prior = np.full(group.size, 0.12)
    strength = compute_prior_strength(prior, spread)
    truth = rng.beta(strength * prior, strength * (1 - prior))
    n = rng.choice([20, 60, 200, 1000], group.size).astype(float)
    k = rng.binomial(n.astype(int), truth).astype(float)
    shrunk = shrink_rates(k, n, prior, weigh_spreads(k, n, prior, group, groups))
    low, high = stats.beta.ppf([[0.05], [0.95]], shrunk.a, shrunk.b)
    assert 0.88 < ((truth >= low) & (truth <= high)).mean() < 0.92


def test_no_cells():
    none = np.zeros(0)
    weights = weigh_spreads(none, none, none, np.zeros(0, dtype=int), 0)
    assert weights.shape == (0, SPREADS.size)
    assert shrink_rates(none, none, none, weights).mean.shape == (0,)


def test_one_large_effect_among_many_nulls_is_left_standing():
    """Thirty cells without effect are drawn to the base; the one at double the rate is not."""
    n = np.full(31, 1000.0)
    k = np.append(np.random.default_rng(1).binomial(1000, 0.1, 30), 200).astype(float)
    prior = np.full(31, 0.1)
    weights = weigh_spreads(k, n, prior, np.zeros(31, dtype=int), 1)
    mean = shrink_rates(k, n, prior, weights).mean
    assert np.abs(mean[:30] - 0.1).mean() < 0.5 * np.abs(k[:30] / n[:30] - 0.1).mean()
    assert mean[30] > 0.19


def test_a_group_does_not_move_with_other_groups():
    rng = np.random.default_rng(10)
    group = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    n = rng.integers(1, 3000, group.size).astype(float)
    k = rng.binomial(n.astype(int), 0.1).astype(float)
    prior = rng.uniform(0.05, 0.2, group.size)
    scale = rng.uniform(0.1, 1.5, group.size)
    weights = weigh_spreads(k, n, prior, group, 40)
    whole = shrink_rates(k, n, prior, weights, scale)
    for g in range(40):
        mine = group == g
        zeros = np.zeros(int(mine.sum()), dtype=int)
        own = weigh_spreads(k[mine], n[mine], prior[mine], zeros, 1)
        assert own.tobytes() == weights[mine].tobytes()
        alone = shrink_rates(k[mine], n[mine], prior[mine], own, scale[mine])
        for name in ("a", "b", "own_weight"):
            assert getattr(alone, name).tobytes() == getattr(whole, name)[mine].tobytes()
