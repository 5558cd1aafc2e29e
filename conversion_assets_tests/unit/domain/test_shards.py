import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion_assets.domain.errors import InputError
from conversion_assets.domain.shards import plan_shards

SIZES = st.dictionaries(st.text(max_size=5), st.integers(0, 50) | st.integers(0, 10**30))
BUDGETS = st.integers(1, 100) | st.integers(1, 10**12)


def fill_slowly(sizes: dict[str, int], budget: int) -> list[list[str]]:
    """The obvious loop: the next client joins the last shard if it fits."""
    shards: list[list[str]] = []
    filled = 0
    for client, size in sizes.items():
        if not shards or filled + size > budget:
            shards.append([])
            filled = 0
        shards[-1].append(client)
        filled += size
    return shards


@given(SIZES, BUDGETS)
def test_every_client_is_in_one_shard_in_order_and_within_the_budget(sizes, budget):
    shards = plan_shards(sizes, budget)
    assert [client for shard in shards for client in shard] == list(sizes)
    needs = [sum(sizes[client] for client in shard) for shard in shards]
    assert all(need <= budget or len(shard) == 1 for need, shard in zip(needs, shards, strict=True))
    assert all(one + other > budget for one, other in pairwise(needs))


@given(SIZES, BUDGETS)
def test_shards_are_those_of_the_obvious_loop(sizes, budget):
    assert plan_shards(sizes, budget) == fill_slowly(sizes, budget)


@given(SIZES, BUDGETS, st.integers(0, 50))
def test_a_new_client_at_the_end_moves_no_border(sizes, budget, size):
    before = plan_shards(sizes, budget)
    after = plan_shards(sizes | {"a new client": size}, budget)
    assert after[: len(before) - 1] == before[:-1]


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_below_one_is_refused(budget):
    with pytest.raises(InputError, match="budget"):
        plan_shards({"a": 1}, budget)


def test_a_negative_size_is_refused_with_its_client():
    with pytest.raises(InputError, match="'b' has size -3"):
        plan_shards({"a": 1, "b": -3}, 10)


def test_a_million_clients_are_planned_in_seconds():
    sizes = {f"client-{number}": number * 7919 % 100_003 for number in range(1_000_000)}
    started = time.process_time()
    shards = plan_shards(sizes, 10_000_000)
    # 0.4 s here; anything that grows with the square would take hours.
    assert time.process_time() - started < 20
    assert sum(map(len, shards)) == len(sizes)
