"""The store loaded by workers is the store loaded here, whatever happens to the workers."""

import os
from datetime import UTC, datetime

import pytest
from polars.testing import assert_frame_equal

from conversion_assets.compute.cluster import DaskEngine, Patience
from conversion_assets.domain.errors import InputError, NotFoundError, UnreachableError
from conversion_assets.refresh.features import refresh_features
from conversion_assets.refresh.loading import ClusterLoader
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets_tests.clusters import BLAMES_AT_ONCE, Cluster
from conversion_assets_tests.homes import make_home
from conversion_assets_tests.integration.compute.jobs import PATIENCE, Killing, Poisoned, connect

CONFIG = SyntheticConfig(clients=6, leads=60, seed=3, as_of=datetime(2026, 1, 4, tzinfo=UTC))


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    return f"sqlite:///{make_home(tmp_path_factory.mktemp('home'), CONFIG)}/conversion.db"


@pytest.fixture
def engine(url):
    engine = create_database_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, url):
    folder = tmp_path_factory.mktemp("cluster")
    with Cluster(folder, {"TEST_DATABASE_URL": url, **BLAMES_AT_ONCE}) as running:
        running.start_scheduler()
        running.start_workers(2)
        yield running


@pytest.fixture(scope="module")
def expected(url, tmp_path_factory):
    engine = create_database_engine(url)
    store = FeatureStore(tmp_path_factory.mktemp("expected"))
    refresh_features(engine, store)
    engine.dispose()
    return store


def assert_same(store, expected):
    mine, theirs = store.load_manifest(), expected.load_manifest()
    for name in ("clients", "zones", "columns", "watermark", "feature_version"):
        assert getattr(mine, name) == getattr(theirs, name), name
    for table in ("lead_features", "touch_features", "bookings"):
        assert_frame_equal(store.read(table), expected.read(table))
    store.verify()
    assert set(store.list_files()) == {file.path for file in mine.all_files()}


def test_workers_load_what_this_process_loads(engine, cluster, expected, tmp_path):
    store = FeatureStore(tmp_path / "store")
    loader = ClusterLoader(DaskEngine(cluster.address, PATIENCE), connect)
    told = []
    report = refresh_features(
        engine, store, loader=loader, progress=lambda done, of: told.append((done, of))
    )
    assert_same(store, expected)
    assert told[-1] == (len(told), len(told))
    assert report.is_full
    assert report.rows_written == sum(
        store.load_manifest().rows(table)
        for table in ("lead_features", "touch_features", "bookings")
    )
    # Nothing changed: nobody is asked.
    cluster_free = ClusterLoader(DaskEngine("tcp://127.0.0.1:1", PATIENCE), connect)
    assert not refresh_features(engine, store, loader=cluster_free).rows_written


def test_a_worker_killed_while_it_loads(engine, cluster, expected, tmp_path):
    store = FeatureStore(tmp_path / "store")
    refresh_features(engine, store, loader=ClusterLoader(Killing(cluster), connect))
    named = {file.path for file in store.load_manifest().all_files()}
    for path in set(store.list_files()) - named:
        # Of the dead worker: no version names it, and a later write collects it.
        os.unlink(store.url_of(path))
    assert_same(store, expected)


@pytest.mark.soak
def test_a_client_that_kills_workers_is_named_and_nothing_is_seen(engine, cluster, tmp_path):
    store = FeatureStore(tmp_path / "store")
    deadly = Poisoned(DaskEngine(cluster.address, PATIENCE), "client-0003")
    with pytest.raises(InputError, match=r"^features of client client-0003: every worker"):
        refresh_features(engine, store, loader=ClusterLoader(deadly, connect))
    assert store.load_manifest().revision == 0
    with pytest.raises(NotFoundError):
        store.read("lead_features")


def test_a_cluster_that_is_gone_leaves_the_store_as_it_was(engine, tmp_path):
    store = FeatureStore(tmp_path / "store")
    nobody = DaskEngine("tcp://127.0.0.1:1", Patience(connect_s=0.5))
    with pytest.raises(UnreachableError):
        refresh_features(engine, store, loader=ClusterLoader(nobody, connect))
    assert store.load_manifest().revision == 0


def test_a_worker_with_another_database_is_told(cluster, tmp_path):
    home = make_home(tmp_path, CONFIG.model_copy(update={"leads": 20}))
    engine = create_database_engine(f"sqlite:///{home}/conversion.db")
    loader = ClusterLoader(DaskEngine(cluster.address, PATIENCE), connect)
    with pytest.raises(
        InputError, match="a worker reads another database; set CONVERSION_DATABASE"
    ):
        refresh_features(engine, FeatureStore(tmp_path / "store"), loader=loader)
    engine.dispose()
