"""When things happen by themselves. All times are UTC: local time belongs in the data."""

from dagster import (
    DefaultScheduleStatus,
    RunRequest,
    ScheduleEvaluationContext,
    SkipReason,
    schedule,
)

from conversion_assets.jobs import CHECK_PATTERN_HEALTH, LEARN_PATTERNS, prune_history
from conversion_assets.orchestration.launches import request_learning
from conversion_assets.resources.database import DatabaseResource


@schedule(
    name="weekly_pattern_learning",
    job=LEARN_PATTERNS,
    cron_schedule="0 2 * * 0",
    execution_timezone="UTC",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Sundays at 02:00 UTC: learn every active client in one run.",
)
def weekly_pattern_learning(
    context: ScheduleEvaluationContext, database: DatabaseResource
) -> RunRequest | SkipReason:
    """Request one run over the clients that are active at the time."""
    active = database.list_active_clients()
    if not active:
        return SkipReason("no active client has a converted lead")
    moment = context.scheduled_execution_time.isoformat()
    return request_learning(context.instance, active, f"weekly:{moment}")


@schedule(
    name="daily_pattern_health",
    job=CHECK_PATTERN_HEALTH,
    cron_schedule="0 6 * * *",
    execution_timezone="UTC",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Every day at 06:00 UTC: check the patterns of every active client.",
)
def daily_pattern_health(context: ScheduleEvaluationContext) -> RunRequest:
    """Request one run of the health check."""
    return RunRequest(run_key=f"daily:{context.scheduled_execution_time.isoformat()}")


@schedule(
    name="daily_history_pruning",
    job=prune_history,
    cron_schedule="0 4 * * *",
    execution_timezone="UTC",
    default_status=DefaultScheduleStatus.RUNNING,
    description="Every day at 04:00 UTC: drop runs and events that are old and superseded.",
)
def daily_history_pruning(context: ScheduleEvaluationContext) -> RunRequest:
    """Request one run of the pruning."""
    return RunRequest(run_key=f"prune:{context.scheduled_execution_time.isoformat()}")


SCHEDULES = [weekly_pattern_learning, daily_pattern_health, daily_history_pruning]
