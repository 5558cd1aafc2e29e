"""The job and the command of backfills, and what a change of the code makes stale."""

import json
import os
import subprocess
import sys

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from sqlalchemy import text

from conversion_assets.assets.features import features
from conversion_assets.assets.patterns import patterns
from conversion_assets.assets.sources import SOURCES
from conversion_assets.cli.launching import launch_learning
from conversion_assets.cli.shell import run
from conversion_assets.definitions import defs
from conversion_assets.learning import CODE_VERSION
from conversion_assets.orchestration.instance import open_instance
from conversion_assets.orchestration.progress import PROGRESS_TAG
from conversion_assets.partitions import sync_partitions
from conversion_assets.settings import load_settings
from conversion_assets.storage.backfills import LEASE
from conversion_assets.storage.database import create_database_engine, migrate, write_transaction
from conversion_assets_tests.backfilling import (
    CLIENT,
    generate_half_complete,
    import_agency,
    open_home,
)
from conversion_assets_tests.homes import AS_OF, CLIENTS, dump_learned, poison
from conversion_assets_tests.orchestration.conftest import clear_environment

WHO = dg.AssetKey("who_patterns")


@pytest.fixture
def half_home(tmp_path, monkeypatch):
    """A home with one client without snapshots and scores, as CONVERSION_HOME."""
    clear_environment(monkeypatch)
    folder = tmp_path / "half"
    engine, _ = open_home(folder)
    migrate(engine)
    import_agency(engine, generate_half_complete(250), folder / "quarantine")
    engine.dispose()
    monkeypatch.setenv("CONVERSION_HOME", str(folder))
    return folder


