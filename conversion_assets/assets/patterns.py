"""The four patterns of every client: learned together, stored and recorded apart."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetSpec,
    BackfillPolicy,
    Config,
    DataVersion,
    MaterializeResult,
    multi_asset,
)
from pydantic import Field

from conversion_assets.domain.moments import parse_moment
from conversion_assets.domain.terms import PatternType
from conversion_assets.learning import CODE_VERSION
from conversion_assets.orchestration.events import Materialization, record_materializations
from conversion_assets.orchestration.pools import LEARNING_POOL
from conversion_assets.orchestration.presentation import describe_pattern
from conversion_assets.orchestration.retries import RETRY_TRANSIENT, transient_faults_only
from conversion_assets.orchestration.runs import (
    choose_clients,
    get_run_moment,
    raise_failures,
    summarize_run,
)
from conversion_assets.partitions import CLIENTS, partition_key
from conversion_assets.refresh.patterns import PatternRefresh, refresh_patterns
from conversion_assets.resources.compute import ComputeResource
from conversion_assets.resources.database import DatabaseResource
from conversion_assets.resources.features import FeatureStoreResource
from conversion_assets.resources.settings import SettingsResource

QUESTIONS = {
    PatternType.WHO: "which leads convert, and how the lead score should be weighted",
    PatternType.WHAT: "which subjects, pain points, calls to action and lengths convert",
    PatternType.WHEN: "which day, hour, touch number and spacing convert",
    PatternType.HOW: "which channels, in which order and mix, convert",
}
KINDS = {AssetKey(f"{kind}_patterns"): kind for kind in PatternType}

# A picture per client in a fleet's metadata would triple the event log.
LARGEST_RUN_WITH_PLOTS = 50


class LearningRun(Config):
    """What one run learns."""

    client_ids: list[str] = Field(
        default=[], description="Clients to learn; empty: all of the run's partitions"
    )
    as_of: str | None = Field(
        default=None, description="ISO time with zone; nothing later counts. None: the run's start"
    )


@multi_asset(
    name="patterns",
    specs=[
        AssetSpec(
            key,
            deps=["lead_features", "touch_features"],
            description=f"One row per client: {QUESTIONS[kind]}.",
            partitions_def=CLIENTS,
            group_name="patterns",
            code_version=CODE_VERSION,
            kinds={"json"},
            skippable=True,
        )
        for key, kind in KINDS.items()
    ],
    can_subset=True,
    backfill_policy=BackfillPolicy.single_run(),
    pool=LEARNING_POOL,
    retry_policy=RETRY_TRANSIENT,
)
def patterns(
    context: AssetExecutionContext,
    config: LearningRun,
    *,
    database: DatabaseResource,
    features: FeatureStoreResource,
    compute: ComputeResource,
    settings: SettingsResource,
) -> Iterator[MaterializeResult[None]]:
    """Learn the chosen clients in one go; only those that succeeded are materialized."""
    clients = choose_clients(context.partition_keys, config.client_ids)
    selected = [key for key in KINDS if key in context.selected_asset_keys]
    with transient_faults_only():
        refresh = refresh_patterns(
            database.engine(),
            features.store(),
            client_ids=clients,
            kinds=[KINDS[key] for key in selected],
            as_of=parse_moment(config.as_of) if config.as_of else get_run_moment(context),
            run_id=context.run.run_id,
            config=settings.load().learning,
            now=partial(datetime.now, UTC),
            compute=compute.engine(),
            describe=partial(describe_pattern, with_plot=len(clients) <= LARGEST_RUN_WITH_PLOTS),
        )
        told = {key: describe_clients(refresh, KINDS[key]) for key in selected}
        alone = context.partition_keys if len(context.partition_keys) == 1 else []
        for key, events in told.items():
            if list(events) != alone:
                record_materializations(context, key, events, code_version=CODE_VERSION)
        summarize_run(context, refresh.outcomes, refresh.seconds)
        raise_failures(refresh.failures)
    if alone and not any(told.values()):
        context.log.info("nothing was stored, so no check follows; the daily check tells why")
    # Of one client alone an ordinary output says the same, and the checks of the UI follow it.
    for key, events in told.items():
        for event in events.values() if list(events) == alone else ():
            yield MaterializeResult(
                asset_key=key, metadata=event.metadata, data_version=DataVersion(event.data_version)
            )


def describe_clients(refresh: PatternRefresh, kind: PatternType) -> dict[str, Materialization]:
    """Return the event of every client whose pattern of one type was stored, by partition key."""
    return {
        partition_key(stored.client_id): Materialization(stored.description, stored.content_hash)
        for stored in refresh.stored
        if stored.pattern_type == kind
    }
