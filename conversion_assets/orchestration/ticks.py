"""Whether Dagster's daemon ticks, and whether its schedules were missed."""

from datetime import UTC, datetime

from dagster import DagsterInstance
from dagster._daemon.types import DaemonHeartbeat

WATCHED = ("SCHEDULER", "SENSOR", "QUEUED_RUN_COORDINATOR")
"""Daemons without which nothing of ours happens."""


def find_late_daemons(instance: DagsterInstance, now: datetime, limit_minutes: float) -> list[str]:
    """Return one line per daemon that never ticked, or not within the limit."""
    beats: dict[str, DaemonHeartbeat] = dict(instance.get_daemon_heartbeats())
    lines = []
    for name in WATCHED:
        beat = beats.get(name)
        if beat is None:
            lines.append(f"daemon: {name} has never ticked on this instance")
            continue
        last = datetime.fromtimestamp(beat.timestamp, UTC)
        if (now - last).total_seconds() > 60.0 * limit_minutes:
            lines.append(f"daemon: {name} ticked last at {last:%Y-%m-%d %H:%M:%S} UTC")
    return lines
