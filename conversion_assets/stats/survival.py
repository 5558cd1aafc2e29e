"""Time to conversion, with open leads censored."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from conversion_assets.domain.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Survival is a product of fractions, so "exactly 50 %" may miss 0.5 by a few units of the last
# place; no sample of fewer than a trillion leads has two distinct shares this close.
SHARE_TOLERANCE = 1e-12


@dataclass(frozen=True)
class SurvivalCurves:
    """Kaplan-Meier curves of all groups, flat: one point per group and distinct event time.

    Attributes:
        group: Group of the point, ascending, shape (points,).
        time: Event time in the unit of the input, ascending within a group.
        at_risk: Members neither converted nor censored just before the time.
        events: Conversions at the time.
        survival: Share not converted just after the time.
        variance: Greenwood's variance of the survival; NaN once the survival is 0.
        low: Lower end of the survival's interval.
        high: Upper end of the survival's interval.
        groups: Number of groups, also those without any event.
    """

    group: Ints
    time: Floats
    at_risk: Ints
    events: Ints
    survival: Floats
    variance: Floats
    low: Floats
    high: Floats
    groups: int


def fit_kaplan_meier(
    group: Ints, time: Floats, is_event: Bools, groups: int, *, mass: float = 0.90
) -> SurvivalCurves:
    """Estimate the share not yet converted over time, with right censoring, for every group.

    A member censored at the time of an event counts as at risk of it. The interval is Greenwood's
    on the log(-log) scale, so it stays within [0, 1]. Once the survival is 0 that scale has no
    interval: its lower end is then 0 and its upper end stays that of the event before (1 when
    there is none), which is too wide rather than too narrow.

    Args:
        group: Group of the member, 0 .. groups - 1, in any order, shape (members,).
        time: Time of the event or of censoring, any unit, shape (members,).
        is_event: True for an event, False for censored, shape (members,).
        groups: Number of groups.
        mass: Mass of the interval.

    Raises:
        InputError: A time is not a finite number.

    Source:
        Kaplan & Meier 1958; Greenwood 1926; Kalbfleisch & Prentice 1980 for the log(-log) scale.

    Example:
        >>> curves = fit_kaplan_meier(np.zeros(4, int), np.array([1.0, 2.0, 2.0, 5.0]),
        ...                           np.array([True, True, False, False]), 1)
        >>> curves.time.tolist(), curves.survival.tolist()
        ([1.0, 2.0], [0.75, 0.5])
    """
    if not np.isfinite(time).all():
        raise InputError("survival: every time must be a finite number; leave out unknown times")
    order = np.lexsort((time, group))
    group, time, is_event = group[order], time[order], is_event[order]
    is_first = _is_run_start(group) | _is_run_start(time)
    first = np.flatnonzero(is_first)
    run = np.cumsum(is_first) - 1
    group_end = np.searchsorted(group, np.arange(groups), side="right")
    events = np.bincount(run[is_event], minlength=first.size).astype(np.int64)
    kept = events > 0
    first, events = first[kept], events[kept]
    at_risk = group_end[group[first]] - first
    point_group = group[first]
    position = _position_in_run(point_group)
    survival = _scan_runs((at_risk - events) / at_risk, position, is_product=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = events / (at_risk * (at_risk - events).astype(np.float64))
        greenwood = _scan_runs(terms, position, is_product=False)
        variance = np.where(survival > 0, survival**2 * greenwood, np.nan)
    low, high = _compute_log_log_interval(survival, greenwood, position, mass)
    return SurvivalCurves(
        point_group, time[first], at_risk, events, survival, variance, low, high, groups
    )


def _is_run_start(values: NDArray[np.generic]) -> Bools:
    start = np.ones(values.size, dtype=np.bool_)
    start[1:] = values[1:] != values[:-1]
    return start


def _position_in_run(group: Ints) -> Ints:
    """Rank of each point within its group, from 0."""
    index = np.arange(group.size)
    start = np.where(_is_run_start(group), index, 0)
    return np.asarray(index - np.maximum.accumulate(start), dtype=np.int64)


def _scan_runs(values: Floats, position: Ints, *, is_product: bool) -> Floats:
    """Running product or sum within each run, by doubling.

    Which values are combined in which order depends on the position in the run alone, so a run's
    result is the same to the byte whatever stands before it (differences of one long running sum
    would not be).
    """
    result = values.copy()
    longest = int(position.max(initial=-1)) + 1
    step = 1
    while step < longest:
        later, earlier = result[step:], result[:-step]
        combined = later * earlier if is_product else later + earlier
        result[step:] = np.where(position[step:] >= step, combined, later)
        step *= 2
    return result


def _compute_log_log_interval(
    survival: Floats, greenwood: Floats, position: Ints, mass: float
) -> tuple[Floats, Floats]:
    z = float(special.ndtri(0.5 + mass / 2.0))
    is_inside = survival > 0
    inside = np.where(is_inside, survival, 0.5)
    spread = z * np.sqrt(np.where(is_inside, greenwood, 0.0)) / -np.log(inside)
    low = np.where(is_inside, inside ** np.exp(spread), 0.0)
    high = np.where(is_inside, inside ** np.exp(-spread), 1.0)
    # The survival reaches 0 at the last point of a group only: its neighbour is the one before.
    is_after_point = ~is_inside & (position > 0)
    high[is_after_point] = high[np.flatnonzero(is_after_point) - 1]
    return low, high


def compute_quantile_times(
    curves: SurvivalCurves, probabilities: tuple[float, ...], *, is_of_converted: bool = False
) -> Floats:
    """Earliest time by which a share of the members converted.

    Args:
        curves: Fitted curves.
        probabilities: Shares within (0, 1).
        is_of_converted: Take the share of those converted by the group's last event time, not of
            all members. This is the quantile of time to conversion that maturity asks for.

    Returns:
        Times, shape (groups, probabilities); NaN where the share is not reached.

    Example:
        >>> curves = fit_kaplan_meier(np.zeros(4, int), np.array([1.0, 2.0, 2.0, 5.0]),
        ...                           np.array([True, True, False, False]), 1)
        >>> compute_quantile_times(curves, (0.5, 0.8)).tolist()
        [[2.0, nan]]
        >>> compute_quantile_times(curves, (0.5, 0.8), is_of_converted=True).tolist()
        [[1.0, 2.0]]
    """
    scale = np.ones(curves.groups)
    if is_of_converted:
        has_events, last = _find_last_points(curves)
        scale[has_events] = 1.0 - curves.survival[last]
    converted = 1.0 - curves.survival
    times = np.full((curves.groups, len(probabilities)), np.nan)
    for column, probability in enumerate(probabilities):
        reached = converted >= probability * scale[curves.group] - SHARE_TOLERANCE
        found, first = np.unique(curves.group[reached], return_index=True)
        times[found, column] = curves.time[reached][first]
    return times


def compute_converted_shares(curves: SurvivalCurves) -> tuple[Floats, Floats, Floats]:
    """Share converted by the group's last event time, and the ends of its interval.

    Returns:
        Three arrays of shape (groups,); NaN for a group without an event.

    Example:
        >>> curves = fit_kaplan_meier(np.zeros(2, int), np.array([1.0, 2.0]),
        ...                           np.array([True, False]), 1)
        >>> [round(float(x[0]), 3) for x in compute_converted_shares(curves)]
        [0.5, 0.121, 0.976]
    """
    share, low, high = (np.full(curves.groups, np.nan) for _ in range(3))
    has_events, last = _find_last_points(curves)
    share[has_events] = 1.0 - curves.survival[last]
    low[has_events] = 1.0 - curves.high[last]
    high[has_events] = 1.0 - curves.low[last]
    return share, low, high


def _find_last_points(curves: SurvivalCurves) -> tuple[Bools, Ints]:
    """Which groups have a point, and for those the index of their last one."""
    end = np.searchsorted(curves.group, np.arange(curves.groups), side="right")
    has_events = np.bincount(curves.group, minlength=curves.groups) > 0
    return has_events, (end - 1)[has_events]
