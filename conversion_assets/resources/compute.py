"""The engine that shards of clients are computed on, as a Dagster resource."""

from dagster import ConfigurableResource, ResourceDependency

from conversion_assets.compute.cluster import DaskEngine
from conversion_assets.compute.engine import ComputeEngine, LocalEngine
from conversion_assets.refresh.loading import ClusterLoader
from conversion_assets.resources.database import connect_from_environment
from conversion_assets.resources.settings import SettingsResource
from conversion_assets.settings import Settings


def make_loader(settings: Settings) -> ClusterLoader | None:
    """Return who loads the store anew; None where the process itself does.

    Raises:
        InputError: a cluster is named and its client is not installed.
    """
    if settings.compute_url is None:
        return None
    return ClusterLoader(DaskEngine(settings.compute_url), connect_from_environment)


class ComputeResource(ConfigurableResource[ComputeEngine]):
    """The cluster that the environment names, else the process of the run."""

    settings: ResourceDependency[SettingsResource]

    def engine(self) -> ComputeEngine:
        """Return the engine; nothing is connected to yet.

        Raises:
            InputError: a cluster is named and its client is not installed.
        """
        url = self.settings.load().compute_url
        return LocalEngine() if url is None else DaskEngine(url)

    def loader(self) -> ClusterLoader | None:
        """Return who loads the store anew, see `make_loader`."""
        return make_loader(self.settings.load())
