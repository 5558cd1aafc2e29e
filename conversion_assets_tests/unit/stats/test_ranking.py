import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from conversion_assets.domain.errors import InputError
from conversion_assets.stats.ranking import (
    LEAST_USABLE_REPLICATES,
    _compute_weighted_auc,
    _iterate_weights,
    _rank,
    bootstrap_auc_difference,
    compute_auc,
    compute_brier,
    compute_top_share,
)

rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 5), st.booleans()), min_size=0, max_size=50
)


def _arrays(values):
    values = sorted(values, key=lambda row: row[0])
    group = np.array([row[0] for row in values], dtype=np.int64)
    score = np.array([row[1] for row in values], dtype=np.float64) / 7.0
    return group, score, np.array([row[2] for row in values], dtype=np.bool_)


@settings(max_examples=80, deadline=None)
@given(rows)
def test_auc_and_brier_equal_sklearn(values):
    group, score, label = _arrays(values)
    auc, brier = compute_auc(group, score, label, 4), compute_brier(group, score, label, 4)
    for g in range(4):
        mine = group == g
        if not mine.any():
            assert np.isnan(brier[g])
        else:
            assert brier[g] == pytest.approx(np.mean((score[mine] - label[mine]) ** 2))
        if len(set(label[mine])) < 2:
            assert np.isnan(auc[g])
        else:
            assert auc[g] == pytest.approx(roc_auc_score(label[mine], score[mine]), abs=1e-12)
            assert brier[g] == pytest.approx(brier_score_loss(label[mine], score[mine]))


@settings(max_examples=40, deadline=None)
@given(rows)
def test_weighted_auc_equals_sklearn_with_weights(values):
    group, score, label = _arrays(values)
    weight = next(_iterate_weights(group, 1, 77)) if group.size else np.zeros(0, np.uint8)
    positives = np.bincount(group[label], minlength=4)
    negatives = np.bincount(group[~label], minlength=4)
    borders = tuple(np.r_[0, np.cumsum(count)] for count in (positives, negatives))
    mine = _compute_weighted_auc(
        weight, weight[label].astype(np.int64), _rank(group, score, label), borders
    )
    for g in range(4):
        kept = (group == g) & (weight > 0)
        if len(set(label[kept])) < 2:
            assert np.isnan(mine[g])
        else:
            expected = roc_auc_score(label[kept], score[kept], sample_weight=weight[kept])
            assert mine[g] == pytest.approx(expected, abs=1e-12)


def test_weights_are_poisson_and_independent():
    group = np.repeat(np.arange(2), 20_000)
    weights = np.array(list(_iterate_weights(group, 9, 5)), dtype=float)
    assert (weights[:, :20_000] == weights[:, 20_000:]).all()  # rank within the group, not place
    sample = weights[:, :20_000]
    assert sample.mean() == pytest.approx(1.0, abs=0.01)
    assert sample.var() == pytest.approx(1.0, abs=0.02)
    correlation = np.corrcoef(sample)[np.triu_indices(9, 1)]
    assert np.abs(correlation).max() < 0.03
    assert abs(np.corrcoef(sample[0, 1:], sample[0, :-1])[0, 1]) < 0.03
    other = next(_iterate_weights(group, 1, 6))
    assert (other != weights[0]).mean() > 0.4


def _make(groups, size, seed, tie=1):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), size)
    label = rng.random(group.size) < 0.2
    shared = rng.normal(size=group.size)
    first = np.round((label * 0.8 + shared + rng.normal(size=group.size)) * tie) / tie
    second = np.round((label * 0.8 + shared + rng.normal(size=group.size)) * tie) / tie
    return group, (first, second), label


def _slow_auc(label, score):
    pairs = score[label][:, None] - score[~label][None, :]
    return ((pairs > 0) + 0.5 * (pairs == 0)).mean()


