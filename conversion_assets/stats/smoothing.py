"""Smoothing on the circle of the week: neighbouring hours lend each other evidence."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DAYS, HOURS = 7, 24

# Standard deviation of the kernel. People's attention changes over a few hours, not within
# one; 1 hour makes a cell's sample about 3.5 times as large (1 / sum of squared weights) and yet
# keeps the peak of a single good hour at that hour. 2 hours would flatten such a peak to a third.
HOUR_BANDWIDTH = 1.0

# Weight of the day before and of the day after, each, at the same hour. Weekdays differ more than
# hours do (Friday is no Thursday), so a neighbouring day only steadies a cell that is thin.
DAY_WEIGHT = 0.05

# A normal kernel beyond three standard deviations holds 0.3 %: not worth the passes.
KERNEL_REACH = 3.0


@dataclass(frozen=True)
class SmoothedCounts:
    """Kernel-weighted counts around each cell, all of one shape.

    The counts keep their totals: the kernel's weights sum to 1. They are averages over
    neighbours and steadier than their size says: multiplied by `evidence` they are the counts of
    a sample that would be as steady, and then fit for intervals and tests.

    Attributes:
        n: Smoothed sample.
        k: Smoothed conversions; k / n is the smoothed rate.
        expected: Smoothed expected conversions; k / expected is the smoothed lift.
        evidence: Effective sample size over n (Kish), 1 where the sample is 0.
    """

    n: Floats
    k: Floats
    expected: Floats
    evidence: Floats


def build_week_kernel(bandwidth: float = HOUR_BANDWIDTH, day_weight: float = DAY_WEIGHT) -> Floats:
    """Weights by distance on the week's circle of 168 hours, shape (168,), summing to 1.

    Entry d is the weight of the slot d hours later (or 168 - d hours earlier). Hour 23 is next to
    hour 0 of the following day, and Sunday's last hour next to Monday's first.

    Example:
        >>> kernel = build_week_kernel(1.0, 0.05)
        >>> round(float(kernel.sum()), 12), round(float(kernel[24] / kernel[0]), 4)
        (1.0, 0.0556)
    """
    hours = _build_hour_kernel(DAYS * HOURS, bandwidth)
    neighbours = np.roll(hours, HOURS) + np.roll(hours, -HOURS)
    return (1.0 - 2.0 * day_weight) * hours + day_weight * neighbours


def build_day_kernel(bandwidth: float = HOUR_BANDWIDTH) -> Floats:
    """Weights by distance on the day's circle of 24 hours, shape (24,), summing to 1.

    Example:
        >>> build_day_kernel()[[1, 23]].round(4).tolist()
        [0.242, 0.242]
    """
    return _build_hour_kernel(HOURS, bandwidth)


def _build_hour_kernel(slots: int, bandwidth: float) -> Floats:
    distance = np.minimum(np.arange(slots), slots - np.arange(slots)).astype(np.float64)
    weight = np.exp(-0.5 * (distance / bandwidth) ** 2)
    weight[distance > KERNEL_REACH * bandwidth] = 0.0
    return np.asarray(weight / weight.sum(), dtype=np.float64)


def smooth_day_hour(
    n: Floats, k: Floats, expected: Floats, *, kernel: Floats | None = None
) -> SmoothedCounts:
    """Smooth counts by weekday and hour around the week.

    Args:
        n: Samples, shape (groups, 7, 24), Monday and midnight first.
        k: Conversions, same shape.
        expected: Expected conversions, same shape.
        kernel: Weights by distance in hours, shape (168,); those of `build_week_kernel` if None.

    Example:
        >>> n = np.zeros((1, 7, 24)); n[0, 6, 23] = 100.0
        >>> smoothed = smooth_day_hour(n, 0.1 * n, 0.1 * n)
        >>> bool(smoothed.n[0, 0, 0] == smoothed.n[0, 6, 22] > 0), round(float(smoothed.n.sum()))
        (True, 100)
    """
    weights = build_week_kernel() if kernel is None else kernel
    return _smooth(n, k, expected, weights)


def smooth_hours(
    n: Floats, k: Floats, expected: Floats, *, kernel: Floats | None = None
) -> SmoothedCounts:
    """Smooth counts by hour around the day; shapes (groups, 24), kernel (24,).

    Example:
        >>> n = np.full((1, 24), 10.0)
        >>> smoothed = smooth_hours(n, 0.1 * n, 0.1 * n)
        >>> round(float(smoothed.n[0, 0]), 9), round(float(smoothed.evidence[0, 0]), 2)
        (10.0, 3.54)
    """
    weights = build_day_kernel() if kernel is None else kernel
    return _smooth(n, k, expected, weights)


def _smooth(n: Floats, k: Floats, expected: Floats, kernel: Floats) -> SmoothedCounts:
    sample = _smooth_circle(n, kernel)
    squared = _smooth_circle(n, kernel * kernel)
    has_sample = squared > 0
    evidence = np.where(has_sample, sample / np.where(has_sample, squared, 1.0), 1.0)
    return SmoothedCounts(
        sample, _smooth_circle(k, kernel), _smooth_circle(expected, kernel), evidence
    )


def _smooth_circle(values: Floats, kernel: Floats) -> Floats:
    """Weighted sum over the circle; one elementwise pass per distance, in a fixed order."""
    flat = np.asarray(values, dtype=np.float64).reshape(-1, kernel.size)
    result = np.zeros_like(flat)
    for distance in np.flatnonzero(kernel):
        result += kernel[distance] * np.roll(flat, distance, axis=1)
    return result.reshape(values.shape)
