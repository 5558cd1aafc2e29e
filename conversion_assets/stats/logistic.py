"""Logistic regression of many groups at once, safe under separation."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Ridge penalty on features scaled to [0, 1]: a normal prior with standard deviation 2.5 on each
# coefficient (Gelman et al. 2008 for the scale), that is, moving a feature over its whole range
# rarely multiplies the odds by more than e^5. It weighs as much as one or two conversions, and
# keeps the estimate finite when the classes separate.
RIDGE = 1.0 / 2.5**2

# Newton's method gains two digits after two more steps at this gradient per row; the coefficients
# are then exact to about 1e-8.
GRADIENT_TOLERANCE = 1e-11
# Newton needs 6 to 12 steps; groups that need more than 60 are reported as not converged.
LONGEST_SEARCH = 60
LONGEST_BACKTRACK = 30
# A step must gain at least this part of what the slope promises (Armijo's rule, usual value).
SUFFICIENT_DECREASE = 1e-4
# Sums of n terms are exact to about this, relative; smaller rises of the loss are rounding.
ROUNDING = 1e-13


@dataclass(frozen=True)
class LogisticFit:
    """Fitted models, one per group.

    Attributes:
        intercept: Shape (groups,); NaN where there is no fit.
        coefficients: Shape (groups, features); NaN where there is no fit.
        converged: False where a group lacks one of the classes or the search did not end.
    """

    intercept: Floats
    coefficients: Floats
    converged: Bools


def fit_logistic(
    group: Ints,
    features: Floats,
    label: Bools,
    groups: int,
    *,
    ridge: float = RIDGE,
) -> LogisticFit:
    """Fit P(label) = 1 / (1 + exp(-(a + b·x))) with every b >= 0, for every group.

    Minimises the negative log likelihood + ridge / 2 · sum of b²; the intercept is free. With
    ridge > 0 and both classes present the minimum is unique and finite, even when the classes
    separate or a feature is constant (its coefficient is then 0).

    Args:
        group: Group of the row, 0 .. groups - 1, shape (rows,); sums run in the order of rows.
        features: Features scaled to [0, 1], shape (rows, features).
        label: Outcome, shape (rows,).
        groups: Number of groups.
        ridge: Penalty; its default is a prior for features scaled to [0, 1].

    Source:
        Bertsekas 1982 (projected Newton method).

    Example:
        >>> x = np.array([[0.0], [0.0], [0.0], [1.0], [1.0], [1.0]])
        >>> y = np.array([True, False, False, True, True, False])
        >>> fit = fit_logistic(np.zeros(6, int), x, y, 1, ridge=1e-9)
        >>> fit.intercept.round(4).tolist(), fit.coefficients.round(4).tolist()
        ([-0.6931], [[1.3863]])
    """
    columns = [np.ascontiguousarray(features[:, j]) for j in range(features.shape[1])]
    penalty = np.full(len(columns), ridge)
    fittable = _has_both_classes(group, label, groups)
    beta, converged = _search(group, columns, label, fittable, penalty=penalty, is_bounded=True)
    return LogisticFit(beta[:, 0].copy(), beta[:, 1:].copy(), converged)


def fit_calibration(group: Ints, predictor: Floats, label: Bools, groups: int) -> LogisticFit:
    """Fit P(label) = 1 / (1 + exp(-(a + b·x))) without penalty or bound, for every group.

    With x the logit of a predicted probability b is the calibration slope: 1 when the
    predictions are as far apart as the outcomes, below 1 when they are too far apart.

    Args:
        group: Group of the row, 0 .. groups - 1, shape (rows,); sums run in the order of rows.
        predictor: Finite numbers on any scale, shape (rows,).
        label: Outcome, shape (rows,).
        groups: Number of groups.

    Returns:
        The fit, coefficients of shape (groups, 1). No fit where a group lacks a class, has a
        constant predictor, or a threshold on the predictor separates the classes.

    Source:
        Cox 1958.

    Example:
        >>> x = np.array([5.0, 5.0, 5.0, 7.0, 7.0, 7.0])
        >>> y = np.array([True, False, False, True, True, False])
        >>> fit_calibration(np.zeros(6, int), x, y, 1).coefficients.round(4).tolist()
        [[0.6931]]
    """
    fittable = _has_both_classes(group, label, groups)
    highest, lowest = np.full((2, groups), -np.inf), np.full((2, groups), np.inf)
    is_positive = label.astype(np.int64)
    np.maximum.at(highest, (is_positive, group), predictor)
    np.minimum.at(lowest, (is_positive, group), predictor)
    fittable &= (highest[0] > lowest[1]) & (highest[1] > lowest[0])
    # Centred and scaled, so that the search is as well conditioned on any scale of the predictor.
    rows = np.maximum(np.bincount(group, minlength=groups), 1)
    mean = np.bincount(group, predictor, groups) / rows
    centred = predictor - mean[group]
    spread = np.sqrt(np.bincount(group, centred * centred, groups) / rows)
    spread = np.where(spread > 0, spread, 1.0)
    beta, converged = _search(
        group, [centred / spread[group]], label, fittable, penalty=np.zeros(1), is_bounded=False
    )
    slope = beta[:, 1] / spread
    return LogisticFit(beta[:, 0] - slope * mean, slope[:, None], converged)


def compute_probabilities(group: Ints, features: Floats, fit: LogisticFit) -> Floats:
    """Predicted probabilities, shape (rows,); NaN for rows of groups without a fit.

    Example:
        >>> fit = LogisticFit(np.zeros(1), np.ones((1, 1)), np.array([True]))
        >>> compute_probabilities(np.zeros(1, int), np.zeros((1, 1)), fit).tolist()
        [0.5]
    """
    columns = [features[:, j] for j in range(features.shape[1])]
    beta = np.column_stack([fit.intercept, fit.coefficients])
    return _compute_sigmoid(_compute_predictor(group, columns, beta))[0]


def _has_both_classes(group: Ints, label: Bools, groups: int) -> Bools:
    rows = np.bincount(group, minlength=groups)
    positives = np.bincount(group[label], minlength=groups)
    return np.asarray((positives > 0) & (positives < rows), dtype=np.bool_)


@dataclass
class _Problem:
    """Rows of the groups still searched for, and what the loss adds to them."""

    group: Ints
    columns: list[Floats]
    label: Floats
    penalty: Floats
    groups: int

    def sum_rows(self, values: Floats) -> Floats:
        """Sum per group, sequentially in the order of the rows."""
        return np.bincount(self.group, values, self.groups).astype(np.float64, copy=False)

    def compute_loss(self, beta: Floats) -> tuple[Floats, Floats]:
        """Penalised loss per group, and the predicted probability per row."""
        predictor = _compute_predictor(self.group, self.columns, beta)
        probability, softplus = _compute_sigmoid(predictor)
        loss = self.sum_rows(softplus - self.label * predictor)
        for j, penalty in enumerate(self.penalty):
            loss += 0.5 * penalty * beta[:, j + 1] ** 2
        return loss, probability

    def compute_derivatives(self, beta: Floats, probability: Floats) -> tuple[Floats, Floats]:
        """Gradient (groups, p + 1) and Hessian (groups, p + 1, p + 1) of the loss."""
        size = len(self.columns) + 1
        gradient, hessian = np.zeros((self.groups, size)), np.zeros((self.groups, size, size))
        residual, weight = probability - self.label, probability * (1.0 - probability)
        gradient[:, 0], hessian[:, 0, 0] = self.sum_rows(residual), self.sum_rows(weight)
        for j, column in enumerate(self.columns, start=1):
            penalty = self.penalty[j - 1]
            gradient[:, j] = self.sum_rows(residual * column) + penalty * beta[:, j]
            weighted = weight * column
            hessian[:, j, 0] = hessian[:, 0, j] = self.sum_rows(weighted)
            for other in range(1, j + 1):
                value = self.sum_rows(weighted * self.columns[other - 1])
                hessian[:, j, other] = hessian[:, other, j] = value
            hessian[:, j, j] += penalty
        return gradient, hessian

    def keep(self, running: Bools) -> None:
        """Drop the rows of finished groups; the order of the others stays."""
        kept = running[self.group]
        self.group, self.label = self.group[kept], self.label[kept]
        self.columns = [column[kept] for column in self.columns]


def _compute_predictor(group: Ints, columns: list[Floats], beta: Floats) -> Floats:
    predictor = np.asarray(beta[group, 0], dtype=np.float64)
    for j, column in enumerate(columns, start=1):
        predictor += beta[group, j] * column
    return predictor


def _compute_sigmoid(predictor: Floats) -> tuple[Floats, Floats]:
    """Probability and log(1 + exp(predictor)), without overflow."""
    small = np.exp(-np.abs(predictor))
    probability = np.where(predictor >= 0, 1.0, small) / (1.0 + small)
    return probability, np.log1p(small) + np.maximum(predictor, 0.0)


def _search(
    group: Ints,
    columns: list[Floats],
    label: Bools,
    fittable: Bools,
    *,
    penalty: Floats,
    is_bounded: bool,
) -> tuple[Floats, Bools]:
    """Projected Newton search of all groups at once; a group stops moving once it is done.

    Each group takes the steps it would take alone: nothing of its search depends on the others.
    """
    groups = fittable.size
    beta = np.zeros((groups, len(columns) + 1))
    running, converged = fittable.copy(), np.zeros(groups, dtype=np.bool_)
    rows = np.maximum(np.bincount(group, minlength=groups), 1)
    share = np.clip(np.bincount(group[label], minlength=groups) / rows, 1e-12, 1.0 - 1e-12)
    beta[:, 0] = np.log(share / (1.0 - share))
    problem = _Problem(group, columns, label.astype(np.float64), penalty, groups)
    problem.keep(running)
    loss, probability = problem.compute_loss(beta)
    for _ in range(LONGEST_SEARCH):
        gradient, hessian = problem.compute_derivatives(beta, probability)
        held = np.zeros_like(gradient, dtype=np.bool_)
        held[:, 1:] = is_bounded & (beta[:, 1:] <= 0) & (gradient[:, 1:] > 0)
        free_gradient = np.where(held, 0.0, gradient)
        is_done = np.abs(free_gradient).max(axis=1) <= GRADIENT_TOLERANCE * rows
        converged |= running & is_done
        finished = running & is_done
        running &= ~is_done
        if not running.any():
            break
        if finished.any():
            kept = running[problem.group]
            problem.keep(running)
            probability = probability[kept]
        hessian = np.where(held[:, :, None] | held[:, None, :], 0.0, hessian)
        _set_held_diagonal(hessian, held | ~running[:, None])
        step = _solve(hessian, free_gradient)
        running &= np.isfinite(step).all(axis=1)
        step = np.where(running[:, None], step, 0.0)
        beta, loss, probability = _descend(
            problem, beta, loss, step=step, gradient=gradient, is_bounded=is_bounded
        )
    beta[~converged] = np.nan
    return beta, converged


def _set_held_diagonal(hessian: Floats, held: Bools) -> None:
    """Coefficients that stay at their bound get a row of the identity, so the rest is solvable."""
    size = hessian.shape[1]
    diagonal = np.arange(size)
    hessian[:, diagonal, diagonal] = np.where(held, 1.0, hessian[:, diagonal, diagonal])


def _descend(
    problem: _Problem,
    beta: Floats,
    loss: Floats,
    *,
    step: Floats,
    gradient: Floats,
    is_bounded: bool,
) -> tuple[Floats, Floats, Floats]:
    """Halve each group's step until its loss falls enough; coefficients are clipped at 0."""
    scale = np.ones(beta.shape[0])
    for _ in range(LONGEST_BACKTRACK):
        candidate = beta - scale[:, None] * step
        if is_bounded:
            np.maximum(candidate[:, 1:], 0.0, out=candidate[:, 1:])
        new_loss, probability = problem.compute_loss(candidate)
        promised = np.zeros_like(loss)
        for j in range(beta.shape[1]):
            promised += gradient[:, j] * (beta[:, j] - candidate[:, j])
        slack = ROUNDING * (1.0 + np.abs(loss)) - SUFFICIENT_DECREASE * promised
        is_short = (step != 0).any(axis=1) & ~(new_loss <= loss + slack)
        if not is_short.any():
            break
        scale[is_short] *= 0.5
    return candidate, new_loss, probability


def _solve(matrix: Floats, right: Floats) -> Floats:
    """Solve positive definite systems, shape (groups, p, p) and (groups, p).

    Elimination without pivots is stable for them. Elementwise, so one group's singular matrix
    (NaN or infinity in its own result) cannot stop the others, as a library's solver would.
    """
    size = right.shape[1]
    system = np.concatenate([matrix, right[:, :, None]], axis=2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for pivot in range(size):
            system[:, pivot] /= system[:, pivot, pivot, None].copy()
            for row in range(size):
                if row != pivot:
                    system[:, row] -= system[:, row, pivot, None].copy() * system[:, pivot]
    return system[:, :, size].copy()
