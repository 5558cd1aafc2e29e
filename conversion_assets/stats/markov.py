"""Channel paths as an absorbing Markov chain: transitions and removal effects.

A description of which channels the converting paths went through, not a causal claim.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# How the last counted touch of a path ended.
CONVERTED, LOST, OPEN = 1, 0, -1


def count_transitions(
    group: Ints, path: Ints, channel: Ints, end: Ints, *, groups: int, channels: int
) -> Ints:
    """Count steps between the states start, channels, conversion and null in every group.

    State 0 is the start, 1 .. channels the channels, channels + 1 conversion and channels + 2
    null (lost). The last touch of an open path leads nowhere yet: the step out of it is censored
    and not counted.

    Args:
        group: Group of the touch, 0 .. groups - 1, shape (touches,).
        path: Any integer that tells paths (leads) apart; the touches of one path are neighbours,
            in their order in time, shape (touches,).
        channel: Channel of the touch, 0 .. channels - 1, shape (touches,).
        end: CONVERTED (1), LOST (0) or OPEN (-1), of the path; read at its last touch,
            shape (touches,).
        groups: Number of groups.
        channels: Number of channels.

    Returns:
        Counts from state (row) to state (column), shape (groups, channels + 3, channels + 3).

    Example:
        >>> zero = np.zeros(3, int)
        >>> counts = count_transitions(
        ...     zero, np.array([7, 7, 8]), np.array([0, 1, 0]), np.array([1, 1, 0]),
        ...     groups=1, channels=2)
        >>> counts[0, 0].tolist(), counts[0, 1].tolist(), counts[0, 2].tolist()
        ([0, 2, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 1, 0])
    """
    states = channels + 3
    state = channel + 1
    is_first = np.ones(path.size, dtype=np.bool_)
    is_first[1:] = (path[1:] != path[:-1]) | (group[1:] != group[:-1])
    is_last = np.ones(path.size, dtype=np.bool_)
    is_last[:-1] = is_first[1:]
    following = np.where(end == CONVERTED, channels + 1, channels + 2)
    following[:-1] = np.where(is_last[:-1], following[:-1], state[1:])
    is_counted = ~(is_last & (end == OPEN))
    step = (group * states + state) * states + following
    size = groups * states * states
    counts = np.bincount(step[is_counted], minlength=size)
    counts += np.bincount((group * states * states + state)[is_first], minlength=size)
    return counts.reshape(groups, states, states).astype(np.int64)


def compute_removal_effects(counts: Ints) -> Floats:
    """Relative loss of conversions when a channel is taken out of the chain.

    1 - P(conversion with every step into the channel leading to null) / P(conversion), both from
    the start. A state that paths enter but never leave counts as null.

    Args:
        counts: Counts as `count_transitions` gives them, shape (groups, states, states).

    Returns:
        Effects within [0, 1], shape (groups, states - 3), 0 for an unused channel; NaN for a
        group in which no path converts.

    Source:
        Anderl, Becker, von Wangenheim & Schumann 2016.

    Example:
        >>> zero = np.zeros(3, int)
        >>> counts = count_transitions(
        ...     zero, np.array([7, 7, 8]), np.array([0, 1, 0]), np.array([1, 1, 0]),
        ...     groups=1, channels=2)
        >>> compute_removal_effects(counts).tolist()
        [[1.0, 1.0]]
    """
    channels = counts.shape[1] - 3
    complete = compute_conversion_probabilities(counts)
    converts = complete > 0
    effects = np.empty((counts.shape[0], channels))
    for channel in range(channels):
        without = counts.copy()
        without[:, :, -1] += without[:, :, channel + 1]
        without[:, :, channel + 1] = 0
        ratio = compute_conversion_probabilities(without) / np.where(converts, complete, 1.0)
        effects[:, channel] = np.where(converts, np.clip(1.0 - ratio, 0.0, 1.0), np.nan)
    return effects


def compute_conversion_probabilities(counts: Ints) -> Floats:
    """Probability that a path from the start ends in conversion, shape (groups,).

    The channels are taken out of the chain one after the other, each handing what flows through
    it to the states behind it. That is Gaussian elimination without subtractions, so nothing
    cancels, no pivot is needed and a channel that a group never uses (another client's) leaves
    the result untouched to the byte, which a library's solver of another size would not.

    Args:
        counts: Counts as `count_transitions` gives them, shape (groups, states, states).

    Source:
        Grassmann, Taksar & Heyman 1985 (state reduction).

    Example:
        >>> zero = np.zeros(3, int)
        >>> counts = count_transitions(
        ...     zero, np.array([7, 7, 8]), np.array([0, 1, 0]), np.array([1, 1, 0]),
        ...     groups=1, channels=2)
        >>> compute_conversion_probabilities(counts).tolist()
        [0.5]
    """
    # Rows need no scaling to sum to 1: only the ratios within a row enter.
    flow = counts.astype(np.float64)
    for state in range(1, counts.shape[1] - 2):
        leaving = flow[:, state, :].copy()
        leaving[:, : state + 1] = 0.0  # states already taken out, and the state itself
        # Summed one by one: a pairwise sum would depend on the number of channels.
        total = np.cumsum(leaving, axis=1)[:, -1]
        leaving /= np.where(total > 0, total, 1.0)[:, None]
        leaving[:, -1] = np.where(total > 0, leaving[:, -1], 1.0)
        flow += flow[:, :, state, None] * leaving[:, None, :]
    converted, lost = flow[:, 0, -2], flow[:, 0, -1]
    total = converted + lost
    return np.asarray(converted / np.where(total > 0, total, 1.0), dtype=np.float64)
