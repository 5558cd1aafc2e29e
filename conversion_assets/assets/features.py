"""Features in the columnar store: computed once per row, updated from what changed."""

from collections.abc import Iterator
from typing import Literal

from dagster import AssetExecutionContext, AssetSpec, DataVersion, MaterializeResult, multi_asset

from conversion_assets.features import FEATURE_VERSION
from conversion_assets.orchestration.pools import LEARNING_POOL
from conversion_assets.orchestration.retries import RETRY_TRANSIENT, transient_faults_only
from conversion_assets.orchestration.runs import record_stage
from conversion_assets.resources.compute import ComputeResource
from conversion_assets.resources.database import DatabaseResource
from conversion_assets.resources.features import FeatureStoreResource, describe_content

GRAINS: dict[Literal["lead_features", "touch_features"], str] = {
    "lead_features": "One row per client and lead: normalised title, size, signals, outcome.",
    "touch_features": "One row per client and touch: number, local time, gap, channel, content.",
}


@multi_asset(
    name="features",
    specs=[
        AssetSpec(
            name,
            deps=["clients", "leads", "activities"],
            description=grain,
            group_name="features",
            code_version=FEATURE_VERSION,
            kinds={"parquet"},
        )
        for name, grain in GRAINS.items()
    ],
    pool=LEARNING_POOL,
    retry_policy=RETRY_TRANSIENT,
)
def features(
    context: AssetExecutionContext,
    database: DatabaseResource,
    features: FeatureStoreResource,
    compute: ComputeResource,
) -> Iterator[MaterializeResult[None]]:
    """Bring both tables up to date together, as one version of the store."""
    with transient_faults_only():
        report = features.refresh(database.engine(), compute.loader())
    record_stage(context, {"features_s": report.seconds})
    for name in GRAINS:
        yield MaterializeResult(
            asset_key=name,
            metadata={
                "dagster/row_count": report.manifest.rows(name),
                "clients": len(report.manifest.clients),
                "changed_clients": len(report.changed_client_ids),
                "rows_read": report.rows_read,
                "rows_written": report.rows_written,
                "why": report.reason,
                "seconds": round(report.seconds, 3),
            },
            data_version=DataVersion(describe_content(report.manifest)),
        )
