"""The system of record as a Dagster resource."""

from dagster import ConfigurableResource, ResourceDependency
from pydantic import PrivateAttr
from sqlalchemy import Engine

from conversion_assets.resources.settings import SettingsResource
from conversion_assets.storage.database import create_database_engine
from conversion_assets.storage.patterns import PatternRepository


class DatabaseResource(ConfigurableResource[Engine]):
    """One engine per process; the URL comes from the environment, never from config."""

    settings: ResourceDependency[SettingsResource]
    _engine: Engine | None = PrivateAttr(default=None)

    def engine(self) -> Engine:
        """Return the engine of the system of record."""
        if self._engine is None:
            url = self.settings.load().database_url
            self._engine = create_database_engine(url.get_secret_value())
        return self._engine

    def repository(self) -> PatternRepository:
        """Return the repository of patterns, outcomes and learned weights."""
        return PatternRepository(self.engine())
