"""What Dagster adds to a week's work: events, checks, planning, its own database.

The same work twice over the same data: the jobs `learn_patterns` (first load of features,
learning, storing) and `check_pattern_health` through Dagster as a deployment runs them, and the
functions that they call, alone. Each turn starts from the same state, a copy of one filled database
and an empty store; each side runs in a process of its own, in turns, and times itself after its
imports.

Run: python -m benchmarks.dagster_overhead [--clients 1000] [--leads 300] [--rounds 3]
How many clients a run should hold: ... --clients 400 --leads 100 --per-run 400 100 20
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.processes import run_measured

AS_OF = datetime(2026, 1, 4, tzinfo=UTC)
SIDES = ("functions", "dagster")


def run(
    clients: int = 1000,
    leads: int = 300,
    rounds: int = 3,
    databases: tuple[str, ...] = ("postgresql", "sqlite"),
) -> dict[str, Any]:
    """Time both sides on both databases.

    Returns:
        clients, leads, and by database: median seconds and peak MB of each side, `adds`: the share
        of the run through Dagster that it adds (median over rounds), documents stored.
    """
    kinds = {"postgresql": _on_postgresql, "sqlite": _on_sqlite}
    return {
        "clients": clients,
        "leads": clients * leads,
        # What it adds on SQLite is stated, not asked for: once is enough.
        **{
            name: kinds[name](clients, leads, rounds if name == "postgresql" else 1)
            for name in databases
        },
    }


def sweep(clients: int, leads: int, sizes: list[int], rounds: int) -> dict[str, Any]:
    """Seconds of learning a fleet on PostgreSQL, by how many clients each run holds.

    Returns:
        By size, largest first: median seconds, and peak MB. Runs follow each other in one process,
        so that what a daemon takes to start a run comes on top of each.
    """
    with _filled_postgresql(clients, leads) as databases:
        found: dict[int, list[dict[str, Any]]] = {size: [] for size in sizes}
        for _ in range(rounds):
            for size in sizes:
                with tempfile.TemporaryDirectory() as folder:
                    found[size].append(
                        _measure_on_postgresql(databases, "dagster", Path(folder), size)
                    )
    return {
        str(size): {
            key: round(statistics.median(row[key] for row in rows), 2)
            for key in ("learn_s", "peak_mb")
        }
        for size, rows in sorted(found.items(), reverse=True)
    }


@contextmanager
def _filled_postgresql(clients: int, leads: int) -> Iterator[Any]:
    from conversion_assets_tests.databases import (  # noqa: PLC0415
        PostgresDatabases,
        running_postgres,
    )

    with running_postgres() as server:
        databases = PostgresDatabases.create(server)
        with databases.fresh() as url:
            fill(url, clients, leads)
            template = url.rpartition("/")[2]
            yield replace(databases, template=template)


def _on_postgresql(clients: int, leads: int, rounds: int) -> dict[str, Any]:
    with _filled_postgresql(clients, leads) as databases:
        return _in_turns(partial(_measure_on_postgresql, databases), rounds)


def _measure_on_postgresql(
    databases: Any, side: str, home: Path, per_run: int | None = None
) -> dict[str, Any]:
    from benchmarks.health_speed import write_instance  # noqa: PLC0415

    with databases.fresh() as url, databases.fresh(migrated=False) as own:
        write_instance(home / "dagster", own, is_stock=False)
        return _measure(side, home, {"CONVERSION_DATABASE_URL": url}, per_run)


def _on_sqlite(clients: int, leads: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        filled = Path(folder) / "filled.db"
        fill(f"sqlite:///{filled}", clients, leads)

        def measure(side: str, home: Path) -> dict[str, Any]:
            shutil.copyfile(filled, home / "conversion.db")
            return _measure(side, home, {})

        return _in_turns(measure, rounds)


def _in_turns(measure: Callable[[str, Path], dict[str, Any]], rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            with tempfile.TemporaryDirectory() as folder:
                found[side].append(measure(side, Path(folder)))
    shares = [
        1 - alone["seconds"] / through["seconds"]
        for alone, through in zip(found["functions"], found["dagster"], strict=True)
    ]
    return {
        "adds": statistics.median(shares),
        "documents": found["dagster"][-1]["documents"],
        **{
            side: {
                key: round(statistics.median(row[key] for row in rows), 2)
                for key in rows[0]
                if key != "documents"
            }
            for side, rows in found.items()
        },
    }


def _measure(
    side: str, home: Path, environment: dict[str, str], per_run: int | None = None
) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.dagster_overhead", "--here", side]
    if per_run is not None:
        command += ["--per-run", str(per_run)]
    done = run_measured(command, {**environment, "CONVERSION_HOME": str(home)})
    found: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    return found | {"peak_mb": done.peak_mb}


def fill(url: str, clients: int, leads: int) -> None:
    """Import a generated agency, whose clients convert often enough to have patterns."""
    from conversion_assets.storage.database import create_database_engine, migrate  # noqa: PLC0415
    from conversion_assets.storage.importer import import_frames  # noqa: PLC0415
    from conversion_assets.synthetic.config import SyntheticConfig  # noqa: PLC0415
    from conversion_assets.synthetic.generator import generate_agency  # noqa: PLC0415

    agency = generate_agency(
        SyntheticConfig(clients=clients, leads=leads, base_conversion=0.2, seed=1, as_of=AS_OF)
    )
    engine = create_database_engine(url)
    migrate(engine)
    with tempfile.TemporaryDirectory() as folder:
        import_frames(
            engine, clients=agency.clients, leads=agency.leads, activities=agency.activities,
            quarantine_dir=Path(folder),
        )  # fmt: skip
    engine.dispose()


def work_through_dagster(per_run: int | None = None) -> dict[str, float]:
    """Both jobs on the home of the environment; seconds in all and of each job.

    Args:
        per_run: Clients that one run learns; all when not given.
    """
    from conversion_assets.settings import load_settings  # noqa: PLC0415

    settings = load_settings()
    from conversion_assets.orchestration.instance import open_instance  # noqa: PLC0415

    with open_instance(settings) as instance:
        from conversion_assets.cli.launching import execute_job  # noqa: PLC0415
        from conversion_assets.orchestration.launches import request_learning  # noqa: PLC0415
        from conversion_assets.resources.database import DatabaseResource  # noqa: PLC0415
        from conversion_assets.resources.settings import SettingsResource  # noqa: PLC0415

        _warm_up()
        started = time.perf_counter()
        active = DatabaseResource(settings=SettingsResource()).list_active_clients()
        size = per_run or max(len(active), 1)
        learn_s, learned = 0.0, True
        for start in range(0, len(active), size):
            request = request_learning(instance, active[start : start + size], "benchmark")
            ops = request.run_config["ops"]["patterns"]["config"] | {"as_of": AS_OF.isoformat()}
            done, took_s = execute_job(
                instance, "learn_patterns", request.tags or {}, {"patterns": ops}
            )
            learn_s, learned = learn_s + took_s, learned and done.success
        checked, check_s = execute_job(instance, "check_pattern_health", {}, {})
        seconds = time.perf_counter() - started
        if not learned or not checked.success:
            raise RuntimeError("a job failed")
    return {"seconds": seconds, "learn_s": learn_s, "check_s": check_s}


def work_alone() -> dict[str, float]:
    """The functions that the jobs call, on the home of the environment."""
    from conversion_assets.refresh.features import refresh_features  # noqa: PLC0415
    from conversion_assets.refresh.health import check_health  # noqa: PLC0415
    from conversion_assets.refresh.patterns import refresh_patterns  # noqa: PLC0415
    from conversion_assets.settings import load_settings  # noqa: PLC0415
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415
    from conversion_assets.storage.database import create_database_engine  # noqa: PLC0415
    from conversion_assets.storage.sources import open_snapshot  # noqa: PLC0415

    settings = load_settings()
    _warm_up()
    started = time.perf_counter()
    engine = create_database_engine(settings.database_url.get_secret_value())
    store = FeatureStore(settings.store_url.get_secret_value())
    with open_snapshot(engine) as snapshot:
        active = snapshot.active_client_ids()
    refresh_features(engine, store)
    refresh_patterns(
        engine, store, client_ids=active, kinds=_kinds(), as_of=AS_OF, run_id="benchmark",
        config=settings.learning, now=partial(datetime.now, UTC),
    )  # fmt: skip
    learned = time.perf_counter()
    check_health(
        engine, now=datetime.now(UTC), config=settings.health, channels=["log"],
        learning=settings.learning,
    )  # fmt: skip
    ended = time.perf_counter()
    return {"seconds": ended - started, "learn_s": learned - started, "check_s": ended - learned}


def _kinds() -> list[Any]:
    from conversion_assets.domain.terms import PatternType  # noqa: PLC0415

    return list(PatternType)


def _warm_up() -> None:
    """Load the code of both sides before the clock starts."""
    from conversion_assets.definitions import defs  # noqa: PLC0415

    for job in ("learn_patterns", "check_pattern_health"):
        defs.resolve_job_def(job)


def _count_documents() -> int:
    from sqlalchemy import func, select  # noqa: PLC0415

    from conversion_assets.settings import load_settings  # noqa: PLC0415
    from conversion_assets.storage import tables  # noqa: PLC0415
    from conversion_assets.storage.database import create_database_engine  # noqa: PLC0415

    engine = create_database_engine(load_settings().database_url.get_secret_value())
    with engine.connect() as connection:
        counted = select(func.count()).select_from(tables.conversion_patterns)
        return int(connection.execute(counted).scalar_one())


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dagster_overhead")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--leads", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--database", choices=("postgresql", "sqlite"), help="this one alone")
    parser.add_argument(
        "--per-run", type=int, nargs="+", metavar="N", help="sweep: clients that a run holds"
    )
    parser.add_argument("--here", choices=SIDES, help="this side alone, on CONVERSION_HOME")
    options = parser.parse_args()
    if min(options.per_run or [1]) < 1:
        parser.error("--per-run: a run holds at least 1 client")
    if options.here:
        os.environ.setdefault("CONVERSION_HOME", ".conversion")
        per_run = options.per_run[0] if options.per_run else None
        work = partial(work_through_dagster, per_run) if options.here == "dagster" else work_alone
        print(json.dumps(work() | {"documents": _count_documents()}))
        return
    if options.per_run:
        found = sweep(options.clients, options.leads, options.per_run, options.rounds)
        print(json.dumps(found, indent=2))
        return
    kinds = (options.database,) if options.database else ("postgresql", "sqlite")
    print(json.dumps(run(options.clients, options.leads, options.rounds, kinds), indent=2))


if __name__ == "__main__":
    main()
