"""A deployment of real processes under a controlled clock: webserver, daemon and code server.

Each service is a process group of its own, as a container would be, and all groups are ended with
the deployment, whatever happened to them in between.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg
import yaml
from sqlalchemy import make_url

from conversion_assets.orchestration.instance import dagster_environment
from conversion_assets.settings import Settings
from conversion_assets_tests.homes import VARIABLES

ROOT = Path(__file__).parents[3]
CLOCK_FOLDER = Path(__file__).parent / "clock"
PATIENCE_S = 180.0
"""Longest wait for anything; on a quiet machine nothing takes a tenth of it."""
LOCATION = "conversion_assets"
UNFINISHED = {"QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"}


def wait_for(what, look: Callable, patience_s: float = PATIENCE_S):
    """Return the first true answer; fail when none came in time."""
    deadline = time.monotonic() + patience_s
    answer = None
    while time.monotonic() < deadline:
        answer = look()
        if answer:
            return answer
        time.sleep(0.1)
    raise AssertionError(f"waited {patience_s:.0f} s in vain for {what}: {answer!r}")


def next_sunday() -> datetime:
    """The midnight a week or more ahead with which a Sunday begins; clocks only move ahead."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today + timedelta(days=7 + (6 - today.weekday()) % 7)


def choose_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class ControlledClock:
    """The time of all processes: the machine's, and so many seconds ahead.

    It only moves ahead: gRPC measures its deadlines by the machine's clock, and one that lies
    behind it would have passed before the request was sent.
    """

    def __init__(self, file: Path, start: datetime) -> None:
        self.file = file
        self._databases: list[str] = []
        self._set(start - datetime.now(UTC))

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def move_to(self, moment: datetime) -> None:
        self.advance((moment - self.now()).total_seconds())

    def advance(self, seconds: float) -> None:
        assert seconds >= 0
        self._set(self.ahead + timedelta(seconds=seconds))
        time.sleep(0.2)  # every process looks at the file twenty times a second

    def _set(self, ahead: timedelta) -> None:
        assert ahead >= timedelta()
        self.ahead = ahead
        temporary = self.file.with_suffix(".new")
        temporary.write_text(str(ahead.total_seconds()))
        temporary.replace(self.file)
        for url in self._databases:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("UPDATE controlled_clock SET ahead = %s", [ahead])

    def take_over(self, url: str) -> None:
        """Let a PostgreSQL database's column defaults tell this time, too."""
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE controlled_clock (ahead interval)")
            connection.execute("INSERT INTO controlled_clock VALUES (%s)", [self.ahead])
            connection.execute(
                "CREATE FUNCTION controlled_now() RETURNS timestamp LANGUAGE sql AS "
                "$$SELECT (now() AT TIME ZONE 'UTC') + ahead FROM public.controlled_clock$$"
            )
            columns = connection.execute(
                "SELECT table_name, column_name FROM information_schema.columns "
                "WHERE table_schema = 'public' AND column_default = 'CURRENT_TIMESTAMP'"
            ).fetchall()
            assert ("runs", "create_timestamp") in columns
            for table, column in columns:
                connection.execute(
                    f'ALTER TABLE "{table}" ALTER "{column}" SET DEFAULT controlled_now()'
                )
        self._databases.append(url)


