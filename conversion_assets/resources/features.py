"""The columnar store of features as a Dagster resource."""

from dagster import ConfigurableResource, ResourceDependency

from conversion_assets.resources.settings import SettingsResource
from conversion_assets.storage.columnar import FeatureStore


class FeatureStoreResource(ConfigurableResource[FeatureStore]):
    """The store that the environment names: a folder of the home, or object storage."""

    settings: ResourceDependency[SettingsResource]

    def store(self) -> FeatureStore:
        """Return the store; nothing is read or written yet."""
        return FeatureStore(self.settings.load().store_url.get_secret_value())
