"""Processes killed in mid-run, and brought back: the work goes on, nothing is stored or told twice.

One deployment on a PostgreSQL of its own goes through all of it, one after the other: `make soak`.
Every run of the tests kills the worker.
"""

import time
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select

from conversion_assets.storage import tables
from conversion_assets.storage.database import create_database_engine
from conversion_assets_tests.databases import PostgresDatabases, PostgresServer
from conversion_assets_tests.integration.deployment.faults import CLIENTS, STALE, import_agency
from conversion_assets_tests.integration.deployment.holding import closed_gate, install_gate
from conversion_assets_tests.integration.deployment.services import (
    UNFINISHED,
    ControlledClock,
    Deployment,
    deployed,
    next_sunday,
    wait_for,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LOOK_S = 61
"""A little more than the pause between two ticks of the slowest sensor that takes part."""


@pytest.fixture
def server():
    server = PostgresServer(survives_kills=True)
    yield server
    server.stop()


@pytest.fixture
def deployment(server, slack, tmp_path):
    sunday = next_sunday()
    clock = ControlledClock(tmp_path / "clock", sunday)
    databases = PostgresDatabases.create(server.url)
    with databases.fresh() as own, databases.fresh(migrated=False) as dagster:
        deployment = Deployment(
            tmp_path, clock, slack_url=slack.url, database_url=own, dagster_url=dagster
        )
        engine = create_database_engine(own)
        import_agency(engine, tmp_path, sunday)
        install_gate(engine)
        engine.dispose()
        with deployed(deployment):
            yield deployment


def test_a_killed_worker_is_replaced(deployment, server, slack):
    story = Story(deployment, server, slack)
    story.kill_the_worker()
    assert slack.messages == []
    story.engine.dispose()


@pytest.mark.soak
def test_whatever_is_killed_the_work_goes_on(deployment, server, slack):
    story = Story(deployment, server, slack)
    story.kill_the_worker()
    story.kill_the_daemon()
    story.kill_the_code_server()
    assert slack.messages == []  # whatever was started again needs nobody
    story.fail_a_run_while_the_daemon_is_away()
    story.kill_the_database()
    story.check_health()
    story.engine.dispose()


class Story:
    """What happens to one deployment."""

    def __init__(self, deployment, server, slack) -> None:
        self.deployment = deployment
        self.clock = deployment.clock
        self.server = server
        self.slack = slack
        self.sunday = next_sunday()
        self.engine = create_database_engine(deployment.database_url)

    def kill_the_worker(self) -> None:
        """The first learning, which the sensor of changed clients asks for."""
        with closed_gate(self.deployment.database_url) as gate:
            self.deployment.wait_until_scheduled()
            gate.wait_until_reached()
            self.kill_workers()
        self.expect_success(since=self.sunday, before={}, runs=2)

    def kill_the_daemon(self) -> None:
        """The weekly learning goes on without the daemon, which comes back and finds it done."""
        due = self.sunday + timedelta(hours=2)
        before = self.count_versions()
        self.deployment.kill("daemon")
        with closed_gate(self.deployment.database_url) as gate:
            self.clock.move_to(due - timedelta(seconds=10))
            self.deployment.start("daemon")
            gate.wait_until_reached()
            self.deployment.kill("daemon")
        self.expect_success(since=due, before=before, runs=1)
        self.deployment.start("daemon")

    def kill_the_code_server(self) -> None:
        """With it goes the run's process, and whoever would have noticed."""
        since, before = self.clock.now(), self.count_versions()
        with closed_gate(self.deployment.database_url) as gate:
            self.launch_learning()
            gate.wait_until_reached()
            self.deployment.kill("code")
        self.deployment.start("code")
        self.expect_success(since=since, before=before, runs=2)

    def kill_the_database(self) -> None:
        """Both of them: the system of record and Dagster's own, while a run is at work."""
        since, before = self.clock.now(), self.count_versions()
        with closed_gate(self.deployment.database_url) as gate:
            self.launch_learning()
            gate.wait_until_reached()
            (worker,) = self.deployment.find_workers()
            self.server.crash()
        wait_for("the run's process to give up", lambda: not self.is_at_work(worker))
        time.sleep(10)  # longer than the code server's watch over its processes asks again
        self.server.start_again()
        self.deployment.restart_ended()
        self.expect_success(since=since, before=before, runs=2)

    def fail_a_run_while_the_daemon_is_away(self) -> None:
        """For longer than anybody looks back; it is told all the same, once."""
        with closed_gate(self.deployment.database_url) as gate:
            run_id = self.launch_learning({"dagster/max_retries": "0"})
            gate.wait_until_reached()
            self.deployment.kill("daemon")
            self.kill_workers()
        wait_for("the failure", lambda: self.find_run(run_id)["status"] == "FAILURE")
        self.clock.advance(2.5 * 3600)
        self.deployment.start("daemon")
        self.receive("run of learn_patterns failed")
        assert run_id in str(self.slack.messages[0])

    def check_health(self) -> None:
        """The next tick finds what is stored once, and the one thing that is wrong."""
        due = self.sunday + timedelta(hours=6)
        self.deployment.kill("daemon")
        self.clock.move_to(due - timedelta(seconds=10))
        self.deployment.start("daemon")
        self.deployment.wait_for_run("check_pattern_health", due, "SUCCESS")
        self.receive(f"{STALE}: 1 finding open")
        self.advance_looks(3)
        assert self.slack.titles() == [
            "run of learn_patterns failed",
            f"{STALE}: 1 finding open",
        ]

    def launch_learning(self, tags=None) -> str:
        """Ask for a run over all clients, as a person does in the UI."""
        ranges = {
            "dagster/asset_partition_range_start": CLIENTS[0],
            "dagster/asset_partition_range_end": CLIENTS[-1],
        }
        return self.deployment.launch("learn_patterns", tags={**ranges, **(tags or {})})

    def kill_workers(self) -> None:
        workers = self.deployment.find_workers()
        assert len(workers) == 1
        self.deployment.kill_worker(workers[0])

    def is_at_work(self, worker: int) -> bool:
        return worker in self.deployment.find_workers()

    def find_run(self, run_id: str) -> dict:
        return next(run for run in self.deployment.list_runs() if run["runId"] == run_id)

    def expect_success(self, since: datetime, before: dict, runs: int) -> None:
        """So many runs since then, the last of which succeeded; one version more is stored."""

        def look():
            self.deployment.restart_ended()
            new = self.list_learning(since)
            statuses = {run["status"] for run in new}
            if new and not statuses & UNFINISHED and new[-1]["status"] == "SUCCESS":
                return new
            # One that is about to start has only so many minutes for it.
            if not statuses & {"QUEUED", "NOT_STARTED", "STARTING"}:
                self.pass_time()
            return None

        new = wait_for("a run that succeeds", look)
        assert [run["status"] for run in new] == ["FAILURE"] * (runs - 1) + ["SUCCESS"]
        after = self.count_versions()
        assert after == {key: before.get(key, 0) + 1 for key in after}
        assert len(after) == 4 * len(CLIENTS)

    def list_learning(self, since: datetime) -> list[dict]:
        """Runs that learn, oldest first; none while the webserver finds back to its database."""
        try:
            runs = self.deployment.list_runs("learn_patterns")
        except AssertionError:
            return []
        return [run for run in runs if run["creationTime"] >= since.timestamp()]

    def pass_time(self) -> None:
        """Sensors look once a minute; ten times as fast leaves everybody time to work."""
        time.sleep(1)
        self.clock.advance(10)

    def count_versions(self) -> dict[tuple[str, str], int]:
        """Rows of history by client and pattern."""
        history = tables.conversion_pattern_history
        key = (history.c.client_id, history.c.pattern_type)
        with self.engine.connect() as connection:
            rows = connection.execute(select(*key, func.count()).group_by(*key)).all()
        return {(row[0], row[1]): row[2] for row in rows}

    def receive(self, title: str) -> None:
        """Wait for a message, which must be the next one."""
        before = len(self.slack.messages)

        def look():
            self.pass_time()
            return len(self.slack.messages) > before

        wait_for(title, look)
        assert self.slack.titles()[before:] == [title]

    def advance_looks(self, count: int) -> None:
        """Let every sensor look some times more."""
        for _ in range(count):
            before = self.deployment.count_ticks("run_failures")
            self.clock.advance(LOOK_S)
            wait_for(
                "another look",
                lambda before=before: self.deployment.count_ticks("run_failures") > before,
            )
