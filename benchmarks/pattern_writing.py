"""How long storing patterns takes, beside the bare bulk insert of the same rows.

Bare means: rows that are ready, as the tables hold them, put into the same empty tables
(`conversion_patterns`, its history, outcomes, facts, forecasts, with their keys, checks and
triggers) in one transaction: `executemany` of the plain driver on SQLite, COPY on PostgreSQL. It
reads nothing, locks nobody, makes no text of a document, and would lose all clients for the sake of
one. `store_clients` takes documents as detection leaves them, makes their text, keeps each client
whole for itself, replaces what is older only, and moves the client's learned weights. `again` is
the same once more, which changes nothing; `next` is a refresh of another moment.

Both take turns in processes of their own, each on a fresh copy of a database.

Run: python -m benchmarks.pattern_writing [--clients 1000] [--rounds 3] [--sqlite-only]
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import Connection, Engine, insert, select, text

from benchmarks.refresh_speed import read_peak_mb
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.facts import LearningFacts
from conversion_assets.domain.patterns import Outcome
from conversion_assets.domain.terms import PatternType
from conversion_assets.storage import tables
from conversion_assets.storage.database import create_database_engine, migrate, write_transaction
from conversion_assets.storage.forecasts import ForecastChanges, read_forecasts
from conversion_assets.storage.patterns import ClientResults, PatternRepository, Refresh
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import generate_agency

MOST_RATIO = 3.0
"""Storing may take three times the bare insert."""

DIFFERENT_CLIENTS = 20
AS_OF = datetime(2026, 1, 4, tzinfo=UTC)
STORED = (
    tables.conversion_patterns,
    tables.conversion_pattern_history,
    tables.pattern_outcomes,
    tables.learning_facts,
    tables.pattern_forecasts,
)


def make_sample(folder: Path, leads: int = 1000) -> str:
    """A SQLite home in which some different clients were learned; returns its URL."""
    from conversion_assets.refresh.features import refresh_features  # noqa: PLC0415
    from conversion_assets.refresh.patterns import refresh_patterns  # noqa: PLC0415
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415
    from conversion_assets.storage.importer import import_frames  # noqa: PLC0415

    url = f"sqlite:///{folder}/sample.db"
    engine = create_database_engine(url)
    migrate(engine)
    agency = generate_agency(
        SyntheticConfig(clients=DIFFERENT_CLIENTS, leads=leads, seed=1, as_of=AS_OF)
    )
    import_frames(
        engine,
        clients=agency.clients,
        leads=agency.leads,
        activities=agency.activities,
        quarantine_dir=folder / "quarantine",
    )
    store = FeatureStore(folder / "store")
    refresh_features(engine, store)
    refresh_patterns(
        engine,
        store,
        client_ids=agency.clients["id"].to_list(),
        kinds=list(PatternType),
        as_of=AS_OF,
        run_id="sample",
        config=LearningConfig(),
        now=lambda: AS_OF,
    )
    engine.dispose()
    return url


def load_results(url: str, clients: int, as_of: datetime = AS_OF) -> list[ClientResults]:
    """Results of the sample's clients as detection leaves them, again and again by other names."""
    engine = create_database_engine(url)
    repository = PatternRepository(engine)
    rows = repository.outcomes()
    originals = rows["client_id"].unique().sort().to_list()
    forecasts = read_forecasts(engine, originals)
    with engine.connect() as connection:
        facts = dict(
            connection.execute(
                select(tables.learning_facts.c.client_id, tables.learning_facts.c.facts)
            ).all()
        )
    found = {client: repository.current(client) for client in originals}
    engine.dispose()
    results = []
    for number in range(clients):
        original = originals[number % len(originals)]
        name = f"{original}-{number:05d}"
        made = forecasts.filter(pl.col("client_id") == original).with_columns(
            client_id=pl.lit(name), made_as_of=pl.lit(as_of).cast(pl.Datetime("us", "UTC"))
        )
        results.append(
            ClientResults(
                client_id=name,
                documents={
                    kind: stored.document.model_copy(update={"client_id": name, "as_of": as_of})
                    for kind, stored in found[original].items()
                },
                outcomes=[
                    Outcome(
                        client_id=name,
                        pattern_type=row["pattern_type"],
                        outcome=row["outcome"],
                        reason=row["reason"],
                        error=row["error"],
                    )
                    for row in rows.filter(pl.col("client_id") == original).to_dicts()
                ],
                input_fingerprint=f"print-{number}-{as_of.date()}",
                forecasts=ForecastChanges(made=made),
                facts=LearningFacts.model_validate_json(facts[original]),
            )
        )
    return results


def _refresh(as_of: datetime) -> Refresh:
    return Refresh(
        as_of=as_of, computed_at=as_of, run_id="bench", code_version="bench", validity_days=30
    )


def _prepare(url: str, results: list[ClientResults]) -> Engine:
    engine = create_database_engine(url)
    migrate(engine)
    rows = [{"id": one.client_id, "created_at": AS_OF} for one in results]
    with write_transaction(engine) as connection:
        connection.execute(insert(tables.clients), rows)
    return engine


