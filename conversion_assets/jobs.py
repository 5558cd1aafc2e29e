"""What can be launched by name."""

from dagster import AssetSelection, define_asset_job

from conversion_assets.checks.health import pattern_health

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

JOBS = [LEARN_PATTERNS, CHECK_PATTERN_HEALTH, BACKFILL_CLIENT]
