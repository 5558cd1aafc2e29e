import pytest

from conversion_assets.orchestration.instance import open_instance
from conversion_assets.settings import load_settings
from conversion_assets_tests.homes import copy_home, make_home

VARIABLES = (
    "CONVERSION_DATABASE_URL",
    "CONVERSION_STORE_URL",
    "DAGSTER_HOME",
    "SLACK_WEBHOOK_URL",
    "SENTRY_DSN",
    "ALERT_EMAIL",
    "SMTP_URL",
    "ENVIRONMENT",
    "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS",
    "DAGSTER_EVENT_BATCH_SIZE",
    "DAGSTER_DISABLE_TELEMETRY",
)


@pytest.fixture(scope="session")
def imported_home(tmp_path_factory):
    """Five imported clients and an empty Dagster instance; copy it before changing anything."""
    folder = make_home(tmp_path_factory.mktemp("imported"))
    with pytest.MonkeyPatch.context() as patch:
        clear_environment(patch)
        patch.setenv("CONVERSION_HOME", str(folder))
        with open_instance(load_settings()):
            return folder


def clear_environment(monkeypatch):
    """No variable of ours; what a command exports is taken back after the test."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def home(imported_home, tmp_path, monkeypatch):
    """A copy of the imported home as CONVERSION_HOME of this process."""
    clear_environment(monkeypatch)
    folder = copy_home(imported_home, tmp_path / "home")
    monkeypatch.setenv("CONVERSION_HOME", str(folder))
    return folder
