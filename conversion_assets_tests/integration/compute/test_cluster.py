"""The engine on a real cluster of processes, which are killed, restarted and poisoned."""

import os
import signal
import time

import pytest

from conversion_assets.compute.cluster import DaskEngine, Patience
from conversion_assets.domain.errors import InputError, UnreachableError
from conversion_assets_tests.clusters import Cluster, free_port
from conversion_assets_tests.integration.compute.jobs import PATIENCE, MakeSpell

CLIENTS = [f"c{number:02d}" for number in range(12)]
SHARDS = [CLIENTS[start : start + 3] for start in range(0, 12, 3)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        running.start_scheduler()
        running.start_workers(2)
        yield running


@pytest.fixture
def folder(tmp_path):
    ran = tmp_path / "ran"
    ran.mkdir()
    return ran


def collect(done):
    results, errors = {}, {}
    for one in done:
        if one.error is not None:
            errors[one.client_ids] = one.error
        else:
            results |= dict(zip(one.client_ids, one.result, strict=True))
    return results, errors


def spelled(*without):
    return {client: client.upper() for client in CLIENTS if client not in without}


def test_every_client_comes_back_once(cluster, folder):
    engine = DaskEngine(cluster.address, PATIENCE)
    results, errors = collect(engine.run(MakeSpell(folder, password="hunter2"), SHARDS))
    assert (results, errors) == (spelled(), {})
    assert len(list(folder.iterdir())) == len(SHARDS)
    assert "hunter2" not in cluster.logs()


def test_what_a_job_raises_is_raised_here_and_not_logged_there(cluster, folder):
    engine = DaskEngine(cluster.address, PATIENCE)
    with pytest.raises(InputError, match=r"^client c05: its file is damaged$"):
        collect(engine.run(MakeSpell(folder, refused=frozenset({"c05"})), SHARDS))
    assert "damaged" not in cluster.logs()


def test_a_poisoned_client_is_named_and_the_others_finish(cluster, folder):
    engine = DaskEngine(cluster.address, PATIENCE)
    results, errors = collect(engine.run(MakeSpell(folder, deadly=frozenset({"c04"})), SHARDS))
    assert results == spelled("c04")
    assert list(errors) == [("c04",)]
    assert "killed or ran out of memory" in errors["c04",]


def test_a_client_too_large_for_any_worker_is_named(cluster, folder):
    engine = DaskEngine(cluster.address, PATIENCE)
    results, errors = collect(engine.run(MakeSpell(folder, greedy=frozenset({"c11"})), SHARDS))
    assert results == spelled("c11")
    assert list(errors) == [("c11",)]


def test_a_worker_that_is_killed_costs_nothing_but_time(cluster, folder):
    engine = DaskEngine(cluster.address, PATIENCE)
    done = engine.run(MakeSpell(folder, seconds=0.7), SHARDS)
    first = next(done)
    cluster.computing(0).kill()
    results, errors = collect([first, *done])
    assert (results, errors) == (spelled(), {})


def test_leaving_cancels_what_is_unfinished(cluster, folder):
    engine = DaskEngine(cluster.address, PATIENCE)
    many = [[f"d{number:03d}"] for number in range(200)]
    # Uncancelled they would take half a minute, and all would have run.
    done = engine.run(MakeSpell(folder, seconds=0.3, quick=frozenset({"d000"})), many)
    next(done)
    done.close()
    cluster.wait_until_idle()
    assert len(list(folder.iterdir())) < 100


def test_all_workers_killed_then_new_ones_come(tmp_path, folder):
    with Cluster(tmp_path) as cluster:
        cluster.start_scheduler()
        cluster.start_workers(2, "--no-nanny")
        done = DaskEngine(cluster.address, PATIENCE).run(MakeSpell(folder, seconds=0.5), SHARDS)
        first = next(done)
        cluster.kill_workers()
        cluster.start_workers(1, "--no-nanny")
        results, errors = collect([first, *done])
    assert (results, errors) == (spelled(), {})


def test_the_scheduler_is_restarted(tmp_path, folder):
    with Cluster(tmp_path) as cluster:
        cluster.start_scheduler()
        cluster.start_workers(2, "--no-nanny")
        done = DaskEngine(cluster.address, PATIENCE).run(MakeSpell(folder, seconds=0.5), SHARDS)
        first = next(done)
        cluster.kill_scheduler()
        cluster.kill_workers()
        cluster.start_scheduler()
        cluster.start_workers(2, "--no-nanny")
        results, errors = collect([first, *done])
        ran = {path.name.split("-")[0] for path in folder.iterdir()}
    assert (results, errors) == (spelled(), {})
    assert ran == {shard[0] for shard in SHARDS}


def test_a_cluster_that_is_gone_for_good_is_told_in_one_line(tmp_path, folder):
    patience = Patience(connect_s=20.0, reconnect_s=1.0, workers_s=1.0, heartbeat_s=0.2)
    # One shard ends; the others would not before the test has.
    make_job = MakeSpell(folder, seconds=300.0, quick=frozenset({"c00"}))
    with Cluster(tmp_path) as cluster:
        cluster.start_scheduler()
        cluster.start_workers(1, "--no-nanny")
        cluster.wait_for_workers(1)
        done = DaskEngine(cluster.address, patience).run(make_job, SHARDS)
        next(done)
        cluster.kill_workers()
        with pytest.raises(UnreachableError, match=r"^compute engine .*: no worker for \d+ s, 3 "):
            collect(done)
        cluster.start_workers(1, "--no-nanny")
        cluster.wait_for_workers(1)
        done = DaskEngine(cluster.address, patience).run(make_job, SHARDS)
        next(done)
        cluster.kill_scheduler()
        with pytest.raises(
            UnreachableError, match=r"^compute engine .* cannot be reached within 1"
        ):
            collect(done)


def test_a_scheduler_that_is_not_there(folder):
    address = f"tcp://127.0.0.1:{free_port()}"
    engine = DaskEngine(address, Patience(connect_s=1.0))  # importing it is not waiting for it
    started = time.monotonic()
    with pytest.raises(UnreachableError, match=f"^compute engine {address} cannot be reached"):
        collect(engine.run(MakeSpell(folder), SHARDS))
    assert time.monotonic() - started < 10.0


@pytest.mark.soak
def test_a_scheduler_that_hangs(cluster, folder):
    patience = Patience(reconnect_s=2.0, heartbeat_s=0.5, result_s=3.0)
    done = DaskEngine(cluster.address, patience).run(MakeSpell(folder, seconds=0.5), SHARDS)
    next(done)
    assert cluster.scheduler is not None
    os.kill(cluster.scheduler.pid, signal.SIGSTOP)
    try:
        with pytest.raises(UnreachableError):
            collect(done)
    finally:
        os.kill(cluster.scheduler.pid, signal.SIGCONT)
