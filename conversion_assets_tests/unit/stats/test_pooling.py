import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion_assets.stats.pooling import (
    POOL_PRIOR_CONVERSIONS,
    compute_pool_lift,
    pool_counts,
)


def _slow_cap(weights, share):
    """Cut the largest weights to `share` of the total, again and again until nothing moves."""
    cut = list(weights)
    for _ in range(10_000):
        moved = False
        for i in np.argsort(cut)[::-1]:
            others = sum(cut) - cut[i]
            # w <= share (w + others)
            limit = share / (1 - share) * others
            if cut[i] > limit * (1 + 1e-14):
                cut[i] = limit
                moved = True
        if not moved:
            break
    return cut


def _slow_pool(k, expected, cell, minimum, share):
    """Leave one out, one row at a time."""
    lifts = []
    for row in range(len(k)):
        others = [i for i in range(len(k)) if i != row and cell[i] == cell[row] and expected[i] > 0]
        if len(others) < minimum:
            lifts.append(np.nan)
            continue
        weights = _slow_cap([expected[i] for i in others], share)
        conversions = sum(w * k[i] / expected[i] for w, i in zip(weights, others, strict=True))
        lifts.append(
            (conversions + POOL_PRIOR_CONVERSIONS) / (sum(weights) + POOL_PRIOR_CONVERSIONS)
        )
    return np.array(lifts)


@st.composite
def pools(draw):
    rows = []
    for cell in range(draw(st.integers(1, 3))):
        for _ in range(draw(st.integers(1, 12))):
            expected = draw(st.sampled_from([0.5, 1.0, 1.0, 3.0, 10.0, 80.0, 5000.0]))
            rows.append((float(draw(st.integers(0, 40))), expected, cell))
    order = draw(st.permutations(rows))
    k, expected, cell = (np.array(column) for column in zip(*order, strict=True))
    return k, expected, cell.astype(np.int64), int(cell.max()) + 1


@settings(max_examples=200, deadline=None)
@given(pools(), st.sampled_from([0.25, 0.25, 0.3, 0.5]))
def test_pool_is_the_slow_one(pool, share):
    k, expected, cell, cells = pool
    got = compute_pool_lift(k, expected, cell, cells, minimum_contributors=5, maximum_share=share)
    slow = _slow_pool(k, expected, cell, 5, share)
    # The slow cap converges geometrically and stops at 1e-14 of a weight.
    np.testing.assert_allclose(got, slow, rtol=1e-8)


def _pool(k, expected, **options):
    k, expected = np.asarray(k, dtype=float), np.asarray(expected, dtype=float)
    settled = {"minimum_contributors": 5, "maximum_share": 0.25, **options}
    return compute_pool_lift(k, expected, np.zeros(k.size, dtype=np.int64), 1, **settled)


def test_own_conversions_never_come_back():
    expected = np.array([10.0, 20.0, 5.0, 5.0, 8.0, 9.0, 400.0])
    k = expected * 1.5
    before = _pool(k, expected)
    for row in range(k.size):
        moved = k.copy()
        moved[row] = 0.0
        after = _pool(moved, expected)
        assert after[row] == pytest.approx(before[row], rel=1e-12)
        assert all(after[i] < before[i] for i in range(k.size) if i != row)


@pytest.mark.parametrize("giant", [100.0, 1e4, 1e9])
def test_a_giant_is_no_more_than_a_quarter(giant):
    """Five others at lift 1 and a giant at lift 3: the small ones see a lift of 1 + 2 / 4."""
    expected = np.array([1000.0] * 6 + [1000.0 * giant])
    k = expected.copy()
    k[-1] *= 3
    lift = _pool(k, expected)
    total = 5000.0 / 0.75
    want = (5000.0 + 3 * 0.25 * total + POOL_PRIOR_CONVERSIONS) / (total + POOL_PRIOR_CONVERSIONS)
    assert lift[0] == pytest.approx(want, rel=1e-6)
    assert lift[-1] == pytest.approx(1.0)


def test_too_few_others_are_no_pool():
    assert np.isnan(_pool([9.0] * 5, [3.0] * 5)).all()
    assert not np.isnan(_pool([9.0] * 6, [3.0] * 6)).any()
    # Who expects nothing contributes nothing, and does not count as a contributor.
    assert np.isnan(_pool([9.0] * 5 + [0.0], [3.0] * 5 + [0.0])[:5]).all()


def test_no_rows_and_one_row():
    assert _pool([], []).shape == (0,)
    assert np.isnan(_pool([1.0], [1.0])).all()


def test_little_pooled_evidence_says_little():
    assert _pool([1.0] * 7, [0.01] * 7)[0] == pytest.approx((6 + 20) / (0.06 + 20))


def test_a_cell_does_not_move_with_other_cells():
    rng = np.random.default_rng(4)
    cell = rng.integers(0, 30, 400)
    # One row per client and cell; the order within a cell is the clients'.
    cell.sort()
    expected = rng.gamma(1.0, 20.0, 400)
    k = rng.poisson(expected).astype(float)
    whole = compute_pool_lift(k, expected, cell, 30, minimum_contributors=5, maximum_share=0.25)
    for c in range(30):
        mine = cell == c
        alone = _pool(k[mine], expected[mine])
        assert alone.tobytes() == whole[mine].tobytes()


@settings(max_examples=200, deadline=None)
@given(pools(), st.sampled_from([0.25, 0.25, 0.3, 0.5]))
def test_what_a_pool_rests_on_is_the_slow_count(pool, share):
    k, expected, cell, cells = pool
    told = pool_counts(k, expected, cell, cells, minimum_contributors=5, maximum_share=share)
    for row in range(k.size):
        others = [
            expected[i] for i in range(k.size) if i != row and cell[i] == cell[row]
        ]  # fmt: skip
        assert told.contributors[row] == len(others)
        if len(others) >= 5:
            cut = _slow_cap(others, share)
            assert told.largest_share[row] == pytest.approx(max(cut) / sum(cut), rel=1e-9)
            assert told.largest_share[row] <= share + 1e-9
    assert told.excess.max() <= 1e-9
