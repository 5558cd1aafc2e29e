import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from conversion_assets.stats.multiplicity import (
    adjust_benjamini_hochberg,
    adjust_directions,
    compute_mid_p,
    compute_tail_probabilities,
    compute_two_sided_p,
    find_testable,
    refine_mid_p,
    weigh_directions,
)


def _moments(strata):
    """Mean, variance and third central moment of the exact null distribution, by definition."""
    pmf = _convolve(strata)
    count = np.arange(pmf.size)
    mean = (pmf * count).sum()
    return mean, (pmf * (count - mean) ** 2).sum(), (pmf * (count - mean) ** 3).sum()


def _convolve(strata):
    """Exact null distribution of a stratified count: strata are (rows, conversions, in cell)."""
    pmf = np.ones(1)
    for rows, conversions, size in strata:
        support = np.arange(min(conversions, size) + 1)
        pmf = np.convolve(pmf, stats.hypergeom(rows, conversions, size).pmf(support))
    return pmf


def _ratios(strata):
    """Approximate over exact tails, where the exact one is between 1e-6 and 1e-2."""
    pmf = _convolve(strata)
    mean, variance, third = _moments(strata)
    k = np.arange(pmf.size, dtype=float)
    ones = np.ones_like(k)
    upper, lower = compute_tail_probabilities(k, mean * ones, variance * ones, third * ones)
    exact_upper, exact_lower = np.cumsum(pmf[::-1])[::-1], np.cumsum(pmf)
    parts = [(upper, exact_upper), (lower, exact_lower)]
    seen = [(e >= 1e-6) & (e <= 1e-2) for _, e in parts]
    return np.concatenate([a[s] / e[s] for (a, e), s in zip(parts, seen, strict=True)])


def _draw_strata(rng, count, share, rate):
    rows = np.exp(rng.uniform(np.log(40 if count > 1 else 100), np.log(4000), count)).astype(int)
    return [
        (int(n), int(rng.binomial(n, rate)), int(rng.binomial(n, share * rng.uniform(0.7, 1.3))))
        for n in rows
    ]


@pytest.mark.parametrize(("count", "low"), [(1, 0.68), (40, 0.95)])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_tails_are_close_to_the_exact_ones(count, low, share):
    """The accuracy that the docstring states; the approximation errs by a few percent downwards.

    Bounds: the 5 % quantile over many margins was 0.71 or more for one stratum and 0.98 for forty
    (touch-level cells have about 40), the median 0.98 or more, the 95 % quantile below 1.
    """
    rng = np.random.default_rng([count, int(100 * share)])
    ratios = []
    for _ in range(120 if count == 1 else 8):
        rate = rng.choice([0.01, 0.03] if count > 1 else [0.03, 0.1, 0.3])
        strata = _draw_strata(rng, count, share, rate)
        mean, variance, third = _moments(strata)
        if variance > 0 and find_testable(*(np.array([m]) for m in (mean, variance, third)))[0]:
            ratios.append(_ratios(strata))
    ratio = np.concatenate(ratios)
    assert ratio.size > 100
    assert np.quantile(ratio, 0.05) > low
    assert 0.97 < np.median(ratio) <= 1.001
    assert np.quantile(ratio, 0.95) < 1.01


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_a_cell_with_most_of_the_sample_is_judged_like_the_rest_of_it(share):
    """The upper tail of a cell is the lower tail of the rest: the same event, the same p-value.

    Matching mean and variance only, the two differed by a factor of up to a thousand.
    """
    rows, conversions = 2000, 260
    size = int(share * rows)
    k = np.arange(int(0.4 * conversions), conversions + 1, dtype=float)
    own = [np.full(k.size, m) for m in _moments([(rows, conversions, size)])]
    rest = [np.full(k.size, m) for m in _moments([(rows, conversions, rows - size)])]
    upper, _ = compute_tail_probabilities(k, *own)
    _, lower = compute_tail_probabilities(conversions - k, *rest)
    # The same beta function from moments that differ in their last digits.
    np.testing.assert_allclose(upper, lower, rtol=1e-6, atol=1e-300)


