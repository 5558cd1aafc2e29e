"""Requests for learning runs, and what became of runs and schedules."""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunRequest, RunsFilter
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, SCHEDULE_NAME_TAG, WILL_RETRY_TAG
from dagster._utils.schedules import reverse_cron_string_iterator

from conversion_assets.orchestration.runs import FAILED_TAG
from conversion_assets.partitions import CLIENTS, covering_range, partition_key, sync_partitions

SCHEDULE_GRACE = timedelta(minutes=30)
"""How late a schedule's run may be created before it counts as missed: a restart takes minutes."""
FAILURES_OVERLAP = timedelta(hours=2)
"""How far before the last look failed runs are looked for again; a notice is queued once per run,
so that looking again costs nothing, and clocks that differ hide no failure."""
RETRY_GRACE = timedelta(minutes=10)
"""How long Dagster may take to start a failed run again as it promised; an unreachable code server
makes it forget."""

_UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
]


def request_learning(
    instance: DagsterInstance, client_ids: Sequence[str], run_key: str
) -> RunRequest:
    """Return the request for one learning run over the given clients, which may be sparse.

    The same run key is run once, however often it is requested.
    """
    sync_partitions(instance, client_ids)
    keys = instance.get_dynamic_partitions(str(CLIENTS.name))
    return RunRequest(
        run_key=run_key,
        tags=covering_range(keys, [partition_key(client) for client in client_ids]),
        run_config={"ops": {"patterns": {"config": {"client_ids": list(client_ids)}}}},
    )


def name_run(prefix: str, moment: str, client_ids: Sequence[str]) -> str:
    """Return a run key: the same clients of the same moment give the same one."""
    listed = hashlib.sha256("\0".join(client_ids).encode()).hexdigest()[:16]
    return f"{prefix}:{moment}:{listed}"


def is_learning(instance: DagsterInstance, job_name: str) -> bool:
    """Return whether a run of the job waits or works."""
    return bool(instance.get_runs(RunsFilter(job_name=job_name, statuses=_UNFINISHED), limit=1))


def list_failed_runs(
    instance: DagsterInstance, since: datetime, now: datetime
) -> Iterator[DagsterRun]:
    """Yield runs that failed since a look and whose failure nobody else tells.

    Not those that Dagster starts again by itself, and not those that failed only because some
    clients did: their findings tell that.

    Args:
        instance: The instance.
        since: When somebody looked last, aware; a little before it is looked at again.
        now: Aware time.
    """
    filters = RunsFilter(
        statuses=[DagsterRunStatus.FAILURE], updated_after=since - FAILURES_OVERLAP
    )
    for record in instance.get_run_records(filters):
        tags = record.dagster_run.tags
        is_told_by_findings = int(tags.get(FAILED_TAG, "0")) > 0
        waits = now - record.update_timestamp.replace(tzinfo=UTC) < RETRY_GRACE
        is_retried = AUTO_RETRY_RUN_ID_TAG in tags or (tags.get(WILL_RETRY_TAG) == "true" and waits)
        if not is_retried and not is_told_by_findings:
            yield record.dagster_run


def find_missed_time(
    instance: DagsterInstance, schedule: str, cron: str, *, now: datetime, since: datetime
) -> datetime | None:
    """Return the last scheduled time if it passed without a run of the schedule, else None.

    Args:
        instance: The instance.
        schedule: Name of the schedule.
        cron: Its cron expression, in UTC.
        now: Aware time.
        since: Times before this do not count: nobody watched then.
    """
    latest = (now - SCHEDULE_GRACE).timestamp()
    due = next(iter(reverse_cron_string_iterator(latest, cron, "UTC"))).astimezone(UTC)
    if due <= since:
        return None
    # A run is created at or after its time; a minute's tolerance is for clocks that differ.
    created = RunsFilter(
        tags={SCHEDULE_NAME_TAG: schedule}, created_after=due - timedelta(minutes=1)
    )
    return None if instance.get_runs(created, limit=1) else due
