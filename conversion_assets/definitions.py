"""The code location: everything that Dagster knows of this project, in explicit lists."""

from dagster import Definitions, in_process_executor

from conversion_assets.assets.features import features
from conversion_assets.assets.patterns import patterns
from conversion_assets.assets.sources import SOURCES
from conversion_assets.jobs import JOBS
from conversion_assets.resources.database import DatabaseResource
from conversion_assets.resources.features import FeatureStoreResource
from conversion_assets.resources.settings import SettingsResource

SETTINGS = SettingsResource()

defs = Definitions(
    assets=[*SOURCES, features, patterns],
    jobs=JOBS,
    schedules=[],
    sensors=[],
    resources={
        "settings": SETTINGS,
        "database": DatabaseResource(settings=SETTINGS),
        "features": FeatureStoreResource(settings=SETTINGS),
    },
    # A process per step costs seconds for each of a handful of steps and gains nothing.
    executor=in_process_executor,
)
