"""The columnar store of features as a Dagster resource."""

import hashlib

from dagster import ConfigurableResource, ResourceDependency
from sqlalchemy import Engine

from conversion_assets.refresh.features import Loader, RefreshReport, refresh_features
from conversion_assets.resources.settings import SettingsResource
from conversion_assets.storage.columnar.manifest import Manifest
from conversion_assets.storage.columnar.store import FeatureStore


class FeatureStoreResource(ConfigurableResource[FeatureStore]):
    """The store that the environment names: a folder of the home, or object storage."""

    settings: ResourceDependency[SettingsResource]

    def store(self) -> FeatureStore:
        """Return the store; nothing is read or written yet."""
        return FeatureStore(self.settings.load().store_url.get_secret_value())

    def refresh(self, engine: Engine, loader: Loader | None = None) -> RefreshReport:
        """Bring the store up to date with the system of record."""
        return refresh_features(engine, self.store(), loader=loader)


def describe_content(manifest: Manifest) -> str:
    """Return a version of the store's content: the same rows give the same text.

    Files and history do not count, so a store that was rebuilt is the same version.
    """
    parts = [f"{client}\0{stored.fingerprint}" for client, stored in manifest.clients.items()]
    text = "\1".join([manifest.feature_version, *sorted(parts)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
