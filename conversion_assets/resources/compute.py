"""The engine that shards of clients are computed on, as a Dagster resource."""

from dagster import ConfigurableResource, ResourceDependency

from conversion_assets.compute.cluster import DaskEngine
from conversion_assets.compute.engine import ComputeEngine, LocalEngine
from conversion_assets.resources.settings import SettingsResource


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
