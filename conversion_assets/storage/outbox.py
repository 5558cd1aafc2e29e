"""The outbox: messages that wait for a channel, and who may send on it now.

One process at a time holds a channel's lease and sends its messages in their order. A message is
marked after it was sent: a sender that dies in between leaves it waiting, and the next one sends
it again once the lease has run out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, and_, case, func, literal, or_, select, update

from conversion_assets.domain.alerts import AlertMessage
from conversion_assets.storage.database import reported_connection_errors, write_transaction
from conversion_assets.storage.health import _insert, enqueue_messages
from conversion_assets.storage.tables import alert_channels, alert_outbox


@dataclass(frozen=True)
class ChannelState:
    """What is known of a channel by whoever holds its lease."""

    failures: int
    last_sent_at: datetime | None
    blocked_at: datetime | None


@dataclass(frozen=True)
class Waiting:
    """The next message of a channel."""

    row_id: int
    message: AlertMessage
    attempts: int


@dataclass(frozen=True)
class ChannelReport:
    """How a channel does, for people and monitors.

    Attributes:
        channel: Its name.
        waiting: Messages that wait.
        oldest_at: When the oldest of them was queued.
        sent: Messages it took.
        refused: Messages it refused for good; nobody has heard of them.
        refused_at: When it did so last.
        blocked_at: Since when it is out of order for good (a revoked address), else None.
        last_error: What it said last, unless it took a message since.
        next_attempt_at: Before this time nothing is tried; None: at once.
    """

    channel: str
    waiting: int
    oldest_at: datetime | None
    sent: int
    refused: int
    refused_at: datetime | None
    blocked_at: datetime | None
    last_error: str | None
    next_attempt_at: datetime | None


class Outbox:
    """The messages of one system of record."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def enqueue(
        self, messages: Sequence[AlertMessage], channels: Sequence[str], now: datetime
    ) -> None:
        """Queue messages by themselves; a key that was queued before is left alone."""
        with reported_connection_errors(self._engine), write_transaction(self._engine) as writing:
            enqueue_messages(writing, messages, channels, now=now)

    def acquire(
        self, channel: str, owner: str, address_hash: str, now: datetime, until: datetime
    ) -> ChannelState | None:
        """Take a channel's lease.

        A channel whose address changed starts anew: what its old address said does not count.

        Returns:
            Its state; None when another holds the lease, or it is too early to try again.
        """
        table = alert_channels
        with reported_connection_errors(self._engine), write_transaction(self._engine) as writing:
            statement = _insert(writing, table).on_conflict_do_nothing(index_elements=["channel"])
            writing.execute(statement, {"channel": channel, "address_hash": address_hash})
            writing.execute(
                update(table)
                .where(table.c.channel == channel, table.c.address_hash != address_hash)
                .values(
                    address_hash=address_hash,
                    failures=0,
                    blocked_at=None,
                    next_attempt_at=None,
                    last_error=None,
                )
            )
            is_free = or_(
                table.c.lease_until.is_(None),
                table.c.lease_until <= now,
                table.c.lease_owner == owner,
            )
            is_due = or_(table.c.next_attempt_at.is_(None), table.c.next_attempt_at <= now)
            row = writing.execute(
                update(table)
                .where(table.c.channel == channel, is_free, is_due)
                .values(lease_owner=owner, lease_until=until)
                .returning(table.c.failures, table.c.last_sent_at, table.c.blocked_at)
            ).first()
        return None if row is None else ChannelState(*row)

    def renew(self, channel: str, owner: str, now: datetime, until: datetime) -> bool:
        """Hold the lease for longer; False when it was lost."""
        return self._change_channel(
            channel, owner, {"lease_until": until}, alert_channels.c.lease_until > now
        )

    def release(self, channel: str, owner: str) -> None:
        """Give the lease back."""
        self._change_channel(channel, owner, {"lease_owner": None, "lease_until": None})

    def _change_channel(
        self, channel: str, owner: str, values: dict[str, Any], *where: Any
    ) -> bool:
        table = alert_channels
        statement = update(table).where(
            table.c.channel == channel, table.c.lease_owner == owner, *where
        )
        with reported_connection_errors(self._engine), write_transaction(self._engine) as writing:
            return writing.execute(statement.values(values)).rowcount > 0

    def next_message(self, channel: str) -> Waiting | None:
        """Return the oldest message that waits for a channel."""
        table = alert_outbox
        query = (
            select(table.c.id, table.c.payload, table.c.attempts)
            .where(table.c.channel == channel, _is_waiting())
            .order_by(table.c.id)
            .limit(1)
        )
        with reported_connection_errors(self._engine), self._engine.connect() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        return Waiting(row.id, AlertMessage.model_validate_json(row.payload), row.attempts)

    def mark_sent(self, channel: str, row_id: int, now: datetime) -> None:
        """Note that the channel took a message."""
        sent = {"failures": 0, "last_error": None, "blocked_at": None, "next_attempt_at": None}
        self._finish(channel, row_id, {"sent_at": now, "last_error": None}, sent, now)

    def mark_refused(self, channel: str, row_id: int, now: datetime, reason: str) -> None:
        """Note that the channel will never take this message; those behind it go on."""
        refused = {"refused_at": now, "last_error": reason}
        self._finish(channel, row_id, refused, {"last_error": reason}, now)

    def _finish(
        self,
        channel: str,
        row_id: int,
        message: dict[str, Any],
        state: dict[str, Any],
        now: datetime,
    ) -> None:
        # Whoever holds the lease now: what was sent was sent, and must not be sent again.
        outbox, channels = alert_outbox, alert_channels
        with reported_connection_errors(self._engine), write_transaction(self._engine) as writing:
            writing.execute(
                update(outbox)
                .where(outbox.c.id == row_id)
                .values(attempts=outbox.c.attempts + 1, **message)
            )
            writing.execute(
                update(channels)
                .where(channels.c.channel == channel)
                .values(last_sent_at=now, **state)
            )

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
        """Note a failed attempt and when to try again; the message keeps its place."""
        outbox, channels = alert_outbox, alert_channels
        is_own = and_(channels.c.channel == channel, channels.c.lease_owner == owner)
        since = func.coalesce(channels.c.blocked_at, literal(now, channels.c.blocked_at.type))
        with reported_connection_errors(self._engine), write_transaction(self._engine) as writing:
            writing.execute(
                update(outbox)
                .where(outbox.c.id == row_id)
                .values(attempts=outbox.c.attempts + 1, last_error=reason)
            )
            writing.execute(
                update(channels)
                .where(is_own)
                .values(
                    failures=channels.c.failures + 1,
                    next_attempt_at=until,
                    last_sent_at=now,
                    last_error=reason,
                    blocked_at=since if is_blocked else channels.c.blocked_at,
                )
            )

    def reroute(self, configured: Sequence[str]) -> int:
        """Give what waits for a channel that is no longer configured to those that are.

        Returns:
            How many messages were moved.
        """
        table = alert_outbox
        query = select(table).where(_is_waiting(), table.c.channel.not_in(configured))
        moved = 0
        with reported_connection_errors(self._engine), self._engine.connect() as connection:
            # Almost always there is nothing to move: no write lock is taken then.
            if connection.execute(query.limit(1)).first() is None:
                return 0
        with reported_connection_errors(self._engine), write_transaction(self._engine) as writing:
            for row in writing.execute(query.order_by(table.c.id)).all():
                message = AlertMessage.model_validate_json(row.payload)
                enqueue_messages(writing, [message], configured, now=row.created_at)
                writing.execute(table.delete().where(table.c.id == row.id))
                moved += 1
        return moved

    def report(self) -> list[ChannelReport]:
        """Return how every channel does that ever had a message."""
        outbox, channels = alert_outbox, alert_channels
        waits = case((_is_waiting(), 1), else_=0)
        oldest = case((_is_waiting(), outbox.c.created_at), else_=None)
        state = (channels.c.blocked_at, channels.c.last_error, channels.c.next_attempt_at)
        counts = (
            select(
                outbox.c.channel,
                func.sum(waits),
                func.min(oldest, type_=outbox.c.created_at.type),
                func.count(outbox.c.sent_at),
                func.count(outbox.c.refused_at),
                func.max(outbox.c.refused_at, type_=outbox.c.refused_at.type),
                *state,
            )
            .join(channels, channels.c.channel == outbox.c.channel, isouter=True)
            .group_by(outbox.c.channel, *state)
            .order_by(outbox.c.channel)
        )
        with reported_connection_errors(self._engine), self._engine.connect() as connection:
            rows = connection.execute(counts).all()
        return [ChannelReport(channel, int(waiting), *others) for channel, waiting, *others in rows]


def _is_waiting() -> Any:
    return and_(alert_outbox.c.sent_at.is_(None), alert_outbox.c.refused_at.is_(None))