def test_interval_agrees_with_an_obvious_bootstrap():
    group, scores, label = _make(4, 250, 1, tie=3)
    interval = bootstrap_auc_difference(group, scores, label, 4, replicates=2000, seed=3)
    rng = np.random.default_rng(0)
    for g in range(4):
        index = np.flatnonzero(group == g)
        draws = []
        for _ in range(600):
            pick = rng.choice(index, index.size)
            auc = [_slow_auc(label[pick], score[pick]) for score in scores]
            draws.append(auc[0] - auc[1])
        low, high = np.percentile(draws, [5, 95])
        width = high - low
        assert interval.low[g] == pytest.approx(low, abs=0.12 * width)
        assert interval.high[g] == pytest.approx(high, abs=0.12 * width)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 4), st.booleans()),
        min_size=1, max_size=60,
    ),
    st.integers(0, 2**63), st.sampled_from([0.5, 0.9]),
)  # fmt: skip
def test_interval_is_that_of_rows_repeated_by_their_weights(values, seed, mass):
    """Each replicate by copying rows and comparing all pairs; ends by numpy's percentiles."""
    values = sorted(values, key=lambda row: row[0])
    group = np.array([row[0] for row in values], dtype=np.int64)
    scores = tuple(np.array([row[i] for row in values], dtype=float) / 3 for i in (1, 2))
    label = np.array([row[3] for row in values], dtype=np.bool_)
    replicates = 24
    got = bootstrap_auc_difference(
        group, scores, label, 4, replicates=replicates, seed=seed, mass=mass
    )
    weights = list(_iterate_weights(group, replicates, seed))
    for g in range(4):
        mine, draws = group == g, []
        for weight in weights:
            copies = np.repeat(np.flatnonzero(mine), weight[mine])
            if len(set(label[copies].tolist())) == 2:
                one, two = (_slow_auc(label[copies], score[copies]) for score in scores)
                draws.append(one - two)
        assert got.replicates[g] == len(draws)
        if len(draws) < max(1, LEAST_USABLE_REPLICATES * replicates):
            assert np.isnan(got.low[g])
            assert np.isnan(got.high[g])
        else:
            ends = np.percentile(draws, [50 - 50 * mass, 50 + 50 * mass])
            np.testing.assert_allclose([got.low[g], got.high[g]], ends, atol=1e-12)


def test_interval_covers_no_difference_nine_times_in_ten():
    group, scores, label = _make(1500, 200, 2, tie=4)
    interval = bootstrap_auc_difference(group, scores, label, 1500, replicates=200, seed=4)
    covered = (interval.low <= 0) & (interval.high >= 0)
    assert 0.87 <= covered.mean() <= 0.93
    assert 0.03 <= (interval.low > 0).mean() <= 0.07


def test_other_groups_change_nothing():
    group, scores, label = _make(5, 90, 6, tie=2)
    together = bootstrap_auc_difference(group, scores, label, 5, replicates=60, seed=9)
    auc, top = (
        compute_auc(group, scores[0], label, 5),
        compute_top_share(group, scores[0], label, 5),
    )
    for g in range(5):
        mine = group == g
        zero, own = np.zeros(mine.sum(), np.int64), (scores[0][mine], scores[1][mine])
        alone = bootstrap_auc_difference(zero, own, label[mine], 1, replicates=60, seed=9)
        assert alone.low[0].tobytes() == together.low[g].tobytes()
        assert alone.high[0].tobytes() == together.high[g].tobytes()
        assert compute_auc(zero, own[0], label[mine], 1)[0].tobytes() == auc[g].tobytes()
        assert compute_top_share(zero, own[0], label[mine], 1)[0].tobytes() == top[g].tobytes()


def test_groups_without_a_class_have_no_interval():
    group = np.repeat(np.arange(3), 20)
    label = np.arange(60) % 2 == 0
    label[20:40] = True
    label[40:] = np.arange(20) == 3  # one positive: 37 % of the replicates lose it
    score = np.arange(60.0)
    interval = bootstrap_auc_difference(group, (score, -score), label, 4, replicates=100, seed=1)
    assert np.isfinite(interval.low[0])
    assert np.isnan(interval.low[1:]).all()
    assert interval.replicates[1] == interval.replicates[3] == 0


def test_rows_must_be_sorted_by_group():
    with pytest.raises(InputError, match="sorted"):
        bootstrap_auc_difference(
            np.array([1, 0]),
            (np.zeros(2), np.zeros(2)),
            np.array([True, False]),
            2,
            replicates=50,
            seed=1,
        )


def test_equal_scores_have_difference_zero():
    group, scores, label = _make(2, 100, 6)
    same = bootstrap_auc_difference(
        group, (scores[0], scores[0] * 2), label, 2, replicates=50, seed=1
    )
    assert same.low.tolist() == same.high.tolist() == [0.0, 0.0]


@settings(max_examples=80, deadline=None)
@given(rows)
def test_top_share_is_the_mean_over_orders_of_the_ties(values):
    group, score, label = _arrays(values)
    shares = compute_top_share(group, score, label, 4)
    for g in range(4):
        mine = group == g
        if not label[mine].any():
            assert np.isnan(shares[g])
            continue
        room, found = 0.2 * mine.sum(), 0.0
        for level in sorted(set(score[mine]), reverse=True):
            tied = mine & (score == level)
            part = min(1.0, max(0.0, room) / tied.sum())
            found += part * label[tied].sum()
            room -= tied.sum()
        assert shares[g] == pytest.approx(found / label[mine].sum())
