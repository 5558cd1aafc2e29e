"""What can be launched by name."""

from dagster import AssetSelection, define_asset_job

LEARN_PATTERNS = define_asset_job(
    name="learn_patterns",
    selection=AssetSelection.groups("sources", "features", "patterns"),
    description=(
        "Sources, features and patterns of the chosen clients in one run. The range of partitions "
        "covers the clients; `client_ids` of the op `patterns` names them where it is sparse."
    ),
)

JOBS = [LEARN_PATTERNS]
