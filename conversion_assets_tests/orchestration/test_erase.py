"""`erase` as a person runs it, with what Dagster keeps, with kills and beside a learning run."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from dagster import AssetKey

from conversion_assets.cli.launching import launch_learning
from conversion_assets.cli.shell import run
from conversion_assets.orchestration.erasing import find_client
from conversion_assets.orchestration.instance import open_instance
from conversion_assets.settings import load_settings
from conversion_assets_tests.homes import AS_OF, CLIENTS, copy_home
from conversion_assets_tests.orchestration.conftest import clear_environment

ONE, TWO = CLIENTS[:2]
LEAD = "c0001-l000001"
WHO = AssetKey("who_patterns")


@pytest.fixture(scope="module")
def base_home(imported_home, tmp_path_factory):
    """All clients learned in one run, the first in a run of its own too."""
    folder = copy_home(imported_home, tmp_path_factory.mktemp("learned") / "home")
    with pytest.MonkeyPatch.context() as patch:
        clear_environment(patch)
        patch.setenv("CONVERSION_HOME", str(folder))
        launch_learning(load_settings(), as_of=AS_OF)
        launch_learning(load_settings(), as_of=AS_OF, client_ids=[ONE])
    return folder


def start(home, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "conversion_assets.cli", *arguments],
        env={**os.environ, "CONVERSION_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def count(home, client, lead=None):
    with closing(sqlite3.connect(home / "conversion.db")) as database:
        where = f"client_id = '{client}'" + (f" AND id = '{lead}'" if lead else "")
        return database.execute(f"SELECT count(*) FROM leads WHERE {where}").fetchone()[0]


def erase(capsys, *arguments):
    capsys.readouterr()
    status = run(["erase", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_it_refuses_where_nobody_can_be_asked_and_a_dry_run_changes_nothing(home, capsys):
    before = count(home, ONE)
    for more in ([], ["--json"]):
        assert run(["erase", ONE, "--lead", LEAD, *more]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "--yes" in err
    status, document = erase(capsys, ONE, "--lead", LEAD, "--dry-run")
    assert status == 0
    assert document["dry_run"]
    assert document["would_erase"]["rows"]["leads"] == 1
    status, document = erase(capsys, ONE, "--dry-run")
    assert document["would_erase"]["rows"]["leads"] == before
    assert (document["would_erase"]["runs_of_client"], document["would_erase"]["runs_shared"]) == (
        1,
        1,
    )
    assert count(home, ONE) == before
    assert run(["erase", ONE, "--lead", "nobody", "--yes"]) == 6
    assert run(["erase", "nobody", "--yes"]) == 6


def test_a_lead_is_erased_and_dagster_never_knew_it(home, capsys):
    status, document = erase(capsys, ONE, "--lead", LEAD, "--yes")
    assert (status, document["found"]) == (0, 0)
    assert document["erased"]["rows"]["leads"] == 1
    assert str(home) in {one["place"] for one in document["searched"]}
    assert count(home, ONE, LEAD) == 0
    with open_instance(load_settings()) as instance:
        assert set(instance.get_dynamic_partitions("clients")) == set(CLIENTS)


def test_a_client_leaves_dagster_as_far_as_dagster_lets_it(home, capsys):
    with open_instance(load_settings()) as instance:
        found = find_client(instance, ONE)
        others = instance.get_materialized_partitions(WHO) - {ONE}
    assert (len(found.own), len(found.shared)) == (1, 1)
    status, document = erase(capsys, ONE, "--yes")
    assert (status, document["found"]) == (0, 0)
    [kept] = [one for one in document["searched"] if "Dagster" in one["place"]]
    assert kept["where"] == found.shared
    assert kept["shared"] > 0
    with open_instance(load_settings()) as instance:
        assert set(instance.get_dynamic_partitions("clients")) == set(CLIENTS) - {ONE}
        assert instance.get_materialized_partitions(WHO) - {ONE} == others
        assert instance.get_run_by_id(found.own[0]) is None
        assert instance.get_run_by_id(found.shared[0]) is not None
    assert not list(home.rglob(f"*{found.own[0]}*"))


def test_shared_runs_go_when_asked(home, capsys):
    status, _ = erase(capsys, ONE, "--yes", "--with-shared-runs")
    with open_instance(load_settings()) as instance:
        assert instance.get_runs() == []
        assert instance.get_materialized_partitions(WHO) == set()
    # What is left is each asset's last materialization, which the next one replaces.
    assert status == 0
    assert run(["learn", "--as-of", AS_OF.isoformat()]) == 0
    status, document = erase(capsys, ONE, "--yes")
    [kept] = [one for one in document["searched"] if "Dagster" in one["place"]]
    assert (kept["shared"], kept["where"]) == (0, [])
    assert count(home, TWO) > 0


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_finishes(home, capsys):
    draw = random.Random(4)
    command = ("erase", ONE, "--lead", LEAD, "--yes", "--json")
    began = time.monotonic()
    with start(home, *command) as undisturbed:
        undisturbed.communicate(timeout=300)
    whole = time.monotonic() - began
    assert undisturbed.returncode == 0
    leads = [f"c0001-l{number:06d}" for number in range(2, 6)]
    for lead in leads:
        with start(home, *command[:3], lead, *command[4:]) as process:
            time.sleep(draw.uniform(0.3, 1) * whole)
            process.send_signal(signal.SIGKILL)
            process.communicate()
    for lead in leads:
        status, document = erase(capsys, ONE, "--lead", lead, "--yes")
        assert (status, document["found"]) == (0, 0)
        assert count(home, ONE, lead) == 0
    assert run(["learn", "--client", ONE, "--as-of", AS_OF.isoformat()]) == 0
    assert run(["verify"]) in (0, 1)
    assert "erasures" not in capsys.readouterr().out


@pytest.mark.slow
def test_beside_a_learning_run_it_is_refused_or_done_and_nothing_comes_back(home, capsys):
    with start(home, "learn", "--as-of", AS_OF.isoformat()) as learning:
        while learning.poll() is None:
            status = run(["erase", ONE, "--lead", LEAD, "--yes"])
            assert status in (0, 1)
            if status == 0:
                break
            assert "wait for it to end" in capsys.readouterr().err
            time.sleep(0.2)
        learning.communicate(timeout=300)
    assert run(["erase", ONE, "--lead", LEAD, "--yes"]) == 0
    assert run(["learn", "--as-of", AS_OF.isoformat()]) == 0
    status, document = erase(capsys, ONE, "--lead", LEAD, "--yes")
    assert (status, document["erased"]["rows"], document["found"]) == (0, {}, 0)
