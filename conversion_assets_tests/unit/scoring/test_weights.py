"""Which weights are in force."""

import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion_assets.domain.terms import DEFAULT_WEIGHTS, SCORE_COMPONENTS
from conversion_assets.scoring.weights import find_fault, weights_in_force

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=1)
LEARNED = {"data_quality": 0.10, "authority": 0.40, "company_fit": 0.20, "timing": 0.15}
STORED = {"data_quality": 0.15, "authority": 0.30, "company_fit": 0.25, "timing": 0.15}
DOCUMENT = {
    "recommended_weights": LEARNED,
    "score_evaluation": {"recommended": True, "reason": "better on later leads"},
}


def test_a_valid_pattern_wins():
    result = weights_in_force(DOCUMENT, LATER, NOW, STORED)
    assert (result.source, result.weights) == ("pattern", LEARNED)
    assert result.reason == (
        "WHO pattern valid until 2026-03-02T00:00:00+00:00: better on later leads"
    )


@pytest.mark.parametrize("valid_until", [NOW, NOW - timedelta(microseconds=1)])
def test_an_expired_pattern_gives_way_to_the_client(valid_until):
    result = weights_in_force(DOCUMENT, valid_until, NOW, STORED)
    assert (result.source, result.weights) == ("client", STORED)
    assert "expired on" in result.reason


def test_defaults_are_last_and_not_shared():
    result = weights_in_force(None, None, NOW, None)
    assert (result.source, result.weights) == ("default", DEFAULT_WEIGHTS)
    result.weights["timing"] = 9.0
    assert DEFAULT_WEIGHTS["timing"] == 0.15


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"timing": None}, "timing is missing"),
        ({"timing": "0.15"}, "timing is no number"),
        ({"timing": True}, "timing is no number"),
        ({"timing": math.nan}, "timing is nan, outside of [0.05, 0.5]"),
        ({"timing": 0.04, "authority": 0.51}, "authority is 0.51, outside of [0.05, 0.5]"),
        ({"timing": 0.16}, "they sum to 0.86, not to 0.85"),
        ({"timing": 0.15 + 2e-6}, "they sum to 0.850002, not to 0.85"),
    ],
)
def test_unusable_weights_are_passed_over_with_the_reason(change, fault):
    bad = {**STORED, **change}
    assert find_fault(bad) == fault
    in_pattern = weights_in_force({"recommended_weights": bad}, LATER, NOW, STORED)
    assert in_pattern.source == "client"
    assert fault in in_pattern.reason
    in_client = weights_in_force(None, None, NOW, bad)
    assert in_client.source == "default"
    assert fault in in_client.reason


@pytest.mark.parametrize("junk", [{}, {"recommended_weights": None}, {"recommended_weights": [1]}])
def test_a_document_of_another_shape_is_passed_over(junk):
    assert weights_in_force(junk, LATER, NOW, None).source == "default"


number = st.one_of(st.floats(), st.integers(), st.none(), st.text(max_size=3), st.booleans())
weights = st.dictionaries(st.sampled_from(SCORE_COMPONENTS), number)


@given(weights, weights, st.booleans())
def test_what_is_served_is_always_usable(in_document, in_client, is_valid):
    result = weights_in_force(
        {"recommended_weights": in_document}, LATER if is_valid else NOW, NOW, in_client
    )
    assert find_fault(result.weights) is None
    assert "\n" not in result.reason
