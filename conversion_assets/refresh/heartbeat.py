"""Whether the recurring work still happens, told from the system of record alone."""

from datetime import datetime, timedelta

from sqlalchemy import Engine

from conversion_assets.domain.terms import OutcomeKind
from conversion_assets.refresh.health import HEALTH_HEARTBEAT
from conversion_assets.storage.health import load_heartbeats
from conversion_assets.storage.outbox import ChannelReport, Outbox
from conversion_assets.storage.patterns import PatternRepository
from conversion_assets.storage.sources import active_client_ids

LATE_SHARE = 0.5
"""Share of active clients without a recent result from which learning as a whole counts as silent;
fewer are those clients' own trouble, and the health check tells it."""


REFUSED_DAYS = 7.0
"""A message that a channel refused for good is complained of for so long: it will never be sent,
and a monitor that never falls silent again is switched off."""


def find_silent_work(
    engine: Engine,
    now: datetime,
    *,
    learning_days: float,
    health_hours: float,
    outbox_minutes: float,
) -> list[str]:
    """Return one line per thing that should have happened and did not.

    Args:
        engine: System of record.
        now: Aware time.
        learning_days: Longest age of results, days.
        health_hours: Longest age of the last check over all clients, hours.
        outbox_minutes: Longest wait of an alert, minutes.

    Raises:
        InputError: the database cannot be read.
    """
    return [
        *_look_at_learning(engine, now - timedelta(days=learning_days)),
        *_look_at_health(engine, now - timedelta(hours=health_hours)),
        *(
            line
            for channel in Outbox(engine).report()
            for line in _look_at_channel(channel, now, timedelta(minutes=outbox_minutes))
        ),
    ]


def _look_at_learning(engine: Engine, since: datetime) -> list[str]:
    active = set(active_client_ids(engine))
    if not active:
        return []
    rows = PatternRepository(engine).outcomes().to_dicts()
    recent = {
        row["client_id"]
        for row in rows
        if row["computed_at"] >= since and row["outcome"] != OutcomeKind.FAILED
    }
    late = active - recent
    if len(late) <= LATE_SHARE * len(active):
        return []
    moment = since.isoformat(timespec="minutes")
    return [
        f"learning: {len(late):,} of {len(active):,} active clients have no result since {moment}"
    ]


def _look_at_health(engine: Engine, since: datetime) -> list[str]:
    last = load_heartbeats(engine).get(HEALTH_HEARTBEAT)
    if last is None:
        return ["health: no check over all clients has ever come to its end"]
    if last < since:
        return [f"health: the last check over all clients ended at {last:%Y-%m-%d %H:%M} UTC"]
    return []


def _look_at_channel(channel: ChannelReport, now: datetime, longest: timedelta) -> list[str]:
    lines = []
    since = now - longest
    if channel.blocked_at is not None:
        lines.append(f"alerts: {channel.channel} refuses every message ({channel.last_error})")
    elif channel.waiting and channel.oldest_at is not None and channel.oldest_at < since:
        lines.append(
            f"alerts: {channel.waiting:,} messages wait for {channel.channel}, "
            f"the oldest since {channel.oldest_at:%Y-%m-%d %H:%M} UTC ({channel.last_error})"
        )
    if channel.refused_at is not None and now - channel.refused_at < timedelta(days=REFUSED_DAYS):
        lines.append(
            f"alerts: {channel.channel} refused {channel.refused:,} messages for good, "
            f"the last at {channel.refused_at:%Y-%m-%d %H:%M} UTC"
        )
    return lines
