import numpy as np
import pytest
from scipy.optimize import minimize

from conversion_assets.stats.logistic import (
    RIDGE,
    compute_probabilities,
    fit_calibration,
    fit_logistic,
)


def _make(groups=12, size=300, features=4, seed=0):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), size)
    x = np.round(rng.random((groups * size, features)), 2)
    beta = rng.normal(0.3, 1.5, (groups, features))
    eta = -2.0 + (x * beta[group]).sum(axis=1)
    return group, x, rng.random(group.size) < 1 / (1 + np.exp(-eta))


def _loss(theta, x, y, ridge):
    eta = theta[0] + x @ theta[1:]
    p = 1 / (1 + np.exp(-eta))
    value = np.logaddexp(0, eta).sum() - eta[y].sum() + ridge / 2 * (theta[1:] ** 2).sum()
    gradient = np.r_[(p - y).sum(), x.T @ (p - y) + ridge * theta[1:]]
    return value, gradient


@pytest.mark.parametrize("ridge", [RIDGE, 5.0])
def test_fit_equals_a_general_optimizer(ridge):
    group, x, y = _make()
    fit = fit_logistic(group, x, y, 12, ridge=ridge)
    assert fit.converged.all()
    at_bound = 0
    for g in range(12):
        mine = group == g
        reference = minimize(
            _loss,
            np.zeros(5),
            (x[mine], y[mine], ridge),
            jac=True,
            method="L-BFGS-B",
            bounds=[(None, None)] + [(0, None)] * 4,
            options={"ftol": 1e-16, "gtol": 1e-11, "maxiter": 5000, "maxls": 100},
        )
        theta = np.r_[fit.intercept[g], fit.coefficients[g]]
        assert _loss(theta, x[mine], y[mine], ridge)[0] <= reference.fun + 1e-10
        np.testing.assert_allclose(theta, reference.x, atol=1e-5)
        gradient = _loss(theta, x[mine], y[mine], ridge)[1]
        assert np.abs(gradient[np.r_[True, theta[1:] > 0]]).max() < 1e-6
        assert (gradient[1:][theta[1:] == 0] >= 0).all()
        at_bound += (theta[1:] == 0).sum()
    assert at_bound > 3  # the bound was tested


def test_separated_classes_constant_columns_and_missing_classes():
    x = np.array([[0.0, 0.5], [0.1, 0.5], [0.9, 0.5], [1.0, 0.5]] * 3)
    y = np.array([False, False, True, True] * 2 + [True] * 4)
    group = np.repeat(np.arange(3), 4)
    fit = fit_logistic(group, x, y, 4)
    assert fit.converged.tolist() == [True, True, False, False]
    assert (fit.coefficients[:2, 1] == 0).all()
    assert ((fit.coefficients[:2, 0] > 1) & (fit.coefficients[:2, 0] < 20)).all()
    assert np.isnan(fit.coefficients[2:]).all()
    assert np.isnan(fit.intercept[2:]).all()
    assert np.isnan(compute_probabilities(group, x, fit)[8:]).all()


def test_one_column_twice_shares_the_coefficient():
    group, x, y = _make(groups=1, features=1, seed=3)
    double = fit_logistic(group, np.column_stack([x, x]), y, 1)
    assert double.converged.all()
    np.testing.assert_allclose(double.coefficients[0, 0], double.coefficients[0, 1], atol=1e-7)


def test_rare_and_frequent_outcomes_converge():
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(40), 500)
    x = rng.random((group.size, 4)).round(1)
    y = np.zeros(group.size, dtype=bool)
    y[::500] = True  # one conversion in each group
    assert fit_logistic(group, x, y, 40).converged.all()
    assert fit_logistic(group, x, ~y, 40).converged.all()


def test_calibration_equals_a_general_optimizer_on_any_scale():
    group, x, y = _make(features=1, seed=5)
    for scale, shift in ((1.0, 0.0), (1e-4, 3.0), (1e4, -50.0)):
        predictor = scale * x[:, 0] + shift
        fit = fit_calibration(group, predictor, y, 12)
        assert fit.converged.all()
        for g in range(12):
            mine = group == g
            reference = minimize(
                _loss,
                np.zeros(2),
                (x[mine], y[mine], 0.0),
                jac=True,
                method="BFGS",
                options={"gtol": 1e-9},
            ).x
            np.testing.assert_allclose(fit.coefficients[g, 0] * scale, reference[1], atol=1e-5)


def test_calibration_has_no_fit_where_a_threshold_separates():
    predictor = np.array([0.0, 1.0, 2.0, 3.0] * 4)
    label = np.array([0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 1, 1], dtype=bool)
    group = np.repeat(np.arange(4), 4)
    fit = fit_calibration(group, predictor, label, 5)
    assert fit.converged.tolist() == [False, False, True, False, False]
    constant = fit_calibration(group, predictor * 0 + 2.0, label, 5)
    assert not constant.converged.any()


def test_other_groups_change_nothing():
    group, x, y = _make(groups=9, size=157, seed=8)
    y[group == 4] = True
    x[group == 2] = 0.25
    together, calibrated = fit_logistic(group, x, y, 9), fit_calibration(group, x[:, 0], y, 9)
    for g in range(9):
        mine = group == g
        zero = np.zeros(mine.sum(), np.int64)
        alone = fit_logistic(zero, x[mine], y[mine], 1)
        assert alone.coefficients[0].tobytes() == together.coefficients[g].tobytes()
        assert alone.intercept[0].tobytes() == together.intercept[g].tobytes()
        single = fit_calibration(zero, x[mine, 0], y[mine], 1)
        assert single.coefficients[0].tobytes() == calibrated.coefficients[g].tobytes()


def test_no_rows():
    empty = np.zeros(0, np.int64)
    fit = fit_logistic(empty, np.zeros((0, 4)), empty.astype(bool), 2)
    assert not fit.converged.any()
    assert fit.coefficients.shape == (2, 4)
    assert not fit_calibration(empty, np.zeros(0), empty.astype(bool), 2).converged.any()