def test_a_binomial_is_exact():
    """A count whose rest is endless is binomial, and then nothing is approximated."""
    n, p = 50, 0.1
    k = np.arange(n + 1, dtype=float)
    moments = [np.full(k.size, m) for m in (n * p, n * p * (1 - p), n * p * (1 - p) * (1 - 2 * p))]
    upper, lower = compute_tail_probabilities(k, *moments)
    # Rounding of the moments moves the number of trials by 1e-14, and far tails by more.
    np.testing.assert_allclose(upper, stats.binom.sf(k - 1, n, p), rtol=1e-9)
    np.testing.assert_allclose(lower[:-1], stats.binom.cdf(k, n, p)[:-1], rtol=1e-9)


def test_a_rare_event_is_poisson():
    k = np.arange(30, dtype=float)
    mean = np.full(k.size, 4.0)
    upper, lower = compute_tail_probabilities(k, mean, mean, mean)
    # The clip at 1e-9 stands for the limit: a relative error of k^2 times that.
    np.testing.assert_allclose(upper, stats.poisson.sf(k - 1, 4.0), rtol=1e-6)
    np.testing.assert_allclose(lower, stats.poisson.cdf(k, 4.0), rtol=1e-6)


margins = st.tuples(st.integers(2, 400), st.floats(0.0, 1.0), st.floats(0.0, 1.0)).map(
    lambda t: (t[0], round(t[1] * t[0]), round(t[2] * t[0]))
)


@settings(max_examples=150, deadline=None)
@given(st.lists(margins, min_size=1, max_size=6))
def test_tails_are_probabilities_that_fall_and_rise(strata):
    pmf = _convolve(strata)
    k = np.arange(pmf.size, dtype=float)
    moments = [np.full(k.size, m) for m in _moments(strata)]
    upper, lower = compute_tail_probabilities(k, *moments)
    for tail in (upper, lower):
        assert ((tail >= 0) & (tail <= 1)).all()
    # Neighbouring values of a beta function at the end of its range may differ in the last digit.
    assert (np.diff(upper) <= 1e-12).all()
    assert (np.diff(lower) >= -1e-12).all()
    p = compute_two_sided_p(k, *moments)
    assert ((p >= 0) & (p <= 1)).all()


@pytest.mark.parametrize(
    ("k", "moments"),
    [
        (0.0, (0.0, 0.0, 0.0)),  # nobody converts
        (7.0, (7.0, 0.0, 0.0)),  # everybody converts, or the cell is the whole sample
        (1.0, (1.0, 0.0, 0.0)),  # one row
    ],
)
def test_without_freedom_nothing_is_surprising(k, moments):
    arrays = [np.array([m]) for m in moments]
    assert compute_two_sided_p(np.array([k]), *arrays).tolist() == [1.0]
    assert find_testable(*arrays).tolist() == [False]


def test_no_cells():
    none = np.zeros(0)
    assert compute_two_sided_p(none, none, none, none).shape == (0,)
    assert find_testable(none, none, none).shape == (0,)
    assert adjust_benjamini_hochberg(none, np.zeros(0, dtype=int)).shape == (0,)


def test_a_vast_deviation_keeps_its_order():
    """Two overwhelming losers differ: 1 - upper would make both exactly 0."""
    k = np.array([100.0, 150.0])
    n = np.full(2, 10_000.0)
    moments = [np.full(2, m) for m in (500.0, 475.0, 427.0)]
    p = compute_two_sided_p(k, *moments)
    assert 0 < p[0] < p[1] < 1e-40
    assert n.all()


