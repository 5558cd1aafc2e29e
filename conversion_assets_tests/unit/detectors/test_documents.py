"""Document order, length ranges, gap advice and sequences, read off the specification."""

import itertools
import random
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion_assets.detectors import how, what, when
from conversion_assets.detectors.cells import count_dimension
from conversion_assets.detectors.documents import (
    compute_confidence,
    find_best,
    order_estimates,
    split_by_direction,
)
from conversion_assets.detectors.population import SEQUENCE_SEPARATOR, select_population
from conversion_assets.domain.config import LearningConfig
from conversion_assets_tests.unit.detectors.frames import AS_OF, CHANNELS, build

VERDICTS = ["act", "watch", "no_evidence"]


def estimate(value, lift=1.0, low=None, high=None, verdict="no_evidence"):
    low, high = lift / 1.2 if low is None else low, lift * 1.2 if high is None else high
    return {"value": value, "lift": lift, "lift_interval": [low, high], "verdict": verdict, "k": 3}


listed = st.lists(
    st.builds(
        estimate, st.sampled_from("abcdef"), st.sampled_from([0.5, 1.0, 1.3, 2.0]),
        verdict=st.sampled_from(VERDICTS),
    ),
    max_size=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(listed, listed)
def test_order_is_verdict_then_lower_end_then_value(first, second):
    merged = order_estimates(first, second)
    assert sorted(map(id, merged)) == sorted(map(id, first + second))
    for a, b in itertools.pairwise(merged):
        place = VERDICTS.index(a["verdict"]), VERDICTS.index(b["verdict"])
        assert place[0] <= place[1]
        if place[0] == place[1]:
            assert a["lift_interval"][0] >= b["lift_interval"][0]
            if a["lift_interval"][0] == b["lift_interval"][0]:
                assert a["value"] <= b["value"]


@settings(max_examples=100, deadline=None)
@given(listed)
def test_directions_share_out_the_list_in_order(estimates):
    up, down = split_by_direction(estimates)
    assert [e for e in estimates if e in up or e in down] == estimates
    assert len(up) + len(down) == len(estimates)
    assert all(e["lift"] >= 1 for e in up)
    assert all(e["lift"] < 1 for e in down)


def test_best_is_the_first_that_raises_with_evidence():
    chosen = estimate("c", 1.4, verdict="act")
    listed = [estimate("a", 0.5, verdict="act"), chosen, estimate("b", 9.0, verdict="watch")]
    assert find_best(listed) is chosen
    assert find_best([estimate("a", 3.0)]) is None
    assert find_best([]) is None


@pytest.mark.parametrize(
    ("n", "k", "confidence"),
    [(100, 12, 0.30), (10_000, 25, 0.5), (100, 50, 0.5), (500, 0, 0), (500, 500, 0), (0, 0, 0)],
)
def test_confidence_of_the_specification(n, k, confidence):
    assert compute_confidence(n, k) == pytest.approx(confidence, abs=0.005)


def length(*rows):
    return what._build_length("email", [estimate(*row) for row in rows])


def test_the_range_of_lengths_reaches_the_best():
    found = length(("76-100", 1.5), ("1-25", 0.8, 0.6, 1.1), ("51-75", 1.4, 1.0, 1.6),
                   ("201+", 1.2, 0.9, 1.5), ("26-50", 1.2, 0.9, 1.49))  # fmt: skip
    assert found["best"]["value"] == "76-100"
    # Not distinguishable: the interval reaches 1.5. In the order of lengths, not of lifts.
    assert found["range"] == ["51-75", "76-100", "201+"]
    assert found["unit"] == "words"


def test_of_equal_lengths_the_shorter_is_best():
    assert length(("151-200", 1.2), ("1-25", 1.2))["best"]["value"] == "1-25"


def test_sms_is_measured_in_characters():
    found = what._build_length("sms", [estimate("71-160", 1.1), estimate("1-70", 1.0)])
    assert found["unit"] == "characters"
    assert found["range"] == ["1-70", "71-160"]


@pytest.mark.parametrize(("position", "default"), [(2, 2), (3, 3), (4, 4), (5, 5), (6, 7)])
@pytest.mark.parametrize(
    "hazards",
    [
        [],
        [estimate("1", 3.0), estimate("2", 1.0)],  # large, but no evidence
        [estimate("1", 0.4, verdict="act")],  # evidence, but against it
    ],
)
def test_without_evidence_the_gap_is_the_default(position, default, hazards):
    advice = when._advise_gap(position, default, hazards)
    assert (advice["best_days"], advice["is_default"]) == (default, True)
    assert advice["hazards"] == hazards
    assert advice["interval"][0] <= advice["interval"][1]


def test_the_default_gap_lies_in_its_interval():
    """What is advised has to be among what cannot be ruled out."""
    advice = when._advise_gap(2, 2, [estimate("5", 1.1), estimate("6", 1.0)])
    assert advice["interval"][0] <= advice["best_days"] <= advice["interval"][1]


def test_the_best_gap_is_the_highest_lift_with_evidence():
    hazards = [
        estimate("1", 1.3, verdict="act"),
        estimate("3", 1.8, verdict="watch"),
        estimate("4", 2.5),
        estimate("5", 1.5, 1.2, 1.9, verdict="act"),
        estimate("8-10", 0.6, verdict="act"),
    ]
    advice = when._advise_gap(3, 3, hazards)
    assert (advice["best_days"], advice["is_default"]) == (3, False)
    # 4 and 5 reach a lift of 1.8; 1 (at most 1.56) and 8-10 do not.
    assert advice["interval"] == [3.0, 5.0]


def _find_sequences(swap_later: bool):
    """Leads of two halves; the earlier favours one prefix, the later another if swapped."""
    dice = random.Random(4)
    leads, touches = [], []
    start = AS_OF - timedelta(days=300)
    for number in range(1200):
        is_later = number >= 600
        path = dice.choice([["email", "voice"], ["linkedin", "email"]])
        favoured = ["linkedin", "email"] if is_later and swap_later else ["email", "voice"]
        converts = dice.random() < (0.5 if path == favoured else 0.1)
        created = start + timedelta(hours=4 * number)
        leads.append(
            {"id": f"l{number:04d}", "client_id": "c0", "created_at": created,
             "status": "converted" if converts else "dead",
             "converted_at": created + timedelta(days=5) if converts else None}
        )  # fmt: skip
        touches += [
            {"id": f"l{number:04d}-{i}", "client_id": "c0", "lead_id": f"l{number:04d}",
             "channel": c, "action": CHANNELS[c], "occurred_at": created + timedelta(days=1 + i)}
            for i, c in enumerate(path)
        ]  # fmt: skip
    features = build(leads, touches)
    return how.discover_sequences(
        select_population(features.leads, features.touches, ["c0"], AS_OF, LearningConfig())
    )


@pytest.mark.parametrize("swap_later", [False, True])
def test_prefixes_are_found_on_the_earlier_half_and_confirmed_on_the_later(swap_later):
    sequences = _find_sequences(swap_later).sequences
    email, linkedin = (
        SEQUENCE_SEPARATOR.join(path) for path in (["email", "voice"], ["linkedin", "email"])
    )
    # What is worth a test is decided without a look at outcomes.
    assert set(sequences.filter("is_candidate")["prefix"]) == {email, linkedin}
    assert set(sequences.filter("is_confirmed")["prefix"]) == (set() if swap_later else {email})
    assert sequences["is_later_half"].mean() == pytest.approx(0.5, abs=0.01)


def test_all_leads_judge_a_prefix():
    population = _find_sequences(swap_later=True)
    sequences = population.sequences
    dimension = next(d for d in how.build_dimensions() if d.name == "winning_sequences")
    for row in count_dimension(population, dimension).iter_rows(named=True):
        counted = sequences.filter(prefix=row["value"])
        assert (row["n"], row["k"]) == (counted.height, counted["is_outcome"].sum())
