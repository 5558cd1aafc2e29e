import pytest

from conversion_assets.orchestration.instance import open_instance
from conversion_assets.settings import load_settings
from conversion_assets_tests.homes import VARIABLES, copy_home, make_home


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


@pytest.fixture(scope="module")
def base_home(imported_home):
    """What `home` is a copy of; a module may have one of its own."""
    return imported_home


@pytest.fixture
def home(base_home, tmp_path, monkeypatch):
    """A copy of the base home as CONVERSION_HOME of this process."""
    clear_environment(monkeypatch)
    folder = copy_home(base_home, tmp_path / "home")
    monkeypatch.setenv("CONVERSION_HOME", str(folder))
    return folder
