"""Messages, clocks and channels for tests of alerts."""

import random
from datetime import UTC, datetime, timedelta

from conversion_assets.alerts.channels import SENT, Attempt, Result
from conversion_assets.alerts.delivery import Delivery
from conversion_assets.domain.alerts import AlertKind, AlertLine, AlertMessage
from conversion_assets.domain.health import make_finding_id
from conversion_assets.domain.terms import HealthRule, PatternType, Severity

START = datetime(2026, 3, 1, 6, tzinfo=UTC)


def line(client="c1", rule=HealthRule.EXPIRED, kind=PatternType.WHO, **changes):
    values = {
        "finding_id": make_finding_id(client, kind, rule),
        "client_id": client,
        "pattern_type": kind,
        "rule": rule,
        "severity": Severity.HIGH,
        "message": "expired 1.5 days ago, at 2026-02-27T18:00:00Z",
        "numbers": {"days_left": -1.5},
        "first_seen_at": START,
    }
    return AlertLine(**values | changes)


def message(number=0, client=None, lines=None):
    client = f"c{number}" if client is None else client
    return AlertMessage(
        message_key=f"opened:client:{client}:{number}",
        kind=AlertKind.OPENED,
        client_id=client,
        title=f"{client}: 1 finding open",
        lines=tuple(lines) if lines is not None else (line(client),),
    )


def link(client, kind):
    return f"http://ui.test/assets/{kind}_patterns?partition={client}"


class FakeClock:
    """Time that only moves when somebody sleeps."""

    def __init__(self, now=START):
        self.now = now
        self.slept = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)


class FaultyChannel:
    """Takes messages, or does one of the things that receivers do."""

    def __init__(self, clock, faults=(), name="slack"):
        self.name = name
        self.address_hash = "a1"
        self.clock = clock
        self.faults = list(faults)  # popped from the end
        self.taken = []  # (time, message key), also those whose answer was lost
        self.ambiguous = []
        self.tries = []

    def send(self, message):
        self.tries.append(self.clock())
        fault = self.faults.pop() if self.faults else None
        if fault == "timeout after acceptance":
            self.taken.append((self.clock(), message.message_key, message.lines))
            self.ambiguous.append(message.message_key)
            self.clock.now += timedelta(seconds=10)
            return Attempt(Result.LATER, "TimeoutError: timed out")
        if fault is not None:
            if isinstance(fault, Exception):
                raise fault
            return fault
        self.taken.append((self.clock(), message.message_key, message.lines))
        return SENT


def delivery(outbox, clock, owner="s1", seed=1, **changes):
    return Delivery(
        outbox=outbox,
        owner=owner,
        clock=clock,
        sleep=clock.sleep,
        jitter=random.Random(seed).random,
        **changes,
    )
