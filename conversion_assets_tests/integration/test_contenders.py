"""Whoever is measured against ours counts the same things: four ways, one answer."""

import pytest

from benchmarks import refresh_speed
from benchmarks.contenders import floor, frames, rows, sql
from conversion_assets.refresh.features import refresh_features
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets_tests.homes import AS_OF, make_home

CLIENTS = ["client-0001", "client-0002"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contenders")
    make_home(folder, SyntheticConfig(clients=2, leads=250, base_conversion=0.2, as_of=AS_OF))
    engine = create_database_engine(f"sqlite:///{folder}/conversion.db")
    refresh_features(engine, FeatureStore(folder / "store"))
    yield folder, engine
    engine.dispose()


def test_the_slow_obvious_way_counts_what_the_features_say(home):
    folder, engine = home
    counted = floor.count(folder / "store")
    assert counted["breakdown"].n_unique() == 22
    assert rows.count(engine, CLIENTS).equals(counted)


@pytest.mark.parametrize("contender", [frames, sql])
def test_pandas_and_sql_count_the_same(home, contender):
    folder, _ = home
    assert contender.count(folder / "store").equals(floor.count(folder / "store"))


def test_the_floor_from_the_database_counts_what_the_store_says(postgresql_url, tmp_path):
    first, later = refresh_speed.split_new(agency := refresh_speed.make_agency(2, 150)[0])
    names = [(client, client) for client in agency["clients"]["id"]]
    engine = create_database_engine(postgresql_url)
    refresh_speed.fill(engine, first, names)
    store, fresh = FeatureStore(tmp_path / "store"), FeatureStore(tmp_path / "fresh")
    refresh_features(engine, store)
    refresh_speed.fill(engine, later, names)
    assert not refresh_features(engine, store).is_full
    refresh_features(engine, fresh)
    engine.dispose()
    assert len(store.load_manifest().segments) == 1
    assert store.load_manifest().clients == fresh.load_manifest().clients
    assert refresh_speed.count_floor(postgresql_url).equals(floor.count(tmp_path / "fresh"))
    assert store.read("touch_features").equals(fresh.read("touch_features"))
