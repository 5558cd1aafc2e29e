"""Intervals that hold each cell's truth equally often, and lean on what is known of the others.

A credible interval is right on average over the cells: too often for the many without an effect,
too seldom for the few with one. The intervals here are tests turned over: a lift is inside when a
test of exactly that lift, with an error of 10 %, does not reject it. So the truth is inside in 90 %
of the samples whatever it is. What is known of the other cells only decides how the 10 % are
split: away from what is expected, the error is spent on the side where the test is then likely to
reject, which is what makes the intervals shorter than plain ones.

Source:
    Pratt 1963; Yu & Hoff 2018, "Adaptive multigroup confidence intervals with constant coverage";
    for counts with mid-p tails instead of normal ones (Lancaster 1961).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from conversion_assets.stats.multiplicity import has_freedom, match_shifted_binomial

Floats = NDArray[np.float64]

# No side is left with less of the error than this share. With nothing at all the lower end of
# every exception would be the expected lift itself; with 0.5 % it is at most 3.3 standard errors
# away, and the intervals are 1 % wider. Chosen in docs/decisions/intervals.md.
LEAST_SHARE = 0.005
# Shares at which the optimal split is tabulated; linear between them, it is right to 1e-4.
_SHARES = special.expit(np.linspace(1.0, -1.0, 513) * special.logit(1.0 - LEAST_SHARE))

# Newton's steps end below this change of log odds, so that ends are right to 1e-4 of their size.
_TOLERANCE = 1e-4
# With the safeguard none of 400,000 random cells took more than 18 steps.
_MOST_STEPS = 60
_LONGEST_STEP = 40.0
_ROUNDING = 1e-7
_SQRT_TAU = float(np.sqrt(2.0 * np.pi))


def compute_adaptive_lift_interval(
    k: Floats,
    moments: tuple[Floats, Floats, Floats],
    expected_lift: Floats,
    spread: Floats,
    mass: float,
) -> tuple[Floats, Floats]:
    """Interval of each cell's lift over what its margins expect.

    The count is the shifted binomial of the tests (`multiplicity`), tilted: an odds ratio against
    the rest of the sample moves the binomial's odds and leaves its trials. The lift is the mean of
    the tilted count over that without effect.

    Args:
        k: Conversions, shape (cells,).
        moments: Mean, variance and third central moment of the count without effect, each of
            shape (cells,).
        expected_lift: What is expected of the lift without looking at the cell, shape (cells,).
        spread: How far lifts of such cells lie from it, relatively, shape (cells,).
        mass: Probability of holding the truth, in (0.5, 1).

    Returns:
        Low and high ends, each of shape (cells,). Both are 1 where the margins leave the count no
        choice, and 0 and infinity where nothing is expected to convert.

    Example:
        >>> one = np.array([1.0])
        >>> low, high = compute_adaptive_lift_interval(
        ...     40 * one, (20 * one, 18 * one, 14 * one), one, 0.2 * one, 0.9)
        >>> bool(1.0 < low[0] < 2.0 < high[0] < 2.6)
        True
    """
    mean, variance, third = moments
    free = has_freedom(mean, variance)
    x, trials, success = match_shifted_binomial(k, mean, variance, third)
    # The least and the largest count, and a shift of none, are not exact after rounding.
    x = np.where(x < _ROUNDING, 0.0, np.where(x > trials - _ROUNDING, trials, x))
    expected = np.where(free, mean, 1.0)
    shift = np.maximum(expected - trials * success, 0.0)
    # A relative change of the lift is one of the log odds times this.
    steepness = expected / np.where(free, variance, 1.0)
    ends = _find_ends(
        x,
        trials,
        special.logit(success) + steepness * np.log(expected_lift),
        steepness * spread,
        mass,
    )
    low, high = ((shift + trials * special.expit(end)) / expected for end in ends)
    low = np.where(np.isneginf(ends[0]), 0.0, low)
    known = np.where(mean > 0, 1.0, 0.0)
    unknown = np.where(mean > 0, 1.0, np.inf)
    return np.where(free, low, known), np.where(free, high, unknown)


def compute_adaptive_rate_interval(
    k: Floats, n: Floats, expected_rate: Floats, spread: Floats, mass: float
) -> tuple[Floats, Floats]:
    """Interval of each cell's own rate.

    Args:
        k: Conversions, shape (cells,).
        n: Sample, shape (cells,).
        expected_rate: What is expected without looking at the cell, in (0, 1), shape (cells,).
        spread: How far such rates lie from it, relatively, shape (cells,).
        mass: Probability of holding the truth, in (0.5, 1).

    Example:
        >>> one = np.array([1.0])
        >>> low, high = compute_adaptive_rate_interval(0 * one, 30 * one, 0.1 * one, one, 0.9)
        >>> float(low[0]), bool(0.05 < high[0] < 0.1)
        (0.0, True)
    """
    odds = special.logit(expected_rate)
    low, high = _find_ends(k, n, odds, spread / (1.0 - expected_rate), mass)
    return special.expit(low), special.expit(high)


def expect_without_cell(
    k: Floats, expected: Floats, variance: Floats, n: Floats
) -> tuple[Floats, Floats]:
    """What the rest of the sample expects of a cell's rate, and how uncertain that is.

    The expected count contains the cell itself: a cell that holds a third of the sample makes a
    third of its own base. An interval that leans on that would count the cell's luck twice.

    Returns:
        Expected rate in (0, 1), and its relative standard error, each of shape (cells,).

    Example:
        >>> one = np.array([1.0])
        >>> rate, error = expect_without_cell(30 * one, 20 * one, 9 * one, 200 * one)
        >>> round(float(rate[0]), 6), bool(0.2 < error[0] < 0.3)
        (0.05, True)
    """
    base = np.clip(expected / n, 1e-9, 1.0 - 1e-9)
    # Share of the sample that the cell is, by its variance: E (1 - share) (1 - rate).
    share = np.clip(1.0 - variance / (n * base * (1.0 - base)), 0.0, 1.0 - 1e-6)
    rest = (base - share * k / n) / (1.0 - share)
    # Over strata the share is an average, and more than there is may be taken off.
    rate = np.clip(rest, 1e-3 * base, 1.0 - 1e-3 * (1.0 - base))
    error = np.sqrt(share * (1.0 - base) / ((1.0 - share) * n * base))
    return rate, error


@dataclass(frozen=True)
class _Ends:
    """Low ends to find: of x in so many trials, expecting log odds `center`.

    `pull` is the distance from the center, in the unit of the optimal split, per unit of log odds.
    """

    x: Floats
    trials: Floats
    center: Floats
    pull: Floats

    def take(self, rows: NDArray[np.intp]) -> "_Ends":
        return _Ends(self.x[rows], self.trials[rows], self.center[rows], self.pull[rows])

    def turn(self) -> "_Ends":
        """The same for failures: what was a high end is a low one."""
        return _Ends(self.trials - self.x, self.trials, -self.center, self.pull)

    def at(self, x: Floats) -> "_Ends":
        return _Ends(x, self.trials, self.center, self.pull)


def _find_ends(
    x: Floats, trials: Floats, center: Floats, spread: Floats, mass: float
) -> tuple[Floats, Floats]:
    """Low and high end of the log odds; infinite where the count is the least or the largest."""
    error = 1.0 - mass
    # Standard error of the log odds where they are expected: 1 / sqrt(m p q).
    rate = special.expit(center)
    information = trials * np.maximum(rate * (1.0 - rate), 1e-12)
    ends = _Ends(x, trials, center, 2.0 / np.sqrt(information) / spread**2)
    return _find_low(ends, error), -_find_low(ends.turn(), error)


def _find_low(ends: _Ends, error: float) -> Floats:
    """Lowest log odds that are not rejected from above, shape (cells,).

    Counts are whole numbers: where even the least count is likelier than its side of the error,
    that side cannot reject, and its share is given to the other one.
    """
    low = np.full(ends.x.size, -np.inf)
    some = np.flatnonzero(ends.x > 0)
    found = ends.take(some)
    end = _solve(found, error)
    least = 0.5 * special.expit(-end) ** found.trials
    upper = special.ndtr(_split(found.pull * (end - found.center), error)[0])
    idle = np.flatnonzero(least >= error - upper)
    if idle.size:
        few = found.take(idle)
        # From here on the least count can be rejected, and from there on the largest cannot.
        here = -_solve(few.at(0.0 * few.x).turn(), error)
        there = np.full(idle.size, np.inf)
        first = np.flatnonzero(_may_cross(few.trials, error))
        there[first] = _solve(few.at(few.trials).take(first), error)
        whole = _solve(replace(few, pull=0.0 * few.pull), 2.0 * error)
        end[idle] = np.minimum(whole, np.maximum(end[idle], np.minimum(here, there)))
    low[some] = end
    return low


def _may_cross(trials: Floats, error: float) -> NDArray[np.bool_]:
    """Whether the largest count may stop being rejected before the least one can be.

    With half of q^m for the least of m counts and half of p^m for the largest, at the least share
    of the error for the one and the largest for the other, p and q would sum to less than 1.
    """
    shares = np.array([LEAST_SHARE, 1.0 - LEAST_SHARE])
    together = np.sum((2.0 * error * shares) ** (1.0 / trials[:, None]), axis=1)
    return np.asarray(together < 1.0)


def _solve(ends: _Ends, error: float) -> Floats:
    """Log odds at which the upper mid-p tail of x > 0 is its share of the error.

    The tail rises with the log odds and the share falls, so there is one such place. Newton's
    method on normal scores, where the tail is nearly straight, within a bracket; each cell takes
    its own steps, whatever cells stand beside it.
    """
    ways = special.gammaln(ends.trials + 1.0)
    ways -= special.gammaln(ends.x + 1.0) + special.gammaln(ends.trials - ends.x + 1.0)
    place = _guess(ends, error)
    low, high = np.full(place.size, -np.inf), np.full(place.size, np.inf)
    last = np.full(place.size, np.inf)
    open_rows = np.arange(place.size)
    for _ in range(_MOST_STEPS):
        at = place[open_rows]
        excess, slope = _compare(at, ends.take(open_rows), ways[open_rows], error)
        below = np.where(excess < 0, at, low[open_rows])
        above = np.where(excess < 0, high[open_rows], at)
        step = np.clip(-excess / np.maximum(slope, 1e-12), -_LONGEST_STEP, _LONGEST_STEP)
        # Halve the bracket, once it has two ends, when Newton leaves it or does not settle.
        bound = np.isfinite(below) & np.isfinite(above)
        strays = (at + step < below) | (at + step > above)
        strays |= np.abs(step) > 0.5 * last[open_rows]
        half = np.where(bound, 0.5 * (np.where(bound, below, 0) + np.where(bound, above, 0)), at)
        following = np.where(bound & strays, half, at + step)
        low[open_rows], high[open_rows] = below, above
        last[open_rows] = np.abs(following - at)
        place[open_rows] = following
        open_rows = open_rows[np.abs(following - at) > _TOLERANCE]
        if not open_rows.size:
            break
    return place


def _compare(at: Floats, ends: _Ends, ways: Floats, error: float) -> tuple[Floats, Floats]:
    """Normal score of the tail less that of its share of the error, and its slope."""
    log_p, log_q = special.log_expit(at), special.log_expit(-at)
    p, q = np.exp(log_p), np.exp(log_q)
    rest = ends.trials - ends.x
    seen = np.exp(ways + ends.x * log_p + rest * log_q)
    more = special.betainc(ends.x + 1.0, np.maximum(rest, 1e-9), p)
    tail = np.where(rest > 1e-9, more, 0.0) + 0.5 * seen
    score = special.ndtri(np.clip(tail, 1e-300, 1.0 - 1e-16))
    rise = 0.5 * seen * (ends.x * q + rest * p) * _SQRT_TAU * np.exp(0.5 * score**2)
    allowed, fall = _split(ends.pull * (at - ends.center), error)
    return score - allowed, rise + ends.pull * fall


def _split(distance: Floats, error: float) -> tuple[Floats, Floats]:
    """Normal score of the upper tail's share of the error, and how fast it falls with distance.

    The split that makes normal intervals shortest on average when the truth is normal around the
    center: at `distance` = 2 (truth - center) (standard error) / spread^2 the scores of the two
    tails' shares are that far apart. Far out the shares stay at the least and the largest.
    """
    scores = special.ndtri(error * _SHARES)
    distances = scores[::-1] - scores
    share = np.interp(distance, distances, _SHARES)
    own, other = special.ndtri(error * share), special.ndtri(error * (1.0 - share))
    fall = 1.0 / (1.0 + np.exp(0.5 * (other**2 - own**2)))
    return own, np.where(np.abs(distance) < distances[-1], fall, 0.0)


def _guess(ends: _Ends, error: float) -> Floats:
    """Where to begin: normal low ends for the largest and the least share, or between them."""
    x, trials = ends.x, ends.trials
    reach = special.ndtri(error * _SHARES[-1]) - special.ndtri(error * _SHARES[0])
    z = -special.ndtri(error * _SHARES[[0, -1]])
    ways = (x + 0.5 * c * c - c * np.sqrt(x * (1.0 - x / trials) + 0.25 * c * c) for c in z)
    least, most = 1e-3 * np.minimum(x, 1.0) / trials, 1.0 - 1e-3 / (trials + 1.0)
    first, second = (
        special.logit(np.clip(way / (trials + c * c), least, most))
        for way, c in zip(ways, z, strict=True)
    )
    begin = ends.pull * (first - ends.center) <= reach
    finish = ends.pull * (second - ends.center) >= -reach
    return np.asarray(np.where(begin, first, np.where(finish, second, 0.5 * (first + second))))
