"""Dagster with many client partitions and years of history, on PostgreSQL.

Two real runs are made through the jobs on a small fleet (a week's learning and a health check).
Their rows are then copied inside PostgreSQL, one learning run a week and one check a day: every
client partition gets the materializations of a real client with their tags, under other run ids,
partitions and times. What is read back is therefore as large as a real history and has its shape;
only the patterns' figures repeat.

Measured before and after pruning: ticks of the schedules and sensors, and over HTTP from a real
webserver what the pages of the UI ask for. Each question is asked once cold and three times warm.

Run: python -m benchmarks.dagster_at_size [--clients 10000] [--weeks 100] [--out FILE]
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.dagster_overhead import AS_OF, fill
from benchmarks.processes import TreeWatch

if TYPE_CHECKING:
    import psycopg
    from dagster import DagsterInstance

REAL_CLIENTS = 20
LEADS = 200
KEEP_DAYS = 90
"""The default of CONVERSION_RUN_HISTORY_DAYS."""
WARM = 3
START_TIMEOUT_S = 300.0

_ASSET = '{path: ["who_patterns"]}'
_RUN_FIELDS = "id runId status jobName tags {key value} assetSelection {path} startTime endTime"
# What the pages of the installed UI ask for, reduced to the fields that read the event log.
QUESTIONS: dict[str, str] = {
    "asset graph": """{assetNodes(loadMaterializations: true) {assetKey {path} staleStatus
        assetMaterializations(limit: 1) {timestamp runId}
        partitionStats {numMaterialized numMaterializing numPartitions numFailed}
        assetChecksOrError {... on AssetChecks {checks {name
            executionForLatestMaterialization {status timestamp runId}}}}}}""",
    "asset overview": f"""{{assetOrError(assetKey: {_ASSET}) {{... on Asset {{
        assetMaterializations(limit: 1) {{timestamp runId partition metadataEntries {{label}}
            tags {{key value}}}}
        definition {{partitionStats {{numMaterialized numPartitions numFailed}}}}}}}}}}""",
    "partitions page": f"""{{assetNodeOrError(assetKey: {_ASSET}) {{... on AssetNode {{
        partitionKeysByDimension {{name partitionKeys}}
        assetPartitionStatuses {{... on DefaultPartitionStatuses {{
            materializedPartitions materializingPartitions failedPartitions
            unmaterializedPartitions}}}}}}}}}}""",
    "one partition": f"""{{assetNodeOrError(assetKey: {_ASSET}) {{... on AssetNode {{
        staleStatus(partition: "client-00007")
        assetMaterializations(partitions: ["client-00007"], limit: 100) {{
            timestamp runId partition metadataEntries {{label}}}}}}}}}}""",
    "events of an asset": f"""{{assetOrError(assetKey: {_ASSET}) {{... on Asset {{
        assetMaterializations(limit: 100) {{timestamp runId partition
            metadataEntries {{label}}}}}}}}}}""",
    "list of runs": f"{{runsOrError(limit: 30) {{... on Runs {{results {{{_RUN_FIELDS}}}}}}}}}",
    "list of learning runs": '{runsOrError(filter: {pipelineName: "learn_patterns"}, limit: 30) '
    f"{{... on Runs {{results {{{_RUN_FIELDS}}}}}}}}}",
    "log of a run": '{logsForRun(runId: "RUN", limit: 1000) {... on EventConnection '
    "{cursor hasMore events {... on MessageEvent {message timestamp}}}}}",
    "checks page": f"""{{assetNodeOrError(assetKey: {_ASSET}) {{... on AssetNode {{
        assetChecksOrError {{... on AssetChecks {{checks {{name description
            executionForLatestMaterialization {{status timestamp runId
                evaluation {{severity metadataEntries {{label}}}}}}}}}}}}}}}}}}""",
    "history of a check": f"""{{assetCheckExecutions(assetKey: {_ASSET},
        checkName: "patterns_have_not_expired", limit: 25) {{id status runId timestamp
        evaluation {{severity metadataEntries {{label}}}}}}}}""",
    "schedules and sensors": """{repositoriesOrError {... on RepositoryConnection {nodes {
        schedules {name scheduleState {status ticks(limit: 1) {status timestamp}
            runs(limit: 1) {id}}}
        sensors {name sensorState {status ticks(limit: 1) {status timestamp}}}}}}}""",
}

LOADED = "{repositoriesOrError {... on RepositoryConnection {nodes {name}}}}"


def run(
    clients: int = 10_000, weeks: int = 100, *, real: int = REAL_CLIENTS, leads: int = LEADS
) -> dict[str, Any]:
    """Build the instance and measure it, before and after pruning.

    Returns:
        clients, weeks, seconds to build; `before` and `after`: rows and MB of Dagster's tables,
        seconds of each tick and of each question (cold and median warm) and the answer's KB;
        `prune`: seconds and what went.
    """
    from benchmarks.health_speed import write_instance  # noqa: PLC0415
    from conversion_assets_tests.databases import (  # noqa: PLC0415
        PostgresDatabases,
        running_postgres,
    )

    with running_postgres() as server, tempfile.TemporaryDirectory() as folder:
        databases = PostgresDatabases.create(server)
        home = Path(folder)
        with databases.fresh() as url, databases.fresh(migrated=False) as own:
            os.environ.update(CONVERSION_HOME=str(home), CONVERSION_DATABASE_URL=url)
            write_instance(home / "dagster", own, is_stock=False)
            fill(url, real, leads)
            started = time.perf_counter()
            run_id = build(own, url, clients, weeks)
            built = time.perf_counter() - started
            _say(f"built {clients:,} clients and {weeks} weeks in {built:,.0f} s")
            before = _measure(own, run_id)
            gone = _prune()
            _say(f"pruned in {gone['seconds']:,.0f} s")
            return {
                "clients": clients,
                "weeks": weeks,
                "build_s": round(built, 1),
                "before": before,
                "prune": gone,
                "after": _measure(own, run_id),
            }


@contextmanager
def _instance() -> "Iterator[DagsterInstance]":
    from conversion_assets.orchestration.instance import open_instance  # noqa: PLC0415
    from conversion_assets.settings import load_settings  # noqa: PLC0415

    with open_instance(load_settings()) as instance:
        yield instance


def build(dagster_url: str, url: str, clients: int, weeks: int) -> str:
    """Make the real runs and their copies; returns the id of the newest learning run."""
    import psycopg  # noqa: PLC0415

    names = [f"client-{number:05d}" for number in range(clients)]
    with _instance() as instance:
        learned, checked = _run_really(instance)
        instance.add_dynamic_partitions("clients", names)
    _add_clients(url, names)
    with psycopg.connect(dagster_url, autocommit=True) as connection:
        connection.execute("SET TIME ZONE 'UTC'")
        _prepare_templates(connection, learned, checked)
        for week in range(weeks, 0, -1):
            made = datetime.now(UTC) - timedelta(weeks=week, hours=-1)
            newest = _copy_run(connection, "learn", made)
            _copy_materializations(connection, newest, made, clients)
            for day in range(7):
                _copy_checks(connection, made + timedelta(days=day, hours=4))
            if week % 10 == 0:
                _say(f"{week} weeks to copy")
        connection.execute("VACUUM ANALYZE")
    return newest


def _run_really(instance: "DagsterInstance") -> tuple[str, str]:
    from conversion_assets.cli.launching import execute_job, explain_failure  # noqa: PLC0415
    from conversion_assets.orchestration.launches import request_learning  # noqa: PLC0415
    from conversion_assets.resources.database import DatabaseResource  # noqa: PLC0415
    from conversion_assets.resources.settings import SettingsResource  # noqa: PLC0415

    active = DatabaseResource(settings=SettingsResource()).list_active_clients()
    request = request_learning(instance, active, "real")
    config = request.run_config["ops"]["patterns"]["config"] | {"as_of": AS_OF.isoformat()}
    learned, _ = execute_job(instance, "learn_patterns", request.tags or {}, {"patterns": config})
    checked, _ = execute_job(instance, "check_pattern_health", {}, {})
    for result in (learned, checked):
        if not result.success:
            raise RuntimeError(explain_failure(result))
    return learned.run_id, checked.run_id


def _add_clients(url: str, names: list[str]) -> None:
    """Clients that are active: each has a lead that converted; nothing is learned of them."""
    import psycopg  # noqa: PLC0415

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO clients (id, created_at) SELECT unnest(%s::text[]), now()", (names,)
        )
        connection.execute(
            "INSERT INTO leads (id, client_id, status, created_at, converted_at)"
            " SELECT 'l-' || c, c, 'converted', now(), now() FROM unnest(%s::text[]) c",
            (names,),
        )


def _prepare_templates(connection: "psycopg.Connection", learned: str, checked: str) -> None:
    """Keep the rows of the two real runs in tables to copy from."""
    for name, run_id in (("learn", learned), ("check", checked)):
        for table in ("runs", "run_tags", "asset_check_executions"):
            connection.execute(
                f"CREATE TABLE template_{name}_{table} AS SELECT * FROM {table} WHERE run_id = %s",
                (run_id,),
            )
        connection.execute(
            f"CREATE TABLE template_{name}_event_logs AS SELECT * FROM event_logs"
            " WHERE run_id = %s AND partition IS NULL",
            (run_id,),
        )
    connection.execute(
        "CREATE TABLE template_materializations AS SELECT *,"
        " row_number() OVER (PARTITION BY asset_key ORDER BY id) - 1 AS place,"
        " count(*) OVER (PARTITION BY asset_key) AS places"
        " FROM event_logs WHERE run_id = %s AND partition IS NOT NULL",
        (learned,),
    )
    connection.execute(
        "CREATE TABLE template_tags AS SELECT t.* FROM asset_event_tags t"
        " JOIN template_materializations m ON m.id = t.event_id"
    )
    connection.execute(
        "CREATE TABLE keys AS SELECT partition, row_number() OVER (ORDER BY id) - 1 AS place"
        " FROM dynamic_partitions WHERE partition ~ '^client-[0-9]{5}$'"
    )


def _copy_run(connection: "psycopg.Connection", name: str, made: datetime) -> str:
    """Copy a run with its tags, its log, and the check evaluations."""
    old, new = connection.execute(
        f"SELECT run_id, gen_random_uuid()::text FROM template_{name}_runs"
    ).fetchone() or ("", "")
    _copy_rows(connection, name, "runs", {
        "run_id": "%(new)s::text", "run_body": "replace(run_body, %(old)s::text, %(new)s::text)",
        "create_timestamp": "%(made)s::timestamp", "update_timestamp": "%(made)s::timestamp",
        "start_time": "%(seconds)s::float", "end_time": "%(seconds)s::float + 600",
    }, old=old, new=new, made=made)  # fmt: skip
    _copy_rows(
        connection, name, "run_tags", {"run_id": "%(new)s::text"}, old=old, new=new, made=made
    )
    _copy_rows(connection, name, "event_logs", {
        "run_id": "%(new)s::text", "event": "replace(event, %(old)s::text, %(new)s::text)",
        "timestamp": "%(made)s::timestamp + (id * interval '1 microsecond')",
    }, old=old, new=new, made=made)  # fmt: skip
    return str(new)


def _copy_checks(connection: "psycopg.Connection", made: datetime) -> None:
    new = _copy_run(connection, "check", made)
    _copy_rows(connection, "check", "asset_check_executions", {
        "run_id": "%(new)s::text", "create_timestamp": "%(made)s::timestamp",
        "evaluation_event_timestamp": "%(made)s::timestamp",
    }, old="", new=new, made=made)  # fmt: skip


def _copy_rows(
    connection: "psycopg.Connection",
    name: str,
    table: str,
    changed: Mapping[str, str],
    *,
    old: str,
    new: str,
    made: datetime,
) -> None:
    columns = [
        row[0]
        for row in connection.execute(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_name = %s AND column_name <> 'id'",
            (table,),
        )
    ]
    values = ", ".join(changed.get(column, f'"{column}"') for column in columns)
    listed = ", ".join(f'"{column}"' for column in columns)
    connection.execute(
        f"INSERT INTO {table} ({listed}) SELECT {values} FROM template_{name}_{table} ORDER BY id",
        {"old": old, "new": new, "made": made.replace(tzinfo=None), "seconds": made.timestamp()},
    )


def _copy_materializations(
    connection: "psycopg.Connection", run_id: str, made: datetime, clients: int
) -> None:
    """Every client gets the events of a real one, asset by asset, and their tags."""
    found = connection.execute(
        "SELECT coalesce(max(id), 0), (SELECT count(DISTINCT asset_key)"
        " FROM template_materializations) FROM event_logs"
    ).fetchone()
    base, assets = found or (0, 0)
    values = {"run": run_id, "made": made.replace(tzinfo=None), "base": base, "clients": clients}
    connection.execute(
        "CREATE TEMP TABLE copies AS"
        " SELECT %(base)s::bigint + row_number() OVER (ORDER BY m.asset_key, k.place) AS new_id,"
        " m.id AS old_id, k.partition AS new_partition"
        " FROM keys k JOIN template_materializations m ON m.place = k.place %% m.places",
        values,
    )
    connection.execute(
        "INSERT INTO event_logs (id, run_id, event, dagster_event_type, timestamp, step_key,"
        " asset_key, partition)"
        " SELECT c.new_id, %(run)s::text, replace(replace(m.event, m.run_id, %(run)s::text),"
        " '\"' || m.partition || '\"', '\"' || c.new_partition || '\"'), m.dagster_event_type,"
        " %(made)s::timestamp, m.step_key, m.asset_key, c.new_partition"
        " FROM copies c JOIN template_materializations m ON m.id = c.old_id ORDER BY c.new_id",
        values,
    )
    connection.execute(
        "INSERT INTO asset_event_tags (event_id, asset_key, key, value, event_timestamp)"
        " SELECT c.new_id, t.asset_key, t.key, t.value, %(made)s::timestamp"
        " FROM copies c JOIN template_tags t ON t.event_id = c.old_id ORDER BY c.new_id",
        values,
    )
    connection.execute("DROP TABLE copies")
    connection.execute("SELECT setval('event_logs_id_seq', (SELECT max(id) FROM event_logs))")
    if assets == 0:
        raise RuntimeError("the real run materialized nothing")


def _measure(dagster_url: str, run_id: str) -> dict[str, Any]:
    sizes = _sizes(dagster_url)
    ticks = _measure_ticks()
    with _webserver() as ask:
        pages = {name: _ask(ask, query.replace("RUN", run_id)) for name, query in QUESTIONS.items()}
        memory = round(ask.watch.peak_mb)
    for name, page in pages.items():
        _say(f"  {name}: {page['cold_s']:.2f} s cold, {page['warm_s']:.2f} s warm")
    return {"sizes": sizes, "ticks": ticks, "pages": pages, "webserver_peak_mb": memory}


def _sizes(dagster_url: str) -> dict[str, Any]:
    import psycopg  # noqa: PLC0415

    tables = ("event_logs", "asset_event_tags", "asset_check_executions", "runs")
    with psycopg.connect(dagster_url, autocommit=True) as connection:
        found: dict[str, Any] = {}
        for table in tables:
            row = connection.execute(
                f"SELECT count(*), pg_total_relation_size('{table}') FROM {table}"
            ).fetchone() or (0, 0)
            found[table] = {"rows": row[0], "mb": round(row[1] / 2**20)}
    return found


def _measure_ticks() -> dict[str, float]:
    """Seconds of each schedule's and sensor's evaluation, the second one of two."""
    from conversion_assets.resources.alerts import AlertsResource  # noqa: PLC0415
    from conversion_assets.resources.database import DatabaseResource  # noqa: PLC0415
    from conversion_assets.resources.settings import SettingsResource  # noqa: PLC0415
    from conversion_assets.schedules import SCHEDULES  # noqa: PLC0415
    from conversion_assets.sensors import SENSORS  # noqa: PLC0415

    settings = SettingsResource()
    resources = {
        "database": DatabaseResource(settings=settings),
        "alerts": AlertsResource(settings=settings),
    }
    seconds: dict[str, float] = {}
    with _instance() as instance:
        for one in (*SCHEDULES, *SENSORS):
            used = {name: resources[name] for name in one.required_resource_keys}
            seconds[one.name] = _time(partial(_evaluate, one, instance, used))
    for name, value in seconds.items():
        _say(f"  tick of {name}: {value:.2f} s")
    return seconds


def _evaluate(one: Any, instance: "DagsterInstance", resources: Mapping[str, Any]) -> None:
    from dagster import (  # noqa: PLC0415
        ScheduleDefinition,
        build_schedule_context,
        build_sensor_context,
    )

    if isinstance(one, ScheduleDefinition):
        with build_schedule_context(
            instance=instance, resources=resources, scheduled_execution_time=datetime.now(UTC)
        ) as context:
            one(context)
    else:
        with build_sensor_context(instance=instance, resources=resources) as looking:
            one(looking)


def _time(act: Callable[[], object]) -> float:
    act()
    started = time.perf_counter()
    act()
    return round(time.perf_counter() - started, 3)


class _Asker:
    """Asks a webserver and hands back the size of the answer."""

    def __init__(self, port: int, watch: TreeWatch) -> None:
        self._url = f"http://127.0.0.1:{port}/graphql"
        self.watch = watch

    def __call__(self, query: str) -> int:
        request = urllib.request.Request(
            self._url, json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            text = answer.read()
        document = json.loads(text)
        if document.get("errors"):
            raise RuntimeError(f"{document['errors'][0]['message']}: {query}")
        return len(text)


@contextmanager
def _webserver() -> Iterator[_Asker]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dagster_webserver", "-m", "conversion_assets.definitions",
               "-h", "127.0.0.1", "-p", str(port)]  # fmt: skip
    environment = os.environ | {
        "DAGSTER_HOME": str(Path(os.environ["CONVERSION_HOME"]) / "dagster")
    }
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            with TreeWatch(server.pid) as watch:
                asker = _Asker(port, watch)
                _wait_for(asker, server)
                yield asker
        finally:
            server.terminate()
            server.wait(timeout=60)


def _wait_for(asker: _Asker, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            # Without its code location it answers, with nothing in it.
            if asker(LOADED) > len('{"data":{"repositoriesOrError":{"nodes":[]}}}'):
                return
        except OSError:
            pass
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the webserver did not start")
        time.sleep(0.5)


def _ask(asker: _Asker, query: str) -> dict[str, float]:
    seconds = []
    for _ in range(1 + WARM):
        started = time.perf_counter()
        size = asker(query)
        seconds.append(time.perf_counter() - started)
    return {
        "cold_s": round(seconds[0], 3),
        "warm_s": round(statistics.median(seconds[1:]), 3),
        "kb": round(size / 1024, 1),
    }


def _prune() -> dict[str, Any]:
    from dataclasses import asdict  # noqa: PLC0415

    from conversion_assets.orchestration.pruning import prune_history  # noqa: PLC0415

    with _instance() as instance:
        started = time.perf_counter()
        gone = prune_history(instance, datetime.now(UTC) - timedelta(days=KEEP_DAYS))
        return {"seconds": round(time.perf_counter() - started, 1), **asdict(gone)}


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dagster_at_size")
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--weeks", type=int, default=100)
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    text = json.dumps(run(options.clients, options.weeks), indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
