import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.duration.survfunc import SurvfuncRight

from conversion_assets.domain.errors import InputError
from conversion_assets.stats.survival import (
    compute_converted_shares,
    compute_quantile_times,
    fit_kaplan_meier,
)

members = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 12), st.booleans()), min_size=0, max_size=60
)


def _arrays(rows):
    group = np.array([row[0] for row in rows], dtype=np.int64)
    time = np.array([row[1] for row in rows], dtype=np.float64) / 3.0
    return group, time, np.array([row[2] for row in rows], dtype=np.bool_)


@settings(max_examples=60, deadline=None)
@given(members)
def test_curves_equal_statsmodels(rows):
    group, time, is_event = _arrays(rows)
    curves = fit_kaplan_meier(group, time, is_event, 5)
    for g in range(5):
        mine = curves.group == g
        member = group == g
        if not is_event[member].any():
            assert not mine.any()
            continue
        reference = SurvfuncRight(time[member], is_event[member].astype(int))
        np.testing.assert_array_equal(curves.time[mine], reference.surv_times)
        np.testing.assert_array_equal(curves.at_risk[mine], reference.n_risk)
        np.testing.assert_array_equal(curves.events[mine], reference.n_events)
        np.testing.assert_allclose(curves.survival[mine], reference.surv_prob, atol=1e-12)
        above = curves.survival[mine] > 0
        np.testing.assert_allclose(
            np.sqrt(curves.variance[mine][above]), reference.surv_prob_se[above], rtol=1e-9
        )


def test_interval_is_greenwoods_on_the_log_log_scale():
    rng = np.random.default_rng(3)
    time, is_event = rng.exponential(size=200), rng.random(200) < 0.6
    curves = fit_kaplan_meier(np.zeros(200, np.int64), time, is_event, 1, mass=0.90)
    reference = SurvfuncRight(time, is_event.astype(int))
    survival, error = reference.surv_prob, reference.surv_prob_se
    inside = survival > 0
    z = 1.6448536269514722
    theta = np.log(-np.log(survival[inside]))
    spread = z * error[inside] / np.abs(survival[inside] * np.log(survival[inside]))
    np.testing.assert_allclose(curves.low[inside], np.exp(-np.exp(theta + spread)), rtol=1e-9)
    np.testing.assert_allclose(curves.high[inside], np.exp(-np.exp(theta - spread)), rtol=1e-9)


def test_interval_covers_the_truth_nine_times_in_ten():
    rng = np.random.default_rng(11)
    groups, size = 2000, 80
    group = np.repeat(np.arange(groups), size)
    event, censored = rng.exponential(size=group.size), rng.exponential(2.0, size=group.size)
    curves = fit_kaplan_meier(group, np.minimum(event, censored), event <= censored, groups)
    at = 0.7
    last = np.searchsorted(curves.group * 1e6 + curves.time, np.arange(groups) * 1e6 + at) - 1
    covered = (curves.low[last] <= np.exp(-at)) & (np.exp(-at) <= curves.high[last])
    assert 0.88 <= covered.mean() <= 0.92


def test_survival_at_zero_keeps_the_interval_of_the_event_before():
    time = np.array([1.0, 2.0, 3.0])
    curves = fit_kaplan_meier(np.zeros(3, np.int64), time, np.array([True, False, True]), 1)
    assert curves.survival.tolist()[-1] == 0.0
    assert curves.low[-1] == 0.0
    assert curves.high[-1] == curves.high[0]
    alone = fit_kaplan_meier(np.zeros(1, np.int64), time[:1], np.array([True]), 1)
    assert (alone.low[0], alone.high[0]) == (0.0, 1.0)
    assert np.isnan(alone.variance[0])


@settings(max_examples=60, deadline=None)
@given(members, st.sampled_from([(0.5, 0.8, 0.95), (0.25, 0.9, 0.99)]))
def test_quantiles_equal_the_first_time_that_reaches_the_share(rows, probabilities):
    group, time, is_event = _arrays(rows)
    curves = fit_kaplan_meier(group, time, is_event, 4)
    for is_of_converted in (False, True):
        times = compute_quantile_times(curves, probabilities, is_of_converted=is_of_converted)
        assert times.shape == (4, 3)
        for g in range(4):
            points = np.flatnonzero(curves.group == g)
            whole = 1.0
            if is_of_converted and points.size:
                whole = 1.0 - curves.survival[points[-1]]
            for column, probability in enumerate(probabilities):
                reached = [
                    curves.time[i]
                    for i in points
                    if 1.0 - curves.survival[i] >= probability * whole - 1e-12
                ]
                expected = reached[0] if reached else np.nan
                np.testing.assert_equal(times[g, column], expected)


def test_censoring_matters_and_the_median_is_right():
    rng = np.random.default_rng(5)
    event, censored = rng.exponential(10.0, 50_000), rng.exponential(10.0, 50_000)
    curves = fit_kaplan_meier(
        np.zeros(50_000, np.int64), np.minimum(event, censored), event <= censored, 1
    )
    median = compute_quantile_times(curves, (0.5,))[0, 0]
    assert median == pytest.approx(10.0 * np.log(2.0), rel=0.03)
    naive = np.median(event[event <= censored])
    assert naive < 0.6 * median


@settings(max_examples=40, deadline=None)
@given(members, st.randoms(use_true_random=False))
def test_order_and_other_groups_change_nothing(rows, random):
    group, time, is_event = _arrays(rows)
    together = fit_kaplan_meier(group, time, is_event, 4)
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)
    again = fit_kaplan_meier(group[shuffled], time[shuffled], is_event[shuffled], 4)
    for g in range(4):
        alone = fit_kaplan_meier(
            np.zeros((group == g).sum(), np.int64), time[group == g], is_event[group == g], 1
        )
        for name in ("time", "at_risk", "events", "survival", "variance", "low", "high"):
            mine = getattr(together, name)[together.group == g].tobytes()
            assert mine == getattr(alone, name).tobytes()
            assert mine == getattr(again, name)[again.group == g].tobytes()


def test_no_members_and_no_events():
    empty = np.zeros(0, np.int64)
    curves = fit_kaplan_meier(empty, empty.astype(float), empty.astype(bool), 2)
    assert curves.time.size == 0
    assert np.isnan(compute_quantile_times(curves, (0.5,))).all()
    assert all(np.isnan(part).all() for part in compute_converted_shares(curves))
    assert compute_converted_shares(curves)[0].shape == (2,)


def test_unknown_times_are_refused():
    with pytest.raises(InputError, match="finite"):
        fit_kaplan_meier(np.zeros(1, np.int64), np.array([np.nan]), np.array([True]), 1)
