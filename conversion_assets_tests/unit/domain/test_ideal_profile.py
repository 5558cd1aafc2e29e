"""Ideal profiles: read, or refused with one line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion_assets.domain.ideal_profile import (
    DEFAULT_PROFILE,
    MOST_NAMES,
    EmployeeRange,
    IdealProfile,
    read_profile,
)


def test_a_profile_is_read():
    text = '{"industries":[" SaaS "],"employees":{"lowest":6,"highest":100},"countries":["AU"]}'
    expected = IdealProfile(
        industries=("SaaS",), employees=EmployeeRange(lowest=6, highest=100), countries=("AU",)
    )
    assert read_profile(text) == (expected, None)
    assert read_profile('{"employees":{"highest":9}}')[0].employees == EmployeeRange(highest=9)


@pytest.mark.parametrize("text", [None, "null", " null ", "{}"])
def test_none_is_the_default(text):
    assert read_profile(text) == (DEFAULT_PROFILE, None)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "ideal profile: Invalid JSON"),
        ("[]", "ideal profile: Input should be an object"),
        ('{"industries":"SaaS"}', "ideal profile: industries: Input should be a valid array"),
        ('{"industries":["a",3]}', "ideal profile: industries.1: Input should be a valid string"),
        ('{"industries":[" "]}', "ideal profile: industries.0: String should have at least 1"),
        ('{"countries":[null]}', "ideal profile: countries.0: Input should be a valid string"),
        ('{"employees":[1,2]}', "ideal profile: employees: Input should be an object"),
        ('{"employees":{}}', "ideal profile: employees.highest: Field required"),
        ('{"employees":{"highest":"9"}}', "ideal profile: employees.highest: Input should be"),
        ('{"employees":{"highest":-1}}', "ideal profile: employees.highest: Input should be"),
        ('{"employees":{"highest":1e400}}', "ideal profile: employees.highest: Input should be"),
        (
            '{"employees":{"lowest":9,"highest":5}}',
            "ideal profile: employees: lowest 9 is above highest 5",
        ),
        ('{"industry":["a"]}', "ideal profile: industry: Extra inputs are not permitted"),
        ("[" * 100_000, "ideal profile: Invalid JSON"),
        (
            json.dumps({"industries": ["a"] * (MOST_NAMES + 1)}),
            "ideal profile: industries: Tuple should have at most 1000 items",
        ),
    ],
)
def test_what_is_no_profile_is_one_line(text, fault):
    profile, found = read_profile(text)
    assert profile == DEFAULT_PROFILE
    assert found is not None
    assert found.startswith(fault)
    assert "; want {" in found
    assert "\n" not in found


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
members = st.sampled_from(["industries", "employees", "countries", "lowest", "highest"])


@given(st.dictionaries(members, values | st.dictionaries(members, values)) | values)
def test_any_json_is_a_profile_or_one_line(value):
    profile, fault = read_profile(json.dumps(value))
    assert isinstance(profile, IdealProfile)
    assert fault is None or ("\n" not in fault and profile == DEFAULT_PROFILE)
