"""The tables that others fill, as assets whose version moves with their content."""

from typing import Literal

from dagster import AssetsDefinition, DataVersion, MaterializeResult, asset

from conversion_assets.orchestration.retries import RETRY_TRANSIENT, transient_faults_only
from conversion_assets.resources.database import DatabaseResource

GRAINS: dict[Literal["clients", "leads", "activities"], str] = {
    "clients": "One row per client of the agency.",
    "leads": "One row per client and lead: attributes, status, score, conversion.",
    "activities": "One row per client and activity: touches sent, replies, meetings booked.",
}


def build_source(table: Literal["clients", "leads", "activities"]) -> AssetsDefinition:
    """Build the asset of one source table; it looks at the table and changes nothing."""

    @asset(
        name=table,
        description=f"{GRAINS[table]} Filled by `conversion-assets import` or by other systems.",
        group_name="sources",
        kinds={"table"},
        retry_policy=RETRY_TRANSIENT,
    )
    def source(database: DatabaseResource) -> MaterializeResult[None]:
        with transient_faults_only():
            state = database.describe_source(table)
        return MaterializeResult(
            metadata={"dagster/row_count": state.rows, "clients": state.clients},
            data_version=DataVersion(state.version),
        )

    return source


SOURCES = [build_source(table) for table in GRAINS]