@st.composite
def lone_tables(draw):
    """Rows, conversions, rows of the cell, conversions in it: any that can be, often at an end."""
    rows = draw(st.sampled_from([2, 3, 12, 40, 500, 20_000]) | st.integers(2, 5000))
    hits = draw(st.sampled_from([0, 1, rows // 7, rows]) | st.integers(0, rows))
    n = draw(st.sampled_from([1, rows // 9 + 1, rows]) | st.integers(1, rows))
    low, high = max(0, n + hits - rows), min(n, hits)
    return rows, hits, n, draw(st.sampled_from([low, high]) | st.integers(low, high))


@settings(max_examples=150, deadline=None)
@given(st.lists(lone_tables(), min_size=1, max_size=8))
def test_small_lone_tables_are_exact_where_it_matters(tables):
    rows, hits, n, k = np.array(tables, dtype=float).T
    law = stats.hypergeom(rows, hits, n)
    mean, variance = law.mean(), np.nan_to_num(law.var())
    third = np.nan_to_num(law.stats("s")) * variance**1.5
    rough = compute_mid_p(k, mean, variance, third)
    fine = refine_mid_p(rough, k, n, (rows, hits))
    # No other cell, and no table at all, changes an answer.
    for i in range(k.size):
        at = slice(i, i + 1)
        alone = refine_mid_p((rough[0][at], rough[1][at]), k[at], n[at], (rows[at], hits[at]))
        assert [x[0] for x in alone] == [x[i] for x in fine]
    several = refine_mid_p(rough, k, n, (0 * rows, 0 * hits))
    for got, told, exact in zip(
        fine, several, (law.sf(k) + law.pmf(k) / 2, law.cdf(k - 1) + law.pmf(k) / 2), strict=True
    ):
        for i in range(k.size):
            is_fine = variance[i] <= 29 and min(rough[0][i], rough[1][i]) <= 0.1
            if is_fine and exact[i] > 1e-250:
                assert got[i] == pytest.approx(exact[i], rel=1e-8, abs=1e-300)
            elif variance[i] > 31:
                assert got[i] == told[i]
    assert [x.tolist() for x in several] == [x.tolist() for x in rough]


def test_testable_is_decided_by_margins():
    """A third of the cells of a client say nothing at any outcome worth waiting for."""
    mean = np.array([0.2, 1.0, 2.0, 4.0, 30.0])
    got = find_testable(mean, mean * 0.95, mean * 0.86)
    exact = stats.poisson.sf(np.ceil(3 * mean) - 1, mean) <= 0.01
    assert got.tolist() == exact.tolist() == [False, False, False, True, True]


p_values = st.lists(
    st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 1e-12, 0.01, 0.01, 0.05, 0.3, 1.0])
              | st.floats(0, 1)),
    max_size=40,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(p_values)
def test_q_values_are_those_of_scipy_in_every_group(rows):
    group = np.array([g for g, _ in rows], dtype=np.int64)
    p = np.array([v for _, v in rows], dtype=float)
    q = adjust_benjamini_hochberg(p, group)
    for g in np.unique(group):
        mine = group == g
        # Another order of the same multiplications: the last digit.
        np.testing.assert_allclose(
            q[mine], stats.false_discovery_control(p[mine]), rtol=1e-13, atol=0
        )


@settings(max_examples=300, deadline=None)
@given(p_values, st.randoms(use_true_random=False))
def test_q_values_of_a_group_do_not_move_with_others_or_with_order(rows, random):
    group = np.array([g for g, _ in rows], dtype=np.int64)
    p = np.array([v for _, v in rows], dtype=float)
    together = adjust_benjamini_hochberg(p, group)
    order = list(range(len(rows)))
    random.shuffle(order)
    shuffled = adjust_benjamini_hochberg(p[order], group[order])
    assert together[order].tobytes() == shuffled.tobytes()
    for g in np.unique(group):
        mine = group == g
        alone = adjust_benjamini_hochberg(p[mine], group[mine])
        assert together[mine].tobytes() == alone.tobytes()


weighted_cells = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from([0.0, 1e-9, 0.01, 0.3, 1.0]) | st.floats(0, 1),
        st.sampled_from([0.0, 1e-9, 0.01, 0.3, 1.0]) | st.floats(0, 1),
        st.floats(0.05, 20),
        st.sampled_from([0.0, 0.05, 1.0]) | st.floats(0.05, 20),
    ),
    max_size=30,
)


def _adjust_slowly(p, weight):
    """Smallest level at which the weighted step-up procedure rejects, hypothesis by hypothesis."""
    mean = sum(weight) / len(weight)
    scaled = [one * mean / w for one, w in zip(p, weight, strict=True)]
    return [
        min(
            min(1.0, len(p) * level / sum(other <= level for other in scaled))
            for level in scaled
            if level >= mine
        )
        for mine in scaled
    ]


@settings(max_examples=200, deadline=None)
@given(weighted_cells)
def test_both_directions_are_weighed_hypotheses_of_one_ledger(cells):
    group, upper, lower, up, down = np.array(cells, dtype=float).reshape(-1, 5).T
    got = adjust_directions(upper, lower, (up, down), group.astype(np.int64))
    for g in np.unique(group):
        mine = np.flatnonzero(group == g)
        asked = [(i, 0) for i in mine] + [(i, 1) for i in mine if down[i] > 0]
        slow = _adjust_slowly(
            [(upper, lower)[side][i] for i, side in asked],
            [(up, down)[side][i] for i, side in asked],
        )
        for i in mine:
            best = min(q for q, (j, _) in zip(slow, asked, strict=True) if j == i)
            assert got[i] == pytest.approx(best, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(p_values)
def test_even_weights_are_no_weights(rows):
    group = np.array([g for g, _ in rows], dtype=np.int64)
    p = np.array([v for _, v in rows], dtype=float)
    plain = adjust_benjamini_hochberg(p, group)
    np.testing.assert_allclose(
        adjust_benjamini_hochberg(p, group, np.full(p.size, 7.0)), plain, rtol=1e-12
    )


def test_weights_of_a_pool_that_knows_nothing_keep_the_level_and_good_ones_find_more():
    """300 cells in 1,500 clients: a tenth of what is called is false, whatever the weights."""
    rng = np.random.default_rng(5)
    clients, cells = 1500, 300
    works = rng.random((clients, cells)) < 0.03
    z = rng.standard_normal((clients, cells)) + 2.5 * works
    upper, lower = stats.norm.sf(z).ravel(), stats.norm.cdf(z).ravel()
    group = np.repeat(np.arange(clients), cells)
    found = {}
    for name, log_lift in (
        ("none", np.zeros(works.shape)),
        ("noise", 0.15 * rng.standard_normal(works.shape)),
        ("good", 0.1 * rng.standard_normal(works.shape) + 0.3 * works),
    ):
        weights = weigh_directions(np.exp(log_lift).ravel())
        called = adjust_directions(upper, lower, weights, group) <= 0.10
        false = called & ~works.ravel()
        each = [np.bincount(group, x, clients) for x in (called, false)]
        assert (each[1] / np.maximum(each[0], 1)).mean() <= 0.105
        # No effect anywhere: the same as how often anything at all is called.
        nothing = rng.standard_normal(works.shape)
        null = adjust_directions(
            stats.norm.sf(nothing).ravel(), stats.norm.cdf(nothing).ravel(), weights, group
        )
        assert (np.bincount(group, null <= 0.10, clients) > 0).mean() <= 0.125
        found[name] = (called & works.ravel()).sum()
    assert found["noise"] > 0.5 * found["none"]
    assert found["good"] > 1.5 * found["none"]


def test_weights_of_a_cell_are_even_over_both_directions():
    for lift in (np.nan, 1.0):
        up, down = weigh_directions(np.array([lift]))
        assert up[0] + down[0] == 2.0
    up, down = weigh_directions(np.array([100.0, 0.01, 1.1, 1 / 1.1]))
    assert (up[0], down[0], up[1], down[1]) == (20.0, 0.05, 0.05, 20.0)
    np.testing.assert_allclose([up[2], down[2]], [down[3], up[3]])
    # No weight comes to more than the largest once it is scaled to a mean of 1.
    assert (up + down >= 2.0).all()


def test_tails_of_a_cell_do_not_move_with_other_cells():
    """At every offset and length: vector instructions must not treat ends of an array otherwise."""
    rng = np.random.default_rng(3)
    mean = rng.uniform(0.1, 200.0, 203)
    variance, third = mean * 0.9, mean * 0.7
    k = rng.poisson(mean).astype(float)
    whole = compute_two_sided_p(k, mean, variance, third)
    for first in (0, 1, 3, 7, 100):
        for last in (first + 1, first + 2, first + 5, 203):
            part = slice(first, last)
            alone = compute_two_sided_p(k[part], mean[part], variance[part], third[part])
            assert alone.tobytes() == whole[part].tobytes()
