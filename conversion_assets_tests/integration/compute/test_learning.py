"""Learning by shards, here and on a cluster: the same bytes as learning all at once."""

from datetime import UTC, datetime, timedelta
from functools import partial

import polars as pl
import pytest

from conversion_assets.compute.cluster import DaskEngine
from conversion_assets.compute.engine import LocalEngine
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.errors import InputError
from conversion_assets.domain.forecasts import FORECASTS
from conversion_assets.domain.terms import OutcomeKind, PatternType
from conversion_assets.refresh.features import refresh_features
from conversion_assets.refresh.patterns import refresh_patterns
from conversion_assets.refresh.surveys import survey_shards
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets_tests.clusters import BLAMES_AT_ONCE, Cluster
from conversion_assets_tests.homes import dump_learned, make_home
from conversion_assets_tests.integration.compute.jobs import PATIENCE, Killing, Poisoned

AS_OF = datetime(2026, 1, 4, tzinfo=UTC)
EARLIER = AS_OF - timedelta(weeks=14)
CLIENTS = [f"client-{number:04d}" for number in range(1, 9)]
# Outside the pool, so that nobody else's documents move with theirs.
LONERS = ["client-0003", "client-0007"]
CONFIG = SyntheticConfig(
    clients=8, leads=700, base_conversion=0.25, seed=4, with_text=False, pool_opt_in=0.8,
    as_of=AS_OF,
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Features of eight clients; five were learned earlier, and their claims are due now."""
    folder = make_home(tmp_path_factory.mktemp("home"), CONFIG)
    engine = create_database_engine(f"sqlite:///{folder}/conversion.db")
    store = FeatureStore(folder / "store")
    refresh_features(engine, store)
    learn(engine, store, LocalEngine(), CLIENTS[:5], EARLIER)
    engine.dispose()
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cluster"), BLAMES_AT_ONCE) as running:
        running.start_scheduler()
        running.start_workers(2)
        yield running


def learn(engine, store, compute, clients=CLIENTS, as_of=AS_OF, rows_per_shard=10**9):
    return refresh_patterns(
        engine,
        store,
        client_ids=clients,
        kinds=tuple(PatternType),
        as_of=as_of,
        run_id="run",
        config=LearningConfig(),
        now=partial(lambda moment: moment, as_of),
        compute=compute,
        rows_per_shard=rows_per_shard,
    )


@pytest.fixture
def learned(home, tmp_path):
    """Learn in a database of one's own and return everything that was stored."""

    def learn_copy(name, compute, **options):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "conversion.db").write_bytes((home / "conversion.db").read_bytes())
        engine = create_database_engine(f"sqlite:///{folder}/conversion.db")
        result = learn(engine, FeatureStore(home / "store"), compute, **options)
        engine.dispose()
        return result, dump_learned(folder)

    return learn_copy


def test_shards_and_machines_change_no_byte(home, learned, cluster):
    whole, expected = learned("whole", LocalEngine())
    assert {one.outcome for one in whole.outcomes} >= {OutcomeKind.FOUND}
    assert any('"forward":{' in str(row) for row in expected["conversion_patterns"])
    runs = {
        "alone": learned("alone", LocalEngine(), rows_per_shard=1),
        "few": learned("few", LocalEngine(), rows_per_shard=15_000),
        "cluster": learned("cluster", DaskEngine(cluster.address, PATIENCE), rows_per_shard=15_000),
    }
    for name, (result, stored) in runs.items():
        assert result.outcomes == whole.outcomes, name
        assert [(s.client_id, s.content_hash) for s in result.stored] == [
            (s.client_id, s.content_hash) for s in whole.stored
        ], name
        assert stored == expected, name


def test_a_worker_killed_while_it_learns_changes_no_byte(learned, cluster):
    _, expected = learned("whole", LocalEngine())
    result, stored = learned("killed", Killing(cluster), rows_per_shard=1)
    assert not result.failures
    assert stored == expected


@pytest.mark.soak
def test_a_client_that_kills_workers_is_named_and_the_others_are_stored(learned, cluster):
    _, expected = learned("whole", LocalEngine(), clients=LONERS)
    engine = Poisoned(DaskEngine(cluster.address, PATIENCE), LONERS[1])
    result, stored = learned("poisoned", engine, clients=LONERS, rows_per_shard=15_000)
    assert {one.client_id for one in result.failures} == {LONERS[1]}
    assert all("killed or ran out of memory" in str(one.error) for one in result.failures)
    patterns = [row for row in stored["conversion_patterns"] if LONERS[1] not in row]
    assert patterns == [row for row in expected["conversion_patterns"] if LONERS[1] not in row]
    assert LONERS[0] in {row[0] for row in patterns}


def test_a_worker_that_sees_another_store_is_told(home, cluster, tmp_path):
    """As when every machine has a folder of its own under the same path."""
    elsewhere = tmp_path / "elsewhere"
    here = FeatureStore(home / "store")
    here.__dict__["url"] = str(elsewhere)
    with pytest.raises(InputError, match="a worker sees version none instead of 1; all machines"):
        survey_shards(
            here, DaskEngine(cluster.address, PATIENCE), client_ids=CLIENTS, learned=CLIENTS,
            forecasts=pl.DataFrame(schema=FORECASTS), as_of=AS_OF, config=LearningConfig(),
        )  # fmt: skip
    assert not elsewhere.exists()
