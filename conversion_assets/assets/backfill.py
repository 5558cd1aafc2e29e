"""Backfill of one client: snapshots, scores and patterns of the history it came with."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetSpec,
    Config,
    MaterializeResult,
    multi_asset,
)
from pydantic import Field

from conversion_assets.assets.features import GRAINS
from conversion_assets.assets.patterns import KINDS, describe_clients
from conversion_assets.domain.backfills import BackfillStage
from conversion_assets.domain.moments import parse_moment
from conversion_assets.learning import CODE_VERSION
from conversion_assets.orchestration.events import record_materializations
from conversion_assets.orchestration.pools import LEARNING_POOL
from conversion_assets.orchestration.presentation import describe_pattern
from conversion_assets.orchestration.progress import ProgressLog, describe_stages
from conversion_assets.orchestration.retries import RETRY_TRANSIENT, transient_faults_only
from conversion_assets.orchestration.runs import raise_failures
from conversion_assets.partitions import CLIENTS, client_id_of
from conversion_assets.refresh.backfill import BackfillTools, backfill_client, plan_backfill
from conversion_assets.resources.compute import ComputeResource
from conversion_assets.resources.database import DatabaseResource
from conversion_assets.resources.features import FeatureStoreResource
from conversion_assets.resources.settings import SettingsResource

FEATURES = [AssetKey(name) for name in GRAINS]


class BackfillRun(Config):
    """What one backfill does."""

    content: bool = Field(default=True, description="Rebuild missing content snapshots")
    score: bool = Field(default=True, description="Score leads that have no score components")
    detectors: bool = Field(default=True, description="Learn the client's patterns")
    dry_run: bool = Field(default=False, description="Say what it would do, and write nothing")
    as_of: str | None = Field(
        default=None,
        description="ISO time with zone of scores and patterns. None: that of the unfinished "
        "backfill it goes on with, else now",
    )

    def stages(self) -> list[BackfillStage]:
        """Return the stages that are on."""
        return [stage for stage in BackfillStage if getattr(self, stage)]


@multi_asset(
    name="backfills",
    specs=[
        AssetSpec(
            "backfills",
            description="One row per client and backfill: what was rebuilt, scored and learned, "
            "and why not the rest.",
            partitions_def=CLIENTS,
            group_name="backfill",
            kinds={"table"},
            # A dry run records nothing.
            skippable=True,
        )
    ],
    pool=LEARNING_POOL,
    retry_policy=RETRY_TRANSIENT,
)
def backfills(
    context: AssetExecutionContext,
    config: BackfillRun,
    *,
    database: DatabaseResource,
    features: FeatureStoreResource,
    compute: ComputeResource,
    settings: SettingsResource,
) -> Iterator[MaterializeResult[None]]:
    """Backfill the client of the partition, or go on with what a killed run left."""
    client_id = client_id_of(context.partition_key)
    with transient_faults_only():
        tools = BackfillTools(
            database.engine(),
            features.store(),
            settings.load().learning,
            partial(datetime.now, UTC),
            ProgressLog(context),
            compute=compute.engine(),
            describe=partial(describe_pattern, with_plot=True),
        )
        as_of = parse_moment(config.as_of) if config.as_of else None
        if config.dry_run:
            plan = plan_backfill(tools, client_id=client_id, stages=config.stages(), as_of=as_of)
            context.log.info(f"dry run, nothing was written: {describe_stages(plan)}")
            return
        report = backfill_client(
            tools,
            client_id=client_id,
            stages=config.stages(),
            run_id=context.run.run_id,
            as_of=as_of,
        )
        if report.patterns is not None:
            for key, kind in KINDS.items():
                events = describe_clients(report.patterns, kind)
                record_materializations(
                    context, key, events, code_version=CODE_VERSION, parents=FEATURES
                )
            raise_failures(report.patterns.failures)
    yield MaterializeResult(
        metadata={
            "backfill_id": report.record.backfill_id,
            "as_of": report.record.as_of.isoformat(),
            **describe_stages(report.record.progress),
        }
    )
