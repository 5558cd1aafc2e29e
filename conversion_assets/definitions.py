"""The code location: everything that Dagster knows of this project, in explicit lists."""

from dagster import Definitions, map_asset_specs

from conversion_assets.assets.backfill import backfills
from conversion_assets.assets.features import features
from conversion_assets.assets.freshness import expect_weekly
from conversion_assets.assets.patterns import patterns
from conversion_assets.assets.sources import SOURCES
from conversion_assets.checks.health import pattern_health
from conversion_assets.jobs import JOBS
from conversion_assets.orchestration.workers import named_in_process_executor
from conversion_assets.resources.alerts import AlertsResource
from conversion_assets.resources.compute import ComputeResource
from conversion_assets.resources.database import DatabaseResource
from conversion_assets.resources.features import FeatureStoreResource
from conversion_assets.resources.settings import SettingsResource
from conversion_assets.schedules import SCHEDULES
from conversion_assets.sensors import SENSORS

SETTINGS = SettingsResource()

defs = Definitions(
    # A backfill is asked for by hand and is never late.
    assets=[*map_asset_specs(expect_weekly, [*SOURCES, features, patterns]), backfills],
    asset_checks=[pattern_health],
    jobs=[*JOBS],
    schedules=SCHEDULES,
    sensors=SENSORS,
    resources={
        "settings": SETTINGS,
        "database": DatabaseResource(settings=SETTINGS),
        "features": FeatureStoreResource(settings=SETTINGS),
        "compute": ComputeResource(settings=SETTINGS),
        "alerts": AlertsResource(settings=SETTINGS),
    },
    # A process per step costs seconds for each of a handful of steps and gains nothing.
    executor=named_in_process_executor,
)
