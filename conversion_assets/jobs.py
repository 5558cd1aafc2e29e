"""What can be launched by name."""

from datetime import UTC, datetime, timedelta

from dagster import AssetSelection, OpExecutionContext, define_asset_job, job, op

from conversion_assets.checks.health import pattern_health
from conversion_assets.orchestration import pruning
from conversion_assets.orchestration.retries import RETRY_TRANSIENT, transient_faults_only
from conversion_assets.resources.settings import SettingsResource

LEARN_PATTERNS = define_asset_job(
    name="learn_patterns",
    # Health is checked by its own job: a run over a fleet should not plan checks as well.
    selection=AssetSelection.groups("sources", "features", "patterns").without_checks(),
    description=(
        "Sources, features and patterns of the chosen clients in one run. The range of partitions "
        "covers the clients; `client_ids` of the op `patterns` names them where it is sparse."
    ),
)

CHECK_PATTERN_HEALTH = define_asset_job(
    name="check_pattern_health",
    selection=AssetSelection.checks(pattern_health),
    description="Health of every active client's patterns; records findings and queues alerts.",
)

BACKFILL_CLIENT = define_asset_job(
    name="backfill_client",
    selection=AssetSelection.assets("backfills"),
    description=(
        "Snapshots, scores and patterns of one client's history; each stage can be switched off "
        "in the config. A killed run goes on where it was when the job is started again."
    ),
)


@op(retry_policy=RETRY_TRANSIENT)
def prune(context: OpExecutionContext, settings: SettingsResource) -> None:
    """Drop what is older than the history to keep and superseded."""
    days = settings.load().run_history_days
    with transient_faults_only():
        gone = pruning.prune_history(context.instance, datetime.now(UTC) - timedelta(days=days))
    context.log.info(
        f"older than {days:g} days: {gone.runs:,} runs deleted, {gone.thinned:,} kept for what is "
        f"still current in them, {gone.materializations:,} superseded materializations and "
        f"{gone.checks:,} evaluations of checks deleted"
    )


@job(
    name="prune_history",
    description=(
        "Deletes Dagster's finished runs and their events once they are older than "
        "CONVERSION_RUN_HISTORY_DAYS. What every partition and check shows now stays."
    ),
)
def prune_history() -> None:
    """One op."""
    prune()


JOBS = (LEARN_PATTERNS, CHECK_PATTERN_HEALTH, BACKFILL_CLIENT, prune_history)
