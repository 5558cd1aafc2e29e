import numpy as np
import pytest

from conversion_assets.stats.smoothing import (
    build_day_kernel,
    build_week_kernel,
    smooth_day_hour,
    smooth_hours,
)


def _slow(values, kernel):
    flat = values.reshape(-1)
    result = np.zeros_like(flat)
    for target in range(flat.size):
        for source in range(flat.size):
            result[target] += kernel[(target - source) % flat.size] * flat[source]
    return result.reshape(values.shape)


@pytest.mark.parametrize("bandwidth", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("day_weight", [0.0, 0.05, 0.2])
def test_week_equals_slow_loops(bandwidth, day_weight):
    rng = np.random.default_rng(1)
    n = rng.poisson(6.0, (3, 7, 24)).astype(float)
    k, e = rng.binomial(n.astype(int), 0.1).astype(float), 0.1 * n
    kernel = build_week_kernel(bandwidth, day_weight)
    smoothed = smooth_day_hour(n, k, e, kernel=kernel)
    for g in range(3):
        np.testing.assert_allclose(smoothed.n[g], _slow(n[g], kernel), rtol=1e-12)
        np.testing.assert_allclose(smoothed.k[g], _slow(k[g], kernel), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(smoothed.expected[g], _slow(e[g], kernel), rtol=1e-12)
        kish = _slow(n[g], kernel) / _slow(n[g], kernel**2)
        np.testing.assert_allclose(smoothed.evidence[g], kish, rtol=1e-12)


def test_hours_equal_slow_loops():
    n = np.random.default_rng(2).poisson(6.0, (2, 24)).astype(float)
    smoothed = smooth_hours(n, n, n)
    np.testing.assert_allclose(smoothed.n[1], _slow(n[1], build_day_kernel()), rtol=1e-12)


def test_kernels_are_symmetric_and_keep_the_total():
    for kernel in (build_week_kernel(), build_day_kernel(), build_week_kernel(3.0, 0.3)):
        assert kernel.sum() == pytest.approx(1.0, abs=1e-14)
        np.testing.assert_allclose(kernel[1:], kernel[1:][::-1])
        assert kernel.argmax() == 0


def test_midnight_belongs_to_two_days_and_the_week_is_a_circle():
    n = np.zeros((1, 7, 24))
    n[0, 6, 23] = 100.0
    smoothed = smooth_day_hour(n, n, n).n[0]
    assert smoothed[0, 0] == smoothed[6, 22]
    assert smoothed[0, 12] == smoothed[6, 10] == 0.0  # neither the hour nor the day is near
    assert smoothed[5, 23] == smoothed[0, 23] > 0.0
    assert smoothed.sum() == pytest.approx(100.0)
    day = smooth_hours(n[:, 6], n[:, 6], n[:, 6]).n[0]
    assert day[0] == day[22] > day[1] == day[21] > 0


def test_turning_the_week_turns_the_result():
    n = np.random.default_rng(4).poisson(3.0, (1, 7, 24)).astype(float)
    turned = np.roll(n.reshape(1, -1), 31, axis=1).reshape(1, 7, 24)
    first, second = smooth_day_hour(n, n, n), smooth_day_hour(turned, turned, turned)
    np.testing.assert_array_equal(np.roll(first.n.reshape(-1), 31), second.n.reshape(-1))


def test_evidence_is_the_variance_that_smoothing_saves():
    rng = np.random.default_rng(8)
    n = np.full((4000, 24), 50.0)
    k = rng.binomial(50, 0.2, n.shape).astype(float)
    smoothed = smooth_hours(n, k, 0.2 * n)
    rate = smoothed.k / smoothed.n
    effective = (smoothed.n * smoothed.evidence)[0, 0]
    assert rate.var() == pytest.approx(0.2 * 0.8 / effective, rel=0.03)


def test_lone_cell_is_no_more_than_its_own_sample():
    n = np.zeros((1, 7, 24))
    n[0, 2, 10] = 30.0
    smoothed = smooth_day_hour(n, 0.1 * n, 0.1 * n)
    assert (smoothed.n * smoothed.evidence)[0, 2, 10] == pytest.approx(30.0)


def test_no_sample_gives_zeros():
    smoothed = smooth_day_hour(*(np.zeros((2, 7, 24)) for _ in range(3)))
    assert not smoothed.n.any()
    assert (smoothed.evidence == 1.0).all()


def test_peak_of_one_good_hour_stays_at_that_hour():
    n = np.full((1, 7, 24), 100.0)
    k = 0.1 * n
    k[0, 1, 10] *= 1.6
    smoothed = smooth_day_hour(n, k, 0.1 * n)
    assert (smoothed.k / smoothed.expected)[0].argmax() == 24 + 10


def test_other_groups_change_nothing():
    n = np.random.default_rng(5).poisson(3.0, (9, 7, 24)).astype(float)
    together = smooth_day_hour(n, 0.3 * n, 0.1 * n)
    alone = smooth_day_hour(n[4:5], 0.3 * n[4:5], 0.1 * n[4:5])
    for name in ("n", "k", "expected", "evidence"):
        assert getattr(together, name)[4].tobytes() == getattr(alone, name)[0].tobytes()
