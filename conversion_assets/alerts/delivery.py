"""Delivery: from the outbox to the channels, in order, at most one message a second each.

At least once: a message is marked after the channel took it. It is sent twice only when a sender
dies, or an answer is lost, between the two; the second one carries the same finding ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from conversion_assets.alerts.channels import Attempt, Channel, Result, describe_fault
from conversion_assets.domain.alerts import AlertMessage

LEASE_S = 60.0
"""How long a sender may hold a channel without a word: six times the longest request, so that a
slow one keeps it and a dead one does not silence it for long."""
INTERVAL_S = 1.0
"""Slack takes one message a second on a webhook."""
FIRST_PAUSE_S = 2.0
"""Pause after the first failure; it doubles with every further one."""
LONGEST_PAUSE_S = 900.0
"""Longest pause between attempts: news of a cured fault should not come hours late."""
BLOCKED_PAUSE_S = 3600.0
"""A revoked address is tried again this rarely, in case it was restored."""
LONGEST_WAIT_S = 7 * 24 * 3600.0
"""Longest wait a channel may ask for; more is a mistake of its clock."""
BUDGET_S = 40.0
"""How long one call may go on: below the 60 s that Dagster gives a sensor."""


class ChannelState(Protocol):
    """What the outbox knows of a channel."""

    @property
    def failures(self) -> int:
        """Failures since it last took a message."""

    @property
    def last_sent_at(self) -> datetime | None:
        """Last attempt."""

    @property
    def blocked_at(self) -> datetime | None:
        """Since when its address counts as revoked."""


class Waiting(Protocol):
    """A message that waits."""

    @property
    def row_id(self) -> int:
        """Its number."""

    @property
    def message(self) -> AlertMessage:
        """What to send."""


class Outbox(Protocol):
    """What delivery needs of the outbox."""

    def acquire(
        self, channel: str, owner: str, address_hash: str, now: datetime, until: datetime
    ) -> ChannelState | None:
        """Take a channel's lease; None when it is another's or it is too early."""

    def renew(self, channel: str, owner: str, now: datetime, until: datetime) -> bool:
        """Hold the lease for longer; False when it was lost."""

    def release(self, channel: str, owner: str) -> None:
        """Give the lease back."""

    def next_message(self, channel: str) -> Waiting | None:
        """Return the oldest message that waits."""

    def mark_sent(self, channel: str, row_id: int, now: datetime) -> None:
        """Note that the channel took it."""

    def mark_refused(self, channel: str, row_id: int, now: datetime, reason: str) -> None:
        """Note that the channel never will."""

    def postpone(
        self,
        channel: str,
        owner: str,
        row_id: int,
        *,
        now: datetime,
        until: datetime,
        reason: str,
        is_blocked: bool,
    ) -> None:
        """Note a failed attempt."""

    def reroute(self, configured: Sequence[str]) -> int:
        """Move what waits for channels that are no longer configured."""


@dataclass
class DeliveryReport:
    """What one delivery came to.

    Attributes:
        sent: Messages taken, over all channels.
        refused: Messages refused for good.
        faults: Why a channel stopped, by its name.
        newly_blocked: Channels found revoked in this delivery.
    """

    sent: int = 0
    refused: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    newly_blocked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Delivery:
    """Sends what waits.

    Attributes:
        outbox: Where the messages wait.
        owner: Name of this sender, unlike any other's.
        clock: Gives the time, aware.
        sleep: Waits for seconds.
        jitter: Gives a number in [0, 1), so that senders do not meet again.
        budget_s: A call ends after about this long, and the next one goes on.
    """

    outbox: Outbox
    owner: str
    clock: Callable[[], datetime]
    sleep: Callable[[float], None]
    jitter: Callable[[], float]
    budget_s: float = BUDGET_S

    def deliver(self, channels: Sequence[Channel]) -> DeliveryReport:
        """Send what waits on every channel; a channel in trouble does not stop the others."""
        report = DeliveryReport()
        self.outbox.reroute([channel.name for channel in channels])
        deadline = self.clock() + timedelta(seconds=self.budget_s)
        for channel in channels:
            now = self.clock()
            state = self.outbox.acquire(
                channel.name, self.owner, channel.address_hash, now, _after(now, LEASE_S)
            )
            if state is None:
                continue
            try:
                self._send_all(channel, state, deadline, report)
            finally:
                self.outbox.release(channel.name, self.owner)
        return report

    def _send_all(
        self, channel: Channel, state: ChannelState, deadline: datetime, report: DeliveryReport
    ) -> None:
        last = state.last_sent_at
        while (waiting := self.outbox.next_message(channel.name)) is not None:
            self._keep_interval(last)
            now = self.clock()
            if now >= deadline or not self.outbox.renew(
                channel.name, self.owner, now, _after(now, LEASE_S)
            ):
                return
            attempt = _send(channel, waiting.message)
            last = self.clock()
            if attempt.result == Result.SENT:
                self.outbox.mark_sent(channel.name, waiting.row_id, last)
                report.sent += 1
            elif attempt.result == Result.REFUSED:
                self.outbox.mark_refused(channel.name, waiting.row_id, last, attempt.reason)
                report.refused += 1
                report.faults[channel.name] = attempt.reason
            else:
                self._postpone(channel, waiting, attempt, state, report)
                return
            state = _Fresh()

    def _keep_interval(self, last: datetime | None) -> None:
        if last is None:
            return
        wait = (last - self.clock()).total_seconds() + INTERVAL_S
        # A clock that was set back must not make us wait for hours.
        if wait > 0:
            self.sleep(min(wait, INTERVAL_S))

    def _postpone(
        self,
        channel: Channel,
        waiting: Waiting,
        attempt: Attempt,
        state: ChannelState,
        report: DeliveryReport,
    ) -> None:
        is_blocked = attempt.result == Result.BLOCKED
        now = self.clock()
        self.outbox.postpone(
            channel.name,
            self.owner,
            waiting.row_id,
            now=now,
            until=_after(now, self._choose_pause(attempt, state.failures)),
            reason=attempt.reason,
            is_blocked=is_blocked,
        )
        report.faults[channel.name] = attempt.reason
        if is_blocked and state.blocked_at is None:
            report.newly_blocked.append(channel.name)

    def _choose_pause(self, attempt: Attempt, failures: int) -> float:
        if attempt.result == Result.BLOCKED:
            return BLOCKED_PAUSE_S
        if attempt.retry_after_s is not None:
            # Never earlier than asked for.
            return min(attempt.retry_after_s, LONGEST_WAIT_S) + self.jitter()
        pause = min(FIRST_PAUSE_S * 2.0 ** min(failures, 20), LONGEST_PAUSE_S)
        return pause * (0.5 + self.jitter())


@dataclass(frozen=True)
class _Fresh:
    """A channel that just took a message."""

    failures: int = 0
    last_sent_at: datetime | None = None
    blocked_at: datetime | None = None


def _send(channel: Channel, message: AlertMessage) -> Attempt:
    try:
        return channel.send(message)
    except Exception as error:  # noqa: BLE001 - a channel's mistake must not lose the others
        return Attempt(Result.LATER, describe_fault(error))


def _after(now: datetime, seconds: float) -> datetime:
    return now + timedelta(seconds=seconds)
