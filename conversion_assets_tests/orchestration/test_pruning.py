"""Old runs and events go, and nothing that anybody is shown now goes with them."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa
from sqlalchemy import make_url

from conversion_assets.cli.shell import run as run_command
from conversion_assets.definitions import defs
from conversion_assets.orchestration import pruning
from conversion_assets.orchestration.events import Materialization, record_materializations
from conversion_assets.orchestration.instance import open_instance
from conversion_assets.orchestration.pruning import Pruned, prune_history
from conversion_assets.partitions import CLIENTS, covering_range, sync_partitions
from conversion_assets.settings import load_settings

pytestmark = pytest.mark.slow

KEYS = [f"c{number}" for number in range(12)]
KINDS = ("who", "how")
NOW = datetime.now(UTC)
POSTGRESQL = """
{kind}_storage:
  module: {module}
  class: {name}
  config:
    postgres_url: {url}
"""


@dg.asset(code_version="f1")
def rows() -> dg.MaterializeResult:
    return dg.MaterializeResult(data_version=dg.DataVersion("rows-1"))


@dg.asset_check(asset="rows")
def there_are_some() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


class Chosen(dg.Config):
    clients: list[str]


@dg.multi_asset(
    specs=[
        dg.AssetSpec(name, deps=[rows], partitions_def=CLIENTS, skippable=True) for name in KINDS
    ],
    can_subset=True,
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def learned(context: dg.AssetExecutionContext, config: Chosen) -> Iterator[dg.MaterializeResult]:
    for asset_key in sorted(context.selected_asset_keys):
        told = {key: Materialization({"n": 1}, context.run.run_id) for key in config.clients}
        record_materializations(context, asset_key, told, code_version="p1")
    yield from ()


@pytest.fixture(params=["sqlite", "postgresql"])
def instance(request, home, monkeypatch):
    """An instance as an embedded home has it, or on PostgreSQL."""
    monkeypatch.setattr(pruning, "EVENTS_PER_DELETE", 5)
    monkeypatch.setattr(pruning, "RUNS_PER_READ", 2)
    if request.param == "postgresql":
        databases = request.getfixturevalue("postgres_databases")
        with databases.fresh(migrated=False) as url:
            write_postgresql(home / "dagster", url)
            with open_instance(load_settings()) as instance:
                yield instance
    else:
        with open_instance(load_settings()) as instance:
            yield instance


def write_postgresql(folder, url):
    shown = make_url(url).set(drivername="postgresql+psycopg2")
    shown = shown.update_query_dict({"options": "-c TimeZone=UTC"})
    parts = [
        ("event_log", "conversion_assets.orchestration.event_log", "PooledPostgresEventLogStorage"),
        ("run", "dagster_postgres.run_storage", "PostgresRunStorage"),
        ("schedule", "dagster_postgres.schedule_storage", "PostgresScheduleStorage"),
    ]
    text = "".join(
        POSTGRESQL.format(
            kind=kind, module=module, name=name, url=shown.render_as_string(hide_password=False)
        )
        for kind, module, name in parts
    )
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n" + text)


def learn(instance, clients, *, days_ago, status="SUCCESS"):
    """A run over some clients that was made some days ago."""
    sync_partitions(instance, KEYS)
    result = dg.materialize(
        [rows, there_are_some, learned],
        instance=instance,
        tags=covering_range(KEYS, clients),
        run_config={"ops": {"learned": {"config": {"clients": clients}}}},
    )
    made = (NOW - timedelta(days=days_ago)).replace(tzinfo=None)
    storage = instance.run_storage
    with storage.connect() as connection:
        connection.execute(
            sa.text(
                "UPDATE runs SET create_timestamp = :made, status = :status WHERE run_id = :run"
            ),
            {"made": made, "status": status, "run": result.run_id},
        )
    with instance.event_log_storage.index_transaction() as connection:
        connection.execute(
            sa.text(
                "UPDATE asset_check_executions SET create_timestamp = :made WHERE run_id = :run"
            ),
            {"made": made, "run": result.run_id},
        )
    return result.run_id


def describe(instance):
    """What a person sees of every partition, and what Dagster judges staleness by."""
    storage = instance.event_log_storage
    shown = {}
    for name in KINDS:
        key = dg.AssetKey(name)
        shown[name] = (
            instance.get_materialized_partitions(key),
            storage.get_latest_storage_id_by_partition(
                key, dg.DagsterEventType.ASSET_MATERIALIZATION
            ),
            storage.get_latest_tags_by_partition(
                key,
                dg.DagsterEventType.ASSET_MATERIALIZATION,
                tag_keys=["dagster/data_version"],
            ),
        )
    latest = instance.get_latest_materialization_event(dg.AssetKey("rows"))
    check = dg.AssetCheckKey(dg.AssetKey("rows"), "there_are_some")
    evaluation = instance.get_latest_asset_check_evaluation_record(check)
    return shown, latest, evaluation.id


def count(instance, table):
    with instance.event_log_storage.index_connection() as connection:
        return connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar()


def prune(instance, days=90, **options):
    return prune_history(instance, NOW - timedelta(days=days), **options)


def test_superseded_runs_go_whole_and_the_last_of_a_client_stays(instance):
    oldest = learn(instance, KEYS, days_ago=300)
    # c11 left: its latest stays in a run whose other clients have newer ones.
    held = learn(instance, KEYS, days_ago=200)
    learn(instance, KEYS[:11], days_ago=150)
    newest = learn(instance, KEYS[:11], days_ago=100)
    recent = learn(instance, KEYS[:3], days_ago=2)
    before = describe(instance)
    counted = prune(instance, dry_run=True)
    assert describe(instance) == before
    assert len(instance.get_runs()) == 5
    gone = prune(instance)
    assert gone == counted
    assert gone.runs == 2
    assert gone.thinned == 2
    # Of two assets 12, 11, 11 and 3 clients, and of the table the run's own one.
    assert gone.materializations == (24 + 1) + (22 + 1) + (22 + 1) + (6 + 1)
    assert gone.checks == 4
    assert describe(instance) == before
    assert {run.run_id for run in instance.get_runs()} == {held, newest, recent}
    assert count(instance, f"event_logs WHERE run_id = '{oldest}'") == 0
    assert instance.all_logs(recent)
    events = count(instance, "event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION'")
    assert events == 2 * (1 + 8 + 3) + 1
    orphans = "asset_event_tags WHERE event_id NOT IN (SELECT id FROM event_logs)"
    assert count(instance, orphans) == 0
    again = prune(instance)
    assert (again.runs, again.materializations, again.checks) == (0, 0, 0)
    assert describe(instance) == before


def test_unfinished_and_young_runs_stay(instance):
    started = learn(instance, KEYS, days_ago=300, status="STARTED")
    young = learn(instance, KEYS, days_ago=89)
    latest = learn(instance, KEYS, days_ago=0)
    gone = prune(instance)
    assert (gone.runs, gone.thinned, gone.materializations) == (0, 0, 0)
    kept = {run.run_id for run in instance.get_runs()}
    assert kept == {started, young, latest}


def test_what_was_killed_on_the_way_is_finished_by_the_next(instance, monkeypatch):
    for days_ago in (300, 250):
        learn(instance, KEYS, days_ago=days_ago)
    learn(instance, KEYS, days_ago=1)
    before = describe(instance)
    deleted = type(instance.run_storage).delete_run
    calls = []

    def die(storage, run_id):
        calls.append(run_id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        deleted(storage, run_id)

    monkeypatch.setattr(type(instance.run_storage), "delete_run", die)
    with pytest.raises(KeyboardInterrupt):
        prune(instance)
    assert describe(instance) == before
    assert len(instance.get_runs()) == 2
    assert prune(instance).runs == 1
    assert describe(instance) == before
    assert len(instance.get_runs()) == 1


def test_the_files_of_deleted_runs_go_too(home):
    with open_instance(load_settings()) as instance:
        old = learn(instance, KEYS, days_ago=300)
        learn(instance, KEYS, days_ago=1)
        assert list((home / "dagster").rglob(f"{old}.db"))
        prune(instance)
        assert not list((home / "dagster").rglob(f"*{old}*"))


def test_an_empty_instance_has_nothing_to_prune(instance):
    assert prune(instance) == Pruned()


def test_the_command_tells_first_and_then_does(home, capsys):
    with open_instance(load_settings()) as instance:
        learn(instance, KEYS, days_ago=100)
        learn(instance, KEYS, days_ago=1)
    assert run_command(["prune", "--dry-run"]) == 0
    assert "1 runs, 25 superseded materializations" in capsys.readouterr().out
    assert run_command(["prune", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["runs"], told["materializations"], told["dry_run"]) == (1, 25, False)


@pytest.mark.parametrize("days", ["13", "-1", "nan", "1e9"])
def test_too_short_or_senseless_a_history_is_refused(home, capsys, days):
    assert run_command(["prune", "--days", days]) == 2
    assert "--days is" in capsys.readouterr().err


def test_the_job_keeps_as_many_days_as_the_settings_say(home, monkeypatch):
    monkeypatch.setenv("CONVERSION_RUN_HISTORY_DAYS", "50")
    with open_instance(load_settings()) as instance:
        old = learn(instance, KEYS, days_ago=60)
        kept = learn(instance, KEYS, days_ago=40)
        learn(instance, KEYS, days_ago=1)
        done = defs.resolve_job_def("prune_history").execute_in_process(instance=instance)
        assert done.success
        left = {run.run_id for run in instance.get_runs()}
        assert kept in left
        assert old not in left
