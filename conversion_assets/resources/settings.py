"""Settings as a Dagster resource."""

from dagster import ConfigurableResource

from conversion_assets.settings import Settings, load_settings


class SettingsResource(ConfigurableResource[Settings]):
    """Reads the environment of the run's process at run time.

    It has no config on purpose: what has no config cannot show a secret in a run's config or UI.
    """

    def load(self) -> Settings:
        """Return the settings in force; InputError names a variable that cannot be used."""
        return load_settings()
