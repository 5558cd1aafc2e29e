"""The system of record as a Dagster resource."""

from typing import NamedTuple

from dagster import ConfigurableResource, ResourceDependency
from pydantic import PrivateAttr
from sqlalchemy import Engine

from conversion_assets.resources.settings import SettingsResource
from conversion_assets.settings import load_settings
from conversion_assets.storage.database import create_database_engine
from conversion_assets.storage.sources import SourceTable, open_snapshot


def connect_from_environment() -> Engine:
    """Open the system of record that this process's environment names, on whichever machine."""
    return create_database_engine(load_settings().database_url.get_secret_value())


class SourceState(NamedTuple):
    """What one table of the sources holds now."""

    version: str
    rows: int
    clients: int


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

    def describe_source(self, table: SourceTable) -> SourceState:
        """Return the version of a table's content and how much there is, of one moment."""
        with open_snapshot(self.engine()) as snapshot:
            counts = snapshot.count_rows(table)
            return SourceState(
                snapshot.source_version(table), int(counts["rows"].sum()), counts.height
            )

    def list_active_clients(self) -> list[str]:
        """Return the ids of the clients to learn for, sorted."""
        with open_snapshot(self.engine()) as snapshot:
            return snapshot.active_client_ids()
