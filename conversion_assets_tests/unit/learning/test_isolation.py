"""Whose fault a fault is: the clients' that cause it, found with few attempts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion_assets.survey import PROBES, isolate_failures


class Work:
    """Fails when a poisoned client is among those it is given."""

    def __init__(self, poisoned, say="cannot be read"):
        self.poisoned, self.say, self.attempts = set(poisoned), say, 0

    def __call__(self, clients):
        self.attempts += 1
        if self.poisoned & set(clients):
            raise ValueError(self.say)
        return list(clients)


def names(count):
    return [f"c{number:04d}" for number in range(count)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.data())
def test_the_poisoned_fail_and_nobody_else(count, data):
    clients = names(count)
    poisoned = data.draw(st.sets(st.sampled_from(clients), max_size=min(count - 1, PROBES - 1)))
    done, failed = isolate_failures(Work(poisoned), clients)
    assert set(failed) == poisoned
    assert [client for part in done for client in part] == [c for c in clients if c not in poisoned]


@pytest.mark.parametrize("poisoned", [names(40), names(1000)[-40:], names(1000)[::25]])
def test_a_cluster_of_poison_is_no_fault_of_everybody(poisoned):
    work = Work(poisoned)
    done, failed = isolate_failures(work, names(1000))
    assert set(failed) == set(poisoned)
    assert sum(len(part) for part in done) == 960


def test_a_fault_of_the_code_fails_everybody_after_a_few_attempts():
    work = Work(names(1000))
    done, failed = isolate_failures(work, names(1000))
    assert done == []
    assert list(failed) == names(1000)
    assert {str(error) for error in failed.values()} == {"cannot be read"}
    assert work.attempts == 1 + PROBES


def test_clients_that_fail_each_in_its_own_way_are_each_tried():
    def work(clients):
        raise ValueError(f"rows of {clients[0]}")

    _, failed = isolate_failures(work, names(100))
    assert {client: str(error) for client, error in failed.items()} == {
        client: f"rows of {client}" for client in names(100)
    }


def test_want_of_memory_is_nobodys_fault():
    def work(clients):
        raise MemoryError

    with pytest.raises(MemoryError):
        isolate_failures(work, names(100))
