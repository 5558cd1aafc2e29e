"""The health job, schedules and sensors, on a real database and an instance of their own."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    DagsterRunStatus,
    RunRequest,
    SkipReason,
    build_schedule_context,
    build_sensor_context,
)
from sqlalchemy import insert, select, update

from conversion_assets import sensors
from conversion_assets.checks.health import CLAIMS
from conversion_assets.definitions import defs
from conversion_assets.orchestration.launches import find_missed_time, list_failed_runs
from conversion_assets.orchestration.ticks import find_late_daemons
from conversion_assets.orchestration.workers import WORKER_TAG, describe_process
from conversion_assets.partitions import CLIENTS, RANGE_END_TAG, RANGE_START_TAG
from conversion_assets.refresh.heartbeat import find_silent_work
from conversion_assets.resources.alerts import AlertsResource
from conversion_assets.resources.database import DatabaseResource
from conversion_assets.resources.settings import SettingsResource
from conversion_assets.schedules import SCHEDULES, daily_pattern_health, weekly_pattern_learning
from conversion_assets.storage import tables
from conversion_assets.storage.database import write_transaction
from conversion_assets_tests.integration.storage.test_health import add_clients, plant

DAY = timedelta(days=1)
SETTINGS = SettingsResource()


@pytest.fixture
def home(engine, database_url, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVERSION_HOME", str(tmp_path))
    monkeypatch.setenv("CONVERSION_DATABASE_URL", database_url)
    for name in ("SLACK_WEBHOOK_URL", "SENTRY_DSN", "ALERT_EMAIL", "SMTP_URL"):
        monkeypatch.delenv(name, raising=False)
    return engine


@pytest.fixture
def instance(tmp_path):
    (tmp_path / "dagster").mkdir()
    with DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield instance


@pytest.fixture
def resources():
    return {
        "database": DatabaseResource(settings=SETTINGS),
        "alerts": AlertsResource(settings=SETTINGS),
    }


def evaluate(sensor, instance, resources, cursor=None):
    """What one tick of a sensor gives, and the cursor it leaves."""
    used = {name: resources[name] for name in sensor.required_resource_keys}
    with build_sensor_context(instance=instance, cursor=cursor, resources=used) as context:
        return sensor(context), context.cursor


def evaluate_schedule(schedule, instance, resources, due):
    used = {name: resources[name] for name in schedule.required_resource_keys}
    with build_schedule_context(
        instance=instance, scheduled_execution_time=due, resources=used
    ) as context:
        return schedule(context)


def queued(engine):
    with engine.connect() as connection:
        rows = connection.execute(select(tables.alert_outbox).order_by(tables.alert_outbox.c.id))
        return [(row.kind, row.client_id, row.sent_at is not None) for row in rows]


def run_health(instance):
    result = defs.resolve_job_def("check_pattern_health").execute_in_process(instance=instance)
    assert result.success
    return {(e.asset_key, e.check_name): e for e in result.get_asset_check_evaluations()}


def test_the_job_shows_planted_faults_and_queues_one_message_per_client(home, instance):
    now = datetime.now(UTC)
    plant(home, "good", as_of=now - DAY)
    plant(home, "old", as_of=now - 20 * DAY)
    plant(home, "broken", as_of=now - DAY, outcome="failed")
    shown = run_health(instance)
    assert set(shown) == set(CLAIMS)
    failed = {(key.to_user_string(), name) for (key, name), e in shown.items() if not e.passed}
    assert failed == {
        *((f"{k}_patterns", "patterns_have_not_expired") for k in ("who", "what", "when", "how")),
        *((f"{k}_patterns", "last_learning_succeeded") for k in ("who", "what", "when", "how")),
        ("activities", "sources_are_fresh"),
    }
    expired = shown[AssetKey("who_patterns"), "patterns_have_not_expired"]
    assert expired.severity.value == "ERROR"
    assert expired.metadata["clients_checked"].value == 3
    assert [r.data["client_id"] for r in expired.metadata["clients"].records] == ["old"]
    assert queued(home) == [("opened", "broken", False), ("opened", "old", False)]
    run_health(instance)
    assert len(queued(home)) == 2


def test_learning_does_not_plan_checks():
    assert defs.resolve_job_def("learn_patterns").asset_layer.asset_graph.asset_check_keys == set()


def test_schedules_are_those_of_the_contract():
    told = {
        s.name: (s.cron_schedule, s.execution_timezone, s.default_status.value) for s in SCHEDULES
    }
    assert told == {
        "weekly_pattern_learning": ("0 2 * * 0", "UTC", "RUNNING"),
        "daily_pattern_health": ("0 6 * * *", "UTC", "RUNNING"),
        "daily_history_pruning": ("0 4 * * *", "UTC", "RUNNING"),
    }


def test_the_weekly_schedule_asks_for_one_run_over_active_clients(home, instance, resources):
    due = datetime(2026, 3, 1, 2, tzinfo=UTC)
    nobody = evaluate_schedule(weekly_pattern_learning, instance, resources, due)
    assert isinstance(nobody, SkipReason)
    for name in ("b", "a", "left"):
        plant(home, name)
    add_clients(home, "no conversion")
    instance.add_dynamic_partitions(CLIENTS.name, ["left", "b", "stranger", "a"])
    with write_transaction(home) as connection:
        connection.execute(
            update(tables.clients).where(tables.clients.c.id == "left").values(is_paused=True)
        )
    asked = evaluate_schedule(weekly_pattern_learning, instance, resources, due)
    assert isinstance(asked, RunRequest)
    assert asked.run_config["ops"]["patterns"]["config"]["client_ids"] == ["a", "b"]
    assert (asked.tags[RANGE_START_TAG], asked.tags[RANGE_END_TAG]) == ("b", "a")
    again = evaluate_schedule(weekly_pattern_learning, instance, resources, due)
    assert again.run_key == asked.run_key
    health = evaluate_schedule(daily_pattern_health, instance, resources, due)
    assert health.run_key == f"daily:{due.isoformat()}"


def test_partitions_follow_the_table_and_are_never_deleted(home, instance, resources):
    def tick():
        evaluate(sensors.client_partitions, instance, resources)
        return instance.get_dynamic_partitions(CLIENTS.name)

    assert tick() == []
    plant(home, "a")
    assert tick() == ["a"]
    plant(home, "b")
    with write_transaction(home) as connection:
        connection.execute(
            update(tables.clients).where(tables.clients.c.id == "a").values(is_paused=True)
        )
    assert tick() == ["a", "b"]


def test_changed_clients_are_learned_and_no_others(home, instance, resources):
    cursor = None

    def tick():
        nonlocal cursor
        result, _ = evaluate(sensors.changed_clients, instance, resources, cursor)
        cursor = result.cursor
        return [
            request.run_config["ops"]["patterns"]["config"]["client_ids"]
            for request in result.run_requests or []
        ]

    def add_touches(client, rows):
        with write_transaction(home) as connection:
            connection.execute(
                insert(tables.activities),
                [
                    {"id": f"{rows}-{i}", "client_id": client, "lead_id": "l0",
                     "action": "email_sent", "occurred_at": datetime.now(UTC)}
                    for i in range(rows)
                ],
            )  # fmt: skip

    for name in ("a", "b", "c"):
        plant(home, name)
    assert tick() == []  # the first look remembers where to start
    assert tick() == []
    add_touches("b", 30)
    assert tick() == []
    add_touches("b", 25)  # 55 together
    assert tick() == [["b"]]
    assert tick() == []
    with write_transaction(home) as connection:
        connection.execute(tables.pattern_outcomes.delete().where(
            tables.pattern_outcomes.c.client_id == "c"))  # fmt: skip
    assert tick() == [["c"]]  # active, and nothing ever came of it


def test_alerts_are_delivered_by_their_sensor(home, instance, resources):
    plant(home, "old", as_of=datetime.now(UTC) - 20 * DAY)
    run_health(instance)
    told, _ = evaluate(sensors.alert_delivery, instance, resources)
    assert told.skip_message == "1 sent"
    assert queued(home) == [("opened", "old", True)]


def test_a_failed_run_is_told_once(home, instance, resources):
    job = defs.resolve_job_def("check_pattern_health")
    run = instance.create_run_for_job(job, status=DagsterRunStatus.STARTED)
    instance.report_run_failed(run, "killed")
    cursor = None
    for _ in range(3):
        _, cursor = evaluate(sensors.run_failures, instance, resources, cursor)
    # A sensor that died before it kept its cursor tells nothing twice either.
    evaluate(sensors.run_failures, instance, resources)
    assert queued(home) == [("notice", None, False)]


def test_many_failed_runs_are_one_notice(home, instance, resources):
    job = defs.resolve_job_def("check_pattern_health")
    for _ in range(7):
        run = instance.create_run_for_job(job, status=DagsterRunStatus.STARTED)
        instance.report_run_failed(run, "killed")
    evaluate(sensors.run_failures, instance, resources)
    assert len(queued(home)) == 1


def test_a_missed_time_is_found_after_its_grace(instance):
    since = datetime(2026, 3, 1, tzinfo=UTC)
    due = datetime(2026, 3, 2, 6, tzinfo=UTC)

    def look(minutes, since=since):
        now = due + timedelta(minutes=minutes)
        return find_missed_time(instance, "daily", "0 6 * * *", now=now, since=since)

    assert look(31) == due
    assert look(29) == due - DAY
    assert look(31, since=due) is None


def test_missed_schedules_are_told_once(home, instance, resources):
    plant(home, "a")
    cursor = (datetime.now(UTC) - 30 * DAY).isoformat()
    counts = []
    for _ in range(3):
        _, cursor = evaluate(sensors.missed_schedules, instance, resources, cursor)
        counts.append(len(queued(home)))
    assert counts == [
        0,
        3,
        3,
    ]  # of three schedules; a daemon that comes back may make up for it until the second look
    first, _ = evaluate(sensors.missed_schedules, instance, resources)
    assert first.skip_message == "missed: none"


def test_silence_is_noticed(home, instance):
    now = datetime.now(UTC)
    limits = {"learning_days": 8, "health_hours": 25, "outbox_minutes": 60}
    plant(home, "old", as_of=now - 20 * DAY)
    lines = find_silent_work(home, now, **limits)
    assert [line.split(":")[0] for line in lines] == ["learning", "health"]
    run_health(instance)
    lines = find_silent_work(home, now + timedelta(hours=2), **limits)
    assert [line.split(":")[0] for line in lines] == ["learning", "alerts"]
    plant(home, "new", as_of=now)
    assert find_silent_work(home, now, **limits) == []
    assert len(find_late_daemons(instance, now, 5)) == 3


def fail_run(instance, tags=None):
    job = defs.resolve_job_def("check_pattern_health")
    run = instance.create_run_for_job(job, status=DagsterRunStatus.STARTED, tags=tags or {})
    instance.report_run_failed(run, "killed")
    return run.run_id


def test_a_failure_during_a_long_outage_is_told(home, instance, resources):
    fail_run(instance)
    later = datetime.now(UTC) + 3 * DAY
    looked = (datetime.now(UTC) - DAY).isoformat()
    assert [*list_failed_runs(instance, later, later)] == []
    cursor = json.dumps({"looked_at": looked, "told": []})
    _, cursor = evaluate(sensors.run_failures, instance, resources, cursor)
    assert queued(home) == [("notice", None, False)]
    assert json.loads(cursor)["told"]


def test_a_promised_retry_that_never_comes_is_told(instance):
    now = datetime.now(UTC)
    forgotten = fail_run(instance)
    retried = fail_run(instance)
    instance.add_run_tags(forgotten, {"dagster/will_retry": "true"})
    instance.add_run_tags(retried, {"dagster/will_retry": "true", "dagster/auto_retry_run_id": "x"})

    def told(minutes):
        later = now + timedelta(minutes=minutes)
        return [run.run_id for run in list_failed_runs(instance, now, later)]

    assert told(1) == []
    assert told(11) == [forgotten]


def test_a_run_whose_process_vanished_is_failed_at_the_second_look(instance, resources):
    job = defs.resolve_job_def("check_pattern_health")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        worker = describe_process(process.pid)
        run = instance.create_run_for_job(
            job, status=DagsterRunStatus.STARTED, tags={WORKER_TAG: worker}
        )
        elsewhere = instance.create_run_for_job(
            job, status=DagsterRunStatus.STARTED, tags={WORKER_TAG: f"else{worker}"}
        )
        cursor = None

        def look():
            nonlocal cursor
            _, cursor = evaluate(sensors.lost_runs, instance, resources, cursor)
            return instance.get_run_by_id(run.run_id).status

        assert [look(), look()] == [DagsterRunStatus.STARTED] * 2
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not collected
        assert [look(), look()] == [DagsterRunStatus.STARTED, DagsterRunStatus.FAILURE]
    look()
    assert instance.get_run_by_id(elsewhere.run_id).status == DagsterRunStatus.STARTED