class Deployment:
    """The processes of an installation and its environment."""

    def __init__(
        self,
        home: Path,
        clock: ControlledClock,
        *,
        slack_url: str,
        database_url: str | None = None,
        dagster_url: str | None = None,
    ) -> None:
        self.home = home
        self.clock = clock
        self.ports = {"code": choose_port(), "webserver": choose_port()}
        self.url = f"http://127.0.0.1:{self.ports['webserver']}"
        self.database_url = database_url or f"sqlite:///{home}/conversion.db"
        self._dagster_url = dagster_url
        self.environment = self._make_environment(slack_url, database_url, dagster_url)
        self.processes: dict[str, subprocess.Popen] = {}
        self._groups: list[int] = []

    def _make_environment(self, slack_url, database_url, dagster_url):
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in VARIABLES and not name.startswith(("CONVERSION_", "DAGSTER_"))
        }
        databases = {}
        if database_url is not None:
            databases = {
                "CONVERSION_DATABASE_URL": database_url,
                **describe_dagster_database(dagster_url),
            }
        return {
            **kept,
            **dagster_environment(Settings(CONVERSION_HOME=self.home)),
            **databases,
            "SLACK_WEBHOOK_URL": slack_url,
            "CONVERSION_UI_URL": self.url,
            "CONTROLLED_CLOCK": str(self.clock.file),
            "CONTROLLED_CLOCK_OWNER": str(os.getpid()),
            "PYTHONPATH": str(CLOCK_FOLDER),
            "PYTHONWARNINGS": "ignore",
            "NO_PROXY": "127.0.0.1",
        }

    def prepare(self) -> None:
        """Write what the processes read, and let Dagster make its tables."""
        folder = self.home / "dagster"
        folder.mkdir(parents=True, exist_ok=True)
        if self._dagster_url is not None:
            (folder / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
        where = {"host": "127.0.0.1", "port": self.ports["code"], "location_name": LOCATION}
        (self.home / "workspace.yaml").write_text(
            yaml.safe_dump({"load_from": [{"grpc_server": where}]})
        )
        self.run_command("list")
        if self._dagster_url is not None:
            self.clock.take_over(self._dagster_url)

    def run_command(self, *arguments: str, status: int = 0) -> str:
        """Run a command of ours in this environment, and return what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "conversion_assets.cli", *arguments],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == status, done.stderr + done.stdout
        return done.stdout

    def start(self, *names: str) -> None:
        """Start services and wait until they answer."""
        for name in names:
            self._start(name)
        for name in names:
            self._wait_until_ready(name)

    def _start(self, name: str) -> None:
        workspace = ("-w", str(self.home / "workspace.yaml"))
        place = ("-h", "127.0.0.1", "-p")
        command = {
            "code": [
                *("-m", "dagster", "code-server", "start", "-m", "conversion_assets.definitions"),
                *(*place, str(self.ports["code"])),
            ],
            "webserver": [
                *("-m", "dagster_webserver", *place, str(self.ports.get("webserver"))),
                *workspace,
            ],
            "daemon": ["-m", "dagster._daemon", "run", *workspace],
        }[name]
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                env=self.environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name] = process
        self._groups.append(process.pid)

    def _wait_until_ready(self, name: str) -> None:
        process = self.processes[name]

        def is_ready() -> bool:
            assert process.poll() is None, self.read_log(name)
            if name == "code":
                return answers(self.ports["code"])
            if name == "webserver":
                return answers(self.ports["webserver"]) and self.has_loaded()
            return True

        wait_for(f"the start of {name}", is_ready)

    def wait_until_scheduled(self) -> None:
        """Wait until the daemon has taken note of the schedules: it makes up for what it misses."""
        query = """{ schedulesOrError(repositorySelector: {repositoryName: "__repository__",
            repositoryLocationName: "conversion_assets"}) { ... on Schedules { results {
            scheduleState { typeSpecificData { ... on ScheduleData { startTimestamp } } } } } } }"""

        def is_noted() -> bool:
            shown = self.ask(query)["schedulesOrError"]["results"]
            states = [one["scheduleState"]["typeSpecificData"] for one in shown]
            return bool(states) and all(state["startTimestamp"] for state in states)

        wait_for("the daemon to note its schedules", is_noted)

    def has_loaded(self) -> bool:
        """Whether the webserver has loaded the code location."""
        query = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"
        return bool(self.ask(query)["repositoriesOrError"].get("nodes"))

    def read_log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text(errors="replace")[-4000:]

    def kill(self, name: str) -> None:
        """End a service and everything it started at once, as when its container is killed."""
        process = self.processes.pop(name)
        signal_group(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)

    def kill_worker(self, pid: int) -> None:
        """End the process of a run at once."""
        os.kill(pid, signal.SIGKILL)

    def restart_ended(self) -> None:
        """Start what has ended by itself again, as a container's restart policy does."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        self.start(*ended)

    def stop(self) -> None:
        """End everything."""
        for group in self._groups:
            signal_group(group, signal.SIGKILL)
        for process in self.processes.values():
            process.wait(PATIENCE_S)

    def find_workers(self) -> list[int]:
        """Processes of runs: children of the code server that spawned them."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                command = (entry / "cmdline").read_text().split("\0")
                group = os.getpgid(int(entry.name))
            except OSError:
                continue
            is_spawned = any(part.startswith("from multiprocessing.spawn") for part in command)
            if is_spawned and group == self.processes["code"].pid:
                found.append(int(entry.name))
        return found

    def ask(self, query: str, **variables):
        """Answer of the webserver to a GraphQL query."""
        request = Request(
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urlopen(request, timeout=60) as response:
                answer = json.load(response)
        except HTTPError as error:
            raise AssertionError(f"{error}: {error.read(2000)!r}") from error
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def list_runs(self, job: str | None = None) -> list[dict]:
        """Runs, oldest first."""
        query = """query ($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs {
            results { runId status jobName creationTime parentRunId tags { key value } } } } }"""
        given = {"pipelineName": job} if job else {}
        runs = self.ask(query, filter=given)["runsOrError"]["results"]
        for run in runs:
            run["tags"] = {tag["key"]: tag["value"] for tag in run["tags"]}
        return runs[::-1]

    def wait_for_run(self, job: str, after: datetime, status: str | None = None) -> dict:
        """Wait until the newest run of a job since a moment has ended, and return it."""

        def look():
            new = [r for r in self.list_runs(job) if r["creationTime"] >= after.timestamp()]
            return new[-1] if new and new[-1]["status"] not in UNFINISHED else None

        run = wait_for(f"the end of {job}", look)
        assert status is None or run["status"] == status, self.describe_failure(run["runId"])
        return run

    def describe_failure(self, run_id: str) -> str:
        query = """query ($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
            __typename ... on MessageEvent { message } ... on ExecutionStepFailureEvent {
            error { message cause { message } } } } } } }"""
        events = self.ask(query, id=run_id)["logsForRun"]["events"]
        return json.dumps(events[-12:], indent=1)

    def launch(self, job: str, *, tags=None, config=None) -> str:
        """Launch a run through the webserver, as its pages do; returns its id."""
        query = """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
            __typename ... on LaunchRunSuccess { run { runId } }
            ... on PythonError { message } ... on RunConfigValidationInvalid {
            errors { message } } } }"""
        selector = {
            "repositoryName": "__repository__",
            "repositoryLocationName": LOCATION,
            "pipelineName": job,
        }
        given = [{"key": key, "value": value} for key, value in (tags or {}).items()]
        params = {
            "selector": selector,
            "runConfigData": config or {},
            "executionMetadata": {"tags": given},
        }
        answer = self.ask(query, params=params)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def count_ticks(self, sensor: str) -> int:
        """How often a sensor has looked."""
        query = """query ($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {
            ... on Sensor { sensorState { ticks(limit: 1000) { id status } } } } }"""
        selector = {
            "repositoryName": "__repository__",
            "repositoryLocationName": LOCATION,
            "sensorName": sensor,
        }
        ticks = self.ask(query, selector=selector)["sensorOrError"]["sensorState"]["ticks"]
        return sum(tick["status"] != "STARTED" for tick in ticks)

    def list_checks(self, asset: str) -> dict[str, dict]:
        """Latest evaluation of each check of an asset, by the check's name."""
        query = """query ($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
            ... on AssetNode { assetChecksOrError { ... on AssetChecks { checks { name
            executionForLatestMaterialization { status evaluation { success severity description
            timestamp } } } } } } } }"""
        node = self.ask(query, key={"path": [asset]})["assetNodeOrError"]
        return {
            check["name"]: check["executionForLatestMaterialization"]
            for check in node["assetChecksOrError"]["checks"]
        }


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def signal_group(group: int, number: int) -> None:
    """Signal a process group of ours; nothing happens when it is gone."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def describe_dagster_database(url: str) -> dict[str, str]:
    """The variables of dagster.yaml."""
    parsed = make_url(url)
    return {
        "DAGSTER_PG_USER": str(parsed.username),
        "DAGSTER_PG_PASSWORD": str(parsed.password),
        "DAGSTER_PG_HOST": str(parsed.host),
        "DAGSTER_PG_PORT": str(parsed.port),
        "DAGSTER_PG_DB": str(parsed.database),
    }


@contextmanager
def deployed(deployment: Deployment):
    """The deployment with all services running; they are ended afterwards."""
    try:
        deployment.prepare()
        # A daemon that finds no code at its first look looks again when the next minute begins.
        deployment.start("code")
        deployment.start("webserver", "daemon")
        yield deployment
    finally:
        deployment.stop()