def _measure(contender: str, url: str, sample: str, clients: int) -> dict[str, Any]:
    """Run one contender here and now."""
    engine = create_database_engine(url)
    if contender == "bare":
        with engine.connect() as connection:
            _take_rows(connection)  # whatever the driver sets up at first use
        rows = json.loads(Path(sample).read_text())
        seconds = [_insert_bare(engine, rows)]
    else:
        moments = [AS_OF, AS_OF, AS_OF + timedelta(days=7)]
        batches = [load_results(sample, clients, moment) for moment in moments]
        repository, seconds = PatternRepository(engine), []
        for batch, moment in zip(batches, moments, strict=True):
            started = time.perf_counter()
            report = repository.store_clients(batch, _refresh(moment))
            seconds.append(time.perf_counter() - started)
            if report.errors:
                raise RuntimeError(next(iter(report.errors.values())))
    engine.dispose()
    return {"seconds": seconds, "peak_mb": read_peak_mb()}


def _insert_bare(engine: Engine, rows: dict[str, dict[str, Any]]) -> float:
    ready = {table: [tuple(row) for row in found["rows"]] for table, found in rows.items()}
    with write_transaction(engine) as connection:
        started = time.perf_counter()
        driver: Any = connection.connection.driver_connection
        for table, listed in ready.items():
            columns = ", ".join(rows[table]["columns"])
            if engine.dialect.name == "sqlite":
                values = ", ".join("?" * len(rows[table]["columns"]))
                driver.executemany(f"INSERT INTO {table} ({columns}) VALUES ({values})", listed)
            else:
                with (
                    driver.cursor() as cursor,
                    cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as stream,
                ):
                    for row in listed:
                        stream.write_row(row)
        connection.commit()
        return time.perf_counter() - started


def _take_rows(connection: Connection) -> dict[str, dict[str, Any]]:
    """Every row the store wrote, values as the drivers take them."""
    is_sqlite = connection.dialect.name == "sqlite"
    found = {}
    for table in STORED:
        columns = [c.name for c in table.c if not (c.name == "id" and c.primary_key)]
        casts = ", ".join(c if is_sqlite else f"{c}::text" for c in columns)
        rows = connection.execute(text(f"SELECT {casts} FROM {table.name}")).all()
        found[table.name] = {"columns": columns, "rows": [list(row) for row in rows]}
    return found


def run(clients: int = 1000, rounds: int = 3, *, postgresql: bool = True) -> dict[str, Any]:
    """Measure both databases.

    Args:
        clients: Clients, four patterns each.
        rounds: Times that bare and storing take turns.
        postgresql: Also on a PostgreSQL server started for this.

    Returns:
        Per database: median seconds of the bare insert, of storing, of storing the same again and
        of the next refresh; ratio of storing to bare, the median of the rounds' own; peak memory.
    """
    from conversion_assets_tests.databases import (  # noqa: PLC0415
        PostgresDatabases,
        running_postgres,
    )

    result: dict[str, Any] = {"patterns": 4 * clients, "most_ratio": MOST_RATIO}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sample = make_sample(folder)
        result["sqlite"] = _compare(_SqliteCopies(folder), sample, folder, clients, rounds)
        if postgresql:
            with running_postgres() as server:
                databases = PostgresDatabases.create(server)
                result["postgresql"] = _compare(databases, sample, folder, clients, rounds)
                databases.close()
    return result


class _SqliteCopies:
    """Fresh migrated SQLite files, as `PostgresDatabases` makes them on a server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0

    @contextmanager
    def fresh(self) -> Iterator[str]:
        self._made += 1
        path = self._folder / f"fresh-{self._made}"
        path.mkdir()
        yield f"sqlite:///{path}/bench.db"
        shutil.rmtree(path)


def _compare(
    databases: Any, sample: str, folder: Path, clients: int, rounds: int
) -> dict[str, float]:
    results = load_results(sample, clients)
    ready = folder / "ready.json"
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "bare": []}
    with databases.fresh() as url:
        engine = _prepare(url, results)
        PatternRepository(engine).store_clients(results, _refresh(AS_OF))
        with engine.connect() as connection:
            ready.write_text(json.dumps(_take_rows(connection)))
        engine.dispose()
    for _ in range(rounds):
        for contender, given in (("ours", sample), ("bare", str(ready))):
            with databases.fresh() as url:
                _prepare(url, results).dispose()
                found[contender].append(_call(contender, url, given, clients))
    ready.unlink()
    bare = [row["seconds"][0] for row in found["bare"]]
    ours = [row["seconds"] for row in found["ours"]]
    return {
        "bare_s": round(statistics.median(bare), 3),
        "ours_s": round(statistics.median(row[0] for row in ours), 3),
        "again_s": round(statistics.median(row[1] for row in ours), 3),
        "next_s": round(statistics.median(row[2] for row in ours), 3),
        "ratio": round(statistics.median(o[0] / b for o, b in zip(ours, bare, strict=True)), 2),
        "peak_mb": round(statistics.median(row["peak_mb"] for row in found["ours"])),
    }


def _call(contender: str, url: str, sample: str, clients: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.pattern_writing", "--contender", contender,
               "--sample", sample, "--clients", str(clients)]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, input=url)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pattern_writing")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sqlite-only", action="store_true")
    parser.add_argument("--contender", choices=["ours", "bare"], help="this one alone")
    parser.add_argument("--sample", help="URL of the sample, or file of rows that are ready")
    options = parser.parse_args()
    if options.contender:
        url = sys.stdin.read().strip()
        print(json.dumps(_measure(options.contender, url, options.sample, options.clients)))
        return
    result = run(options.clients, options.rounds, postgresql=not options.sqlite_only)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
