"""How clients are divided among pieces of work that must each fit into memory."""

from collections.abc import Mapping

import numpy as np

from conversion_assets.domain.errors import InputError


def plan_shards(sizes: Mapping[str, int], budget: int) -> list[list[str]]:
    """Divide clients into shards whose sizes add up to at most a budget.

    Clients stay in the order given: a shard is a run of neighbours, filled until the next one does
    not fit. Any two neighbouring shards together exceed the budget, so that there are fewer than
    twice as many as the total needs; in return clients that are stored side by side are read side
    by side, and one more client moves no border before it.

    Args:
        sizes: What each client needs, in any one unit (rows, bytes); not negative.
        budget: What a shard may need, in the same unit; at least 1. A client that alone needs more
            is a shard of its own.

    Returns:
        Client ids by shard: every client once, in the order given.

    Raises:
        InputError: the budget is below 1, or a client's size is negative.

    Example:
        >>> plan_shards({"a": 4, "b": 5, "c": 2, "huge": 30, "d": 1}, budget=10)
        [['a', 'b'], ['c'], ['huge'], ['d']]
    """
    if budget < 1:
        raise InputError(f"a shard's budget is {budget}; give at least 1")
    clients = list(sizes)
    # One above the budget stands for all larger sizes: the sums then cannot overflow.
    rows = np.fromiter(
        (max(min(size, budget + 1), -1) for size in sizes.values()), np.int64, len(clients)
    )
    if clients and rows.min() < 0:
        client = clients[int(rows.argmin())]
        raise InputError(f"client {client!r} has size {sizes[client]}; sizes are not negative")
    ends = np.cumsum(rows)
    shards = []
    start = 0
    while start < len(clients):
        before = ends[start - 1] if start else 0
        end = max(int(np.searchsorted(ends, before + budget, side="right")), start + 1)
        shards.append(clients[start:end])
        start = end
    return shards
