"""What is watched: clients that come, rows that change, alerts that wait, things that fail."""

import json
from datetime import UTC, datetime

from dagster import (
    DefaultScheduleStatus,
    DefaultSensorStatus,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from conversion_assets.jobs import LEARN_PATTERNS
from conversion_assets.orchestration.inventory import is_running
from conversion_assets.orchestration.launches import (
    find_missed_time,
    is_learning,
    list_failed_runs,
    name_run,
    request_learning,
)
from conversion_assets.orchestration.workers import find_lost_runs
from conversion_assets.partitions import sync_partitions
from conversion_assets.refresh.changes import ChangeCursor, find_changed_clients
from conversion_assets.resources.alerts import AlertsResource
from conversion_assets.resources.database import DatabaseResource
from conversion_assets.schedules import SCHEDULES

RUNNING = DefaultSensorStatus.RUNNING
MANY_FAILURES = 5
"""More failed runs in one tick have one cause, and are told in one notice."""


@sensor(
    name="client_partitions",
    minimum_interval_seconds=60,
    default_status=RUNNING,
    description="Gives every active client a partition. Keys are never deleted.",
)
def client_partitions(context: SensorEvaluationContext, database: DatabaseResource) -> SkipReason:
    """Add partitions of clients that became active."""
    added = sync_partitions(context.instance, database.list_active_clients())
    return SkipReason(f"{len(added):,} partitions added")


@sensor(
    name="changed_clients",
    job=LEARN_PATTERNS,
    minimum_interval_seconds=3600,
    default_status=RUNNING,
    description="Learns those clients again whose leads or activities changed enough.",
)
def changed_clients(context: SensorEvaluationContext, database: DatabaseResource) -> SensorResult:
    """Request one run over the changed clients: a covering range, and their list."""
    chosen, cursor = find_changed_clients(database.engine(), context.cursor)
    if not chosen:
        return SensorResult(cursor=cursor.dump(), skip_reason=SkipReason("too little changed"))
    if is_learning(context.instance, LEARN_PATTERNS.name):
        waits = SkipReason(f"{len(chosen):,} clients wait for the run that is at work")
        return SensorResult(cursor=cursor.dump(), skip_reason=waits)
    rest = {client: rows for client, rows in cursor.pending.items() if client not in set(chosen)}
    key = name_run("changed", str(cursor.watermark), chosen)
    return SensorResult(
        run_requests=[request_learning(context.instance, chosen, key)],
        cursor=ChangeCursor(cursor.watermark, rest).dump(),
    )


@sensor(
    name="alert_delivery",
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Sends the alerts that wait in the outbox, one a second per channel.",
)
def alert_delivery(database: DatabaseResource, alerts: AlertsResource) -> SkipReason:
    """Deliver what waits."""
    report = alerts.deliver(database.engine())
    faults = "".join(f"; {name}: {fault}" for name, fault in report.faults.items())
    return SkipReason(f"{report.sent:,} sent{faults}")


@sensor(
    name="run_failures",
    minimum_interval_seconds=60,
    default_status=RUNNING,
    description="Tells of every failed run once.",
)
def run_failures(
    context: SensorEvaluationContext, database: DatabaseResource, alerts: AlertsResource
) -> SkipReason:
    """Queue a notice for each failed run, or one for many."""
    now = datetime.now(UTC)
    since, known = _read_look(context.cursor, now)
    failed = list(list_failed_runs(context.instance, since, now))
    new = [run for run in failed if run.run_id not in known]
    if len(new) > MANY_FAILURES:
        ids = sorted(run.run_id for run in new)
        alerts.notify(
            database.engine(),
            key=f"runs:{','.join(ids)}",
            title=f"{len(new):,} runs failed",
            text=f"Runs {', '.join(ids)}; see docs/runbooks/run_failed.md",
        )
    else:
        for run in new:
            alerts.notify(
                database.engine(),
                key=f"run:{run.run_id}",
                title=f"run of {run.job_name} failed",
                text=f"Run {run.run_id}; see docs/runbooks/run_failed.md",
            )
    told = [run.run_id for run in failed]
    context.update_cursor(json.dumps({"looked_at": now.isoformat(), "told": told}))
    return SkipReason(f"{len(new):,} failed runs")


def _read_look(cursor: str | None, now: datetime) -> tuple[datetime, set[str]]:
    """Return when the last look was, and the failed runs it told of; a first look is now."""
    if not cursor or not cursor.startswith("{"):
        return now, set()
    last = json.loads(cursor)
    return datetime.fromisoformat(last["looked_at"]), set(last["told"])


@sensor(
    name="lost_runs",
    minimum_interval_seconds=60,
    default_status=RUNNING,
    description="Fails the runs whose process vanished, so that Dagster starts them again.",
)
def lost_runs(context: SensorEvaluationContext) -> SkipReason:
    """Fail each run whose process was gone at the last look already, and still nobody said so."""
    seen = set((context.cursor or "").split(","))
    lost = list(find_lost_runs(context.instance))
    # Dagster itself notices most within seconds; two reports of one end would be two retries.
    for run in (run for run in lost if run.run_id in seen):
        context.instance.report_run_failed(run, "The process of this run vanished.")
    context.update_cursor(",".join(run.run_id for run in lost))
    return SkipReason(f"{len(lost):,} runs without a process")


@sensor(
    name="missed_schedules",
    minimum_interval_seconds=300,
    default_status=RUNNING,
    description="Tells when a schedule's time passed without a run.",
)
def missed_schedules(
    context: SensorEvaluationContext, database: DatabaseResource, alerts: AlertsResource
) -> SkipReason:
    """Queue a notice for each scheduled time without a run; a schedule switched off misses none.

    It is told at the second look: a daemon that comes back makes up for what it missed.
    """
    now = datetime.now(UTC)
    since, suspected = _read_suspicion(context.cursor, now)
    missed = {}
    for watched in SCHEDULES:
        default = watched.default_status == DefaultScheduleStatus.RUNNING
        if not is_running(context.instance, watched.name, default=default):
            continue
        if watched.name == "weekly_pattern_learning" and not database.list_active_clients():
            continue
        due = find_missed_time(
            context.instance, watched.name, str(watched.cron_schedule), now=now, since=since
        )
        if due is not None:
            missed[f"missed:{watched.name}:{due.isoformat()}"] = (watched.name, due)
    for key, (name, due) in missed.items():
        if key in suspected:
            alerts.notify(
                database.engine(),
                key=key,
                title=f"schedule {name} was missed",
                text=f"No run was started at {due:%Y-%m-%d %H:%M} UTC; "
                "see docs/runbooks/missed_schedule.md",
            )
    kept = {"since": since.isoformat(), "suspected": list(missed)}
    context.update_cursor(json.dumps(kept))
    return SkipReason(f"missed: {', '.join(name for name, _ in missed.values()) or 'none'}")


def _read_suspicion(cursor: str | None, now: datetime) -> tuple[datetime, list[str]]:
    """Return since when somebody watches, and what was missing at the last look."""
    if not cursor:
        return now, []
    if not cursor.startswith("{"):  # an earlier version kept the time alone
        return datetime.fromisoformat(cursor), []
    kept = json.loads(cursor)
    return datetime.fromisoformat(kept["since"]), kept["suspected"]


SENSORS = [
    client_partitions,
    changed_clients,
    alert_delivery,
    lost_runs,
    run_failures,
    missed_schedules,
]
