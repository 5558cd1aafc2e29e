import re

import pytest
from dagster import DagsterInstance
from hypothesis import given
from hypothesis import strategies as st

from conversion_assets.domain.errors import InputError
from conversion_assets.partitions import (
    RANGE_END_TAG,
    RANGE_START_TAG,
    client_id_of,
    covering_range,
    partition_key,
    sync_partitions,
)

# Ids that look like escapes, or that Dagster would split, are the ones that could collide.
_awkward = st.text(alphabet=st.sampled_from("_x2e5f.,|[]/ aZ0-é日\U0001f600\n\0"), min_size=1)
_client_ids = _awkward | st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(_client_ids)
def test_a_key_is_safe_and_gives_the_id_back(client_id):
    key = partition_key(client_id)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", key)
    assert client_id_of(key) == client_id


@given(st.lists(_client_ids, unique=True))
def test_different_ids_have_different_keys(client_ids):
    assert len({partition_key(client_id) for client_id in client_ids}) == len(client_ids)


@pytest.mark.parametrize("client_id", ["acme", "c_1", "3f1c9e0a-8e1f-4a57-9d3c-0c1f6f0d2b11"])
def test_ordinary_ids_are_their_own_key(client_id):
    assert partition_key(client_id) == client_id


def test_an_empty_id_is_refused():
    with pytest.raises(InputError, match="empty"):
        partition_key("")


def test_partitions_are_added_once_in_order_and_never_deleted():
    with DagsterInstance.ephemeral() as instance:
        assert sync_partitions(instance, ["b", "a.b"]) == ["b", "a_x2eb"]
        assert sync_partitions(instance, ["a.b", "c"]) == ["c"]
        assert sync_partitions(instance, []) == []
        assert list(instance.get_dynamic_partitions("clients")) == ["b", "a_x2eb", "c"]


@given(st.lists(st.integers(0, 40), min_size=1, unique=True), st.data())
def test_the_range_is_the_smallest_that_covers_the_chosen(numbers, data):
    ordered = [f"c{number}" for number in numbers]
    chosen = data.draw(st.lists(st.sampled_from(ordered), min_size=1))
    tags = covering_range(ordered, chosen)
    start, end = (ordered.index(tags[tag]) for tag in (RANGE_START_TAG, RANGE_END_TAG))
    inside = ordered[start : end + 1]
    assert set(chosen) <= set(inside)
    assert {inside[0], inside[-1]} <= set(chosen)


@pytest.mark.parametrize("chosen", [[], ["z"], ["a", "z"]])
def test_nothing_chosen_or_an_unknown_key_is_refused(chosen):
    with pytest.raises(InputError):
        covering_range(["a", "b"], chosen)
