"""From the outbox to a channel: order, rate, leases, and every fault, on both databases."""

import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from conversion_assets.alerts.channels import Attempt, Result
from conversion_assets.alerts.delivery import BLOCKED_PAUSE_S, LEASE_S, LONGEST_PAUSE_S
from conversion_assets.storage.database import create_database_engine
from conversion_assets.storage.outbox import Outbox
from conversion_assets.storage.tables import alert_channels
from conversion_assets_tests.alerting import START, FakeClock, FaultyChannel, delivery, message

FAULTS = [
    Attempt(Result.LATER, "HTTP 429", retry_after_s=30),
    Attempt(Result.LATER, "HTTP 429"),
    Attempt(Result.LATER, "HTTP 503"),
    Attempt(Result.LATER, "ConnectionRefusedError"),
    Attempt(Result.BLOCKED, "HTTP 404 no_service"),
    "timeout after acceptance",
    OSError("socket closed"),
]


@pytest.fixture
def outbox(engine):
    return Outbox(engine)


def run_until_empty(outbox, clock, channel, *, ticks=100_000, **changes):
    """Deliver at the tick of 30 s after each pause, as a sensor does, until nothing waits."""
    sender = delivery(outbox, clock, **changes)
    for _ in range(ticks):
        sender.deliver([channel])
        if outbox.next_message(channel.name) is None:
            return
        with outbox._engine.connect() as connection:
            due = connection.execute(select(alert_channels.c.next_attempt_at)).scalar_one()
        due = due or clock.now
        clock.now += timedelta(seconds=30) * max(1, -(-(due - clock.now) // timedelta(seconds=30)))
    raise AssertionError("the outbox does not drain")


def keys(channel):
    return [key for _, key, _ in channel.taken]


def test_messages_arrive_once_in_order_one_a_second(outbox):
    clock = FakeClock()
    channel = FaultyChannel(clock)
    outbox.enqueue([message(i) for i in range(20)], ["slack"], START)
    report = delivery(outbox, clock).deliver([channel])
    assert report.sent == 20
    assert keys(channel) == [message(i).message_key for i in range(20)]
    gaps = [b - a for a, b in zip(channel.tries, channel.tries[1:], strict=False)]
    assert min(gaps) >= timedelta(seconds=1)
    assert delivery(outbox, clock).deliver([channel]).sent == 0


def test_the_rate_holds_across_senders_and_calls_end_in_time(outbox):
    clock = FakeClock()
    channel = FaultyChannel(clock)
    outbox.enqueue([message(i) for i in range(100)], ["slack"], START)
    for owner in ("a", "b", "c"):
        started = clock.now
        delivery(outbox, clock, owner=owner).deliver([channel])
        assert clock.now - started <= timedelta(seconds=42)
    assert len(channel.tries) == 100
    gaps = [b - a for a, b in zip(channel.tries, channel.tries[1:], strict=False)]
    assert min(gaps) >= timedelta(seconds=1)


def test_the_same_key_is_queued_once_per_channel(outbox):
    clock = FakeClock()
    outbox.enqueue([message(1), message(1)], ["slack", "email"], START)
    outbox.enqueue([message(1)], ["slack"], START)
    channels = [FaultyChannel(clock), FaultyChannel(clock, name="email")]
    assert delivery(outbox, clock).deliver(channels).sent == 2


@pytest.mark.parametrize("asked", [0.0, 5.0, 120.0])
def test_retry_after_is_kept(outbox, asked):
    clock = FakeClock()
    channel = FaultyChannel(clock, [Attempt(Result.LATER, "HTTP 429", retry_after_s=asked)])
    outbox.enqueue([message(1)], ["slack"], START)
    run_until_empty(outbox, clock, channel)
    first, second = channel.tries
    assert second - first >= timedelta(seconds=asked)
    assert second - first <= timedelta(seconds=asked + 32)
    assert len(channel.taken) == 1


def test_pauses_grow_and_stop_growing(outbox):
    clock = FakeClock()
    channel = FaultyChannel(clock, [Attempt(Result.LATER, "HTTP 503")] * 14)
    outbox.enqueue([message(1)], ["slack"], START)
    run_until_empty(outbox, clock, channel)
    gaps = [(b - a).total_seconds() for a, b in zip(channel.tries, channel.tries[1:], strict=False)]
    assert gaps[6] > gaps[0]
    assert max(gaps) <= LONGEST_PAUSE_S * 1.5 + 31
    assert outbox.report()[0].last_error is None


def test_a_revoked_webhook_stops_and_says_so_until_its_address_changes(outbox):
    clock = FakeClock()
    revoked = [Attempt(Result.BLOCKED, "HTTP 404 no_service")]
    channel = FaultyChannel(clock, revoked * 99)
    outbox.enqueue([message(1), message(2)], ["slack"], START)
    report = delivery(outbox, clock).deliver([channel])
    assert report.newly_blocked == ["slack"]
    blocked_at = clock.now
    for _ in range(20):  # ten minutes of ticks try nothing
        clock.now += timedelta(seconds=30)
        delivery(outbox, clock).deliver([channel])
    assert len(channel.tries) == 1
    (state,) = outbox.report()
    assert (state.waiting, state.blocked_at, state.last_error) == (2, blocked_at, revoked[0].reason)
    clock.now = blocked_at + timedelta(seconds=BLOCKED_PAUSE_S)
    assert delivery(outbox, clock).deliver([channel]).newly_blocked == []  # said once
    assert len(channel.tries) == 2
    cured = FaultyChannel(clock)
    cured.address_hash = "a2"
    assert delivery(outbox, clock).deliver([cured]).sent == 2
    assert outbox.report()[0].blocked_at is None


def test_a_refused_message_does_not_hold_up_those_behind_it(outbox):
    clock = FakeClock()
    channel = FaultyChannel(clock, [Attempt(Result.REFUSED, "HTTP 400 invalid_payload")])
    outbox.enqueue([message(1), message(2)], ["slack"], START)
    report = delivery(outbox, clock).deliver([channel])
    assert (report.sent, report.refused) == (1, 1)
    assert keys(channel) == [message(2).message_key]
    assert outbox.report()[0].refused == 1


def test_one_channel_in_trouble_does_not_stop_another(outbox):
    clock = FakeClock()
    slack = FaultyChannel(clock, [Attempt(Result.LATER, "HTTP 500")] * 9)
    email = FaultyChannel(clock, name="email")
    outbox.enqueue([message(i) for i in range(3)], ["slack", "email"], START)
    report = delivery(outbox, clock).deliver([slack, email])
    assert len(email.taken) == 3
    assert report.faults == {"slack": "HTTP 500"}


def test_what_waits_for_a_channel_that_is_gone_moves_and_arrives_once(outbox):
    clock = FakeClock()
    outbox.enqueue([message(1), message(2)], ["log", "email"], START)
    slack = FaultyChannel(clock)
    delivery(outbox, clock).deliver([slack])
    assert keys(slack) == [message(1).message_key, message(2).message_key]
    assert [state.waiting for state in outbox.report()] == [0]


def test_a_sender_that_died_is_followed_after_its_lease(outbox):
    clock = FakeClock()
    channel = FaultyChannel(clock)
    outbox.enqueue([message(1)], ["slack"], START)
    until = START + timedelta(seconds=LEASE_S)
    assert outbox.acquire("slack", "dead", "a1", START, until) is not None
    assert delivery(outbox, clock).deliver([channel]).sent == 0
    clock.now = until
    assert delivery(outbox, clock).deliver([channel]).sent == 1


def test_a_sender_that_lost_its_lease_stops(outbox):
    clock = FakeClock()

    class Slow(FaultyChannel):
        def send(self, message):
            attempt = super().send(message)
            if len(self.tries) == 1:  # longer than the lease, and another takes over
                clock.now += timedelta(seconds=LEASE_S + 1)
                assert outbox.acquire(
                    "slack", "other", "a1", clock.now, clock.now + timedelta(seconds=LEASE_S)
                )
            return attempt

    channel = Slow(clock)
    outbox.enqueue([message(1), message(2)], ["slack"], START)
    delivery(outbox, clock, budget_s=1000).deliver([channel])
    assert keys(channel) == [message(1).message_key]
    assert outbox.next_message("slack").message.message_key == message(2).message_key


def check_faults(outbox, *, messages, faults, seed):
    rng = random.Random(seed)
    clock = FakeClock()
    channel = FaultyChannel(clock, [rng.choice(FAULTS) for _ in range(faults)])
    sent = [message(i) for i in range(messages)]
    outbox.enqueue(sent, ["slack"], START)
    run_until_empty(outbox, clock, channel, seed=seed)
    assert channel.faults == []
    counts = Counter(keys(channel))
    wanted = Counter(m.message_key for m in sent)
    lost_answers = Counter(channel.ambiguous)
    assert counts == wanted + lost_answers  # nothing lost; a duplicate per ambiguous time-out
    firsts = list(dict.fromkeys(keys(channel)))
    assert firsts == [m.message_key for m in sent]  # in order
    lines = {key: {ln.finding_id for ln in found} for _, key, found in channel.taken}
    assert lines == {m.message_key: {ln.finding_id for ln in m.lines} for m in sent}
    return sum(lost_answers.values())


def test_three_hundred_faults(outbox):
    check_faults(outbox, messages=10, faults=300, seed=7)


@pytest.mark.parametrize(
    ("messages", "faults"), [(60, 2_000), pytest.param(300, 10_000, marks=pytest.mark.soak)]
)
def test_thousands_of_faults(sqlite_url, messages, faults):
    engine = create_database_engine(sqlite_url)
    check_faults(Outbox(engine), messages=messages, faults=faults, seed=11)
    engine.dispose()


def test_two_senders_at_once_never_send_the_same(engine):
    """Real threads and real time; each has connections of its own."""
    outbox = Outbox(engine)
    outbox.enqueue([message(i) for i in range(30)], ["slack"], START)
    taken, inside, overlaps = [], [], []
    lock = threading.Lock()

    class Shared:
        name = "slack"
        address_hash = "a1"

        def send(self, message):
            inside.append(1)
            if len(inside) > 1:
                overlaps.append(message.message_key)
            time.sleep(0.002)
            with lock:
                taken.append(message.message_key)
            inside.pop()
            return Attempt(Result.SENT)

    def clock():
        return datetime.now(UTC)

    def work(owner):
        sender = delivery(outbox, FakeClock(), owner=owner)
        sender = type(sender)(outbox, owner, clock, lambda _s: None, random.random)
        for _ in range(40):
            sender.deliver([Shared()])

    threads = [threading.Thread(target=work, args=(f"s{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken == [message(i).message_key for i in range(30)]
    assert overlaps == []


KILLED_SENDER = """
import os, signal, sys
from datetime import datetime, timezone
from conversion_assets.alerts.channels import SENT
from conversion_assets.alerts.delivery import Delivery
from conversion_assets.storage.database import create_database_engine
from conversion_assets.storage.outbox import Outbox
from conversion_assets.storage.tables import alert_channels

class Channel:
    name, address_hash, count = "slack", "a1", 0
    def send(self, message):
        print(message.message_key, flush=True)
        self.count += 1
        if self.count == 2:
            os.kill(os.getpid(), signal.SIGKILL)  # between sending and marking
        return SENT

outbox = Outbox(create_database_engine(sys.argv[1]))
Delivery(outbox, "dead", lambda: datetime(2026, 3, 1, 6, tzinfo=timezone.utc), lambda s: None,
         lambda: 0.5).deliver([Channel()])
"""


def test_a_sender_killed_between_send_and_mark_sends_that_one_again(database_url):
    engine = create_database_engine(database_url)
    outbox = Outbox(engine)
    outbox.enqueue([message(i) for i in range(4)], ["slack"], START)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED_SENDER), database_url],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == [message(0).message_key, message(1).message_key]
    clock = FakeClock(START + timedelta(seconds=LEASE_S))
    channel = FaultyChannel(clock)
    delivery(outbox, clock).deliver([channel])
    # The first was marked; the second may have arrived, so it comes again; none is lost.
    assert keys(channel) == [message(i).message_key for i in (1, 2, 3)]
    engine.dispose()
