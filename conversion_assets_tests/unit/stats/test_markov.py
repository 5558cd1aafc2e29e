from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion_assets.stats.markov import (
    compute_conversion_probabilities,
    compute_removal_effects,
    count_transitions,
)

paths = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.lists(st.integers(0, 3), min_size=1, max_size=6),
        st.sampled_from([-1, 0, 1]),
    ),
    max_size=30,
)


def _arrays(rows):
    touches = [
        (g, number, channel, end)
        for number, (g, channels, end) in enumerate(rows)
        for channel in channels
    ]
    return tuple(np.array(touches, dtype=np.int64).T) if touches else (np.zeros(0, np.int64),) * 4


def _slow_counts(rows, g, channels):
    counts = np.zeros((channels + 3, channels + 3), int)
    for group, path, end in rows:
        if group != g:
            continue
        states = [0, *(c + 1 for c in path)]
        if end != -1:
            states.append(channels + 1 if end == 1 else channels + 2)
        for source, target in pairwise(states):
            counts[source, target] += 1
    return counts


def _slow_probability(counts):
    """Iterate the chain until it is absorbed."""
    states = counts.shape[0]
    step = np.zeros((states, states))
    for s in range(states - 2):
        total = counts[s].sum()
        step[s] = counts[s] / total if total else np.eye(states)[-1]
    step[-2, -2] = step[-1, -1] = 1.0
    return np.linalg.matrix_power(step, 2**20)[0, -2]


@settings(max_examples=60, deadline=None)
@given(paths)
def test_counts_and_effects_equal_a_slow_chain(rows):
    group, path, channel, end = _arrays(rows)
    counts = count_transitions(group, path, channel, end, groups=3, channels=4)
    effects = compute_removal_effects(counts)
    for g in range(3):
        slow = _slow_counts(rows, g, 4)
        np.testing.assert_array_equal(counts[g], slow)
        whole = _slow_probability(slow)
        assert compute_conversion_probabilities(counts)[g] == pytest.approx(whole, abs=1e-9)
        for c in range(4):
            without = slow.copy()
            without[:, -1] += without[:, c + 1]
            without[:, c + 1] = 0
            expected = 1 - _slow_probability(without) / whole if whole > 0 else np.nan
            np.testing.assert_allclose(effects[g, c], expected, atol=1e-7)


def test_effects_equal_a_simulation():
    rng = np.random.default_rng(9)
    step = np.array(
        [[0, 0.6, 0.4, 0, 0], [0, 0.1, 0.3, 0.1, 0.5], [0, 0.2, 0.3, 0.3, 0.2]], dtype=float
    )
    counts = np.zeros((1, 5, 5), np.int64)
    counts[0, :3] = np.round(step * 10_000)
    effects = compute_removal_effects(counts)[0]

    def simulate(removed):
        state = np.zeros(400_000, int)
        for _ in range(60):
            before = state.copy()
            for s in range(3):
                here = np.flatnonzero(before == s)
                state[here] = rng.choice(5, here.size, p=step[s])
            state[state == removed] = 4
        return (state == 3).mean()

    whole = simulate(-1)
    for c in range(2):
        assert effects[c] == pytest.approx(1 - simulate(c + 1) / whole, abs=0.01)


def test_no_conversion_no_paths_and_loops_without_exit():
    nothing = np.zeros((2, 5, 5), np.int64)
    assert np.isnan(compute_removal_effects(nothing)).all()
    loop = nothing[:1].copy()
    loop[0, 0, 1], loop[0, 1, 1], loop[0, 1, 2], loop[0, 2, 1] = 5, 3, 2, 2
    assert compute_conversion_probabilities(loop).tolist() == [0.0]
    loop[0, 0, 2], loop[0, 2, 3] = 1, 1
    assert 0 < compute_conversion_probabilities(loop)[0] <= 1
    assert ((compute_removal_effects(loop) >= 0) & (compute_removal_effects(loop) <= 1)).all()


@settings(max_examples=40, deadline=None)
@given(paths)
def test_other_groups_and_their_channels_change_nothing(rows):
    group, path, channel, end = _arrays(rows)
    # Channels 0..3 become 0, 2, 4, 6 of eight: between them stand channels of other groups.
    wide = count_transitions(group, path, 2 * channel, end, groups=3, channels=8)
    effects = compute_removal_effects(wide)
    for g in range(3):
        mine = group == g
        narrow = count_transitions(
            group[mine] * 0, path[mine], channel[mine], end[mine], groups=1, channels=4
        )
        assert compute_removal_effects(narrow)[0].tobytes() == effects[g, ::2].tobytes()