def execute(instance, **config):
    return defs.resolve_job_def("backfill_client").execute_in_process(
        instance=instance,
        tags={"dagster/partition": CLIENT},
        run_config={
            "ops": {"backfills": {"config": {"as_of": AS_OF.isoformat(), **config}}},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        raise_on_error=False,
    )


def test_the_job_records_stages_and_patterns_and_a_dry_run_nothing(half_home):
    engine, _ = open_home(half_home)
    with open_instance(load_settings()) as instance:
        sync_partitions(instance, [CLIENT])
        dry = execute(instance, dry_run=True)
        assert dry.success
        assert not instance.get_materialized_partitions(dg.AssetKey("backfills"))
        with engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM backfills")).scalar_one() == 0
        result = execute(instance)
        assert result.success
        key = dg.AssetKey("backfills")
        event = instance.get_latest_materialization_event(key).asset_materialization
        metadata = {name: value.value for name, value in event.metadata.items()}
        assert event.partition == CLIENT
        assert metadata["content/done"] == metadata["content/total"] > metadata["content/rebuilt"]
        assert metadata["score/scored"] == 250
        assert "/s" in metadata["content"]
        tags = instance.get_run_by_id(result.run_id).tags
        assert tags[PROGRESS_TAG].startswith("detectors 4 of 4")
        assert instance.get_materialized_partitions(WHO) == {CLIENT}
        # What a backfill learned is not stale: nothing it was made from was recorded since.
        assert stale_status(instance, WHO, CLIENT) is StaleStatus.FRESH
        assert not launch_learning(load_settings(), as_of=AS_OF).errors
        assert stale_status(instance, WHO, CLIENT) is StaleStatus.FRESH


def test_stages_are_switched_by_config(half_home):
    engine, _ = open_home(half_home)
    with open_instance(load_settings()) as instance:
        sync_partitions(instance, [CLIENT])
        assert execute(instance, content=False, detectors=False).success
        assert not instance.get_materialized_partitions(WHO)
        refused = execute(instance, content=False, detectors=False, score=False)
        assert not refused.success
    with engine.connect() as connection:
        query = "SELECT count(*) FROM activities WHERE content_snapshot IS NOT NULL"
        assert connection.execute(text(query)).scalar_one() == 0


def call(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "conversion_assets.cli", "backfill", *arguments],
        env=os.environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_command_reports_resumes_and_lists(half_home, capsys):
    moment = ("--as-of", AS_OF.isoformat())
    assert run(["backfill", CLIENT, "--dry-run", "--json", *moment]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["dry_run"] is True
    done = call(CLIENT, "--json", *moment)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["state"] == "done"
    counts = report["stages"]["content"]["counts"]
    assert counts["rebuilt"] == plan["stages"]["content"]["counts"]["to rebuild"]
    assert report["errors"] == []
    assert run(["backfill", "--list", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["backfills"]
    assert (row["client_id"], row["run_id"]) == (CLIENT, report["run_id"])
    assert run(["backfill", "--list"]) == 0
    assert CLIENT in capsys.readouterr().out


def test_a_failed_detector_is_status_4_and_learned_by_the_next_attempt(half_home, capsys):
    moment = ("--as-of", AS_OF.isoformat())
    poison(half_home, CLIENT)
    assert run(["backfill", CLIENT, "--json", *moment]) == 4
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report["state"] == "failed"
    assert "poisoned" in report["errors"][0]["error"]
    assert "Traceback" not in captured.err
    engine, _ = open_home(half_home)
    with write_transaction(engine) as connection:
        connection.execute(text("DROP TRIGGER poison"))
    assert run(["backfill", CLIENT, "--json", *moment]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["backfill_id"] == report["backfill_id"]


def test_beside_another_backfill_one_is_refused_with_a_clear_word(half_home, capsys):
    engine, _ = open_home(half_home)
    with write_transaction(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO backfills (backfill_id, client_id, stages, as_of, code_version, "
                "run_id, started_at, progress, lease_owner, lease_until) VALUES ('b', :c, '[]', "
                ":t, 'v', 'elsewhere', :t, '{}', 'far-away:1:x', '2999-01-01T00:00:00.000000Z')"
            ),
            {"c": CLIENT, "t": "2026-01-04T00:00:00.000000Z"},
        )
    assert run(["backfill", CLIENT]) == 1
    error = capsys.readouterr().err
    assert "at work since 2026-01-04 00:00:00 UTC (run elsewhere)" in error
    assert error.count("\n") == 1
    assert LEASE.total_seconds() < 60


def with_code_version(version):
    """The same assets as after a change of the code."""
    changed = [
        asset.map_asset_specs(lambda spec: spec.replace_attributes(code_version=version))
        for asset in (features, patterns)
    ]
    return dg.Definitions(assets=[*SOURCES, *changed], resources=defs.resources)


def stale_status(instance, key, partition=None, definitions=defs):
    with instance:
        resolver = CachingStaleStatusResolver(
            instance, definitions.resolve_asset_graph(), LoadingContextForTest(instance)
        )
    return resolver.get_status(key, partition)


def test_a_change_of_the_code_makes_features_and_patterns_stale(home):
    assert not launch_learning(load_settings(), as_of=AS_OF).errors
    changed = with_code_version("next")
    keys = [(dg.AssetKey("lead_features"), None), (WHO, CLIENTS[0])]
    with open_instance(load_settings()) as instance:
        assert {stale_status(instance, *key) for key in keys} == {StaleStatus.FRESH}
        assert {stale_status(instance, *key, changed) for key in keys} == {StaleStatus.STALE}


def test_learn_stale_learns_those_of_other_code_and_no_others(home, capsys):
    settings = load_settings()
    moment = AS_OF.isoformat()
    assert not launch_learning(settings, client_ids=CLIENTS[:3], as_of=AS_OF).errors
    assert run(["learn", "--stale", "--json", "--as-of", moment]) == 0
    assert json.loads(capsys.readouterr().out)["clients"] == 0
    engine = create_database_engine(settings.database_url.get_secret_value())

    def spoil(client_id):
        with write_transaction(engine) as connection:
            connection.execute(
                text("UPDATE pattern_outcomes SET code_version = 'old' WHERE client_id = :c"),
                {"c": client_id},
            )

    def runs():
        with engine.connect() as connection:
            found = connection.execute(
                text("SELECT DISTINCT client_id, run_id FROM pattern_outcomes")
            )
            return {client_id: run_id for client_id, run_id in found}

    before = runs()
    learned = dump_learned(home)["conversion_patterns"]
    spoil(CLIENTS[1])
    assert run(["learn", "--stale", "--json", "--as-of", moment]) == 0
    assert json.loads(capsys.readouterr().out)["clients"] == 1
    moved = {client for client, run_id in runs().items() if before[client] != run_id}
    # Clients 4 and 5 were never learned: they are new, not stale.
    assert moved == {CLIENTS[1]}
    assert dump_learned(home)["conversion_patterns"] == learned
    # Features of an older code concern whoever was learned.
    manifest = home / "store" / "manifest.json"
    written = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(written | {"feature_version": "features-0"}))
    assert run(["learn", "--stale", "--json", "--as-of", moment]) == 0
    assert json.loads(capsys.readouterr().out)["clients"] == 3
    assert json.loads(manifest.read_text())["feature_version"] == written["feature_version"]
    assert run(["learn", "--stale", "--client", CLIENTS[0]]) == 0
    assert "nothing is stale" in capsys.readouterr().err
    assert CODE_VERSION != "old"
