"""How long the health job takes for 1,000 clients on PostgreSQL, with what Dagster writes.

    python -m benchmarks.health_speed [CLIENTS]

Documents are the patterns of one learned client of the synthetic agency, copied to every client,
so that their size is real; each has a year of graded forecasts and facts of its last refresh. The
job runs through Dagster with its event log on the same PostgreSQL, once with the pooled storage of
dagster.yaml and once with the stock one.
"""

import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dagster import DagsterInstance
from sqlalchemy import Engine, insert, make_url, select, text

from conversion_assets.definitions import defs
from conversion_assets.domain.facts import Borrowing, LearningFacts
from conversion_assets.domain.terms import PatternType
from conversion_assets.notebook import learn_patterns
from conversion_assets.refresh.health import check_health
from conversion_assets.settings import load_settings
from conversion_assets.storage import tables
from conversion_assets.storage.database import create_database_engine, write_transaction
from conversion_assets.storage.document_text import canonical_json
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import generate_agency
from conversion_assets_tests.databases import PostgresDatabases, running_postgres

PLANTED_SHARE = 0.1
FORECASTS = 40
BORROWED = Borrowing(cells=300, least_contributors=9, largest_share=0.2, excess=0.0)


def main() -> None:
    """Build the fleet, run the job, print the figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with running_postgres() as server, tempfile.TemporaryDirectory() as folder:
        databases = PostgresDatabases.create(server)
        with databases.fresh() as url, databases.fresh(migrated=False) as dagster_url:
            measure(Path(folder), url, dagster_url, count)
            with databases.fresh(migrated=False) as stock_url:
                run_job(Path(folder) / "stock", stock_url, is_stock=True)


def measure(home: Path, url: str, dagster_url: str, count: int) -> None:
    """Run the job twice and the check once."""
    documents = learn_one()
    engine = create_database_engine(url)
    fill(engine, documents, count)
    os.environ["CONVERSION_HOME"] = str(home)
    os.environ["CONVERSION_DATABASE_URL"] = url
    size = sum(len(text) for text in documents.values())
    print(f"{count:,} clients, {size / 1024:.0f} KB of documents each, {FORECASTS} forecasts")
    run_job(home / "dagster", dagster_url, is_stock=False)
    started, cpu = time.perf_counter(), time.process_time()
    done = check_health(
        engine, now=datetime.now(UTC), config=load_settings().health, channels=["log"]
    )
    assert len(done.client_ids) == count
    seconds, used = time.perf_counter() - started, time.process_time() - cpu
    print(
        f"check alone: {seconds:.2f} s, {used:.2f} s of processor, {len(done.findings):,} findings"
    )
    engine.dispose()


def run_job(folder: Path, url: str, *, is_stock: bool) -> None:
    """Run the health job twice on an instance of its own."""
    write_instance(folder, url, is_stock=is_stock)
    kind = "stock storage" if is_stock else "pooled storage"
    with DagsterInstance.from_config(str(folder)) as instance:
        job = defs.resolve_job_def("check_pattern_health")
        for attempt in ("first", "second"):
            started, cpu = time.perf_counter(), time.process_time()
            result = job.execute_in_process(instance=instance)
            seconds, used = time.perf_counter() - started, time.process_time() - cpu
            failed = [e for e in result.get_asset_check_evaluations() if not e.passed]
            assert result.success
            assert failed
            print(f"job, {kind}, {attempt} run: {seconds:.2f} s, {used:.2f} s of processor")


def learn_one() -> dict[str, str]:
    """Documents of a client of 4,000 leads."""
    agency = generate_agency(SyntheticConfig(clients=1, leads=4000, seed=5))
    learned = learn_patterns(
        agency.leads, agency.activities, agency.clients,
        as_of=datetime.fromisoformat(agency.truth["as_of"]),
    )  # fmt: skip
    documents = {str(d.type): canonical_json(d) for d in learned.documents.values()}
    assert len(documents) == 4
    return documents


def fill(engine: Engine, documents: dict[str, str], count: int) -> None:
    """Fill the system of record with a fleet, a tenth of which has expired."""
    now = datetime.now(UTC)
    names = [f"client-{i:05}" for i in range(count)]
    expired = set(names[: int(PLANTED_SHARE * count)])
    created = now - timedelta(days=400)
    with write_transaction(engine) as connection:
        connection.execute(
            insert(tables.clients),
            [{"id": n, "created_at": created, "pool_opt_in": True} for n in names],
        )
        connection.execute(
            text(
                "INSERT INTO leads (id, client_id, status, created_at, converted_at)"
                " SELECT 'l' || i, c.id, CASE WHEN i % 10 = 0 THEN 'converted' ELSE 'new' END,"
                " now() - interval '9 days', CASE WHEN i % 10 = 0 THEN now() END"
                " FROM clients c, generate_series(1, 500) i"
            )
        )
        connection.execute(
            text(
                "INSERT INTO activities (id, client_id, lead_id, action, occurred_at)"
                " SELECT l.id || '-' || i, l.client_id, l.id, 'email_sent', now()"
                " FROM leads l, generate_series(1, 3) i"
            )
        )
        for kind, document in documents.items():
            plain = json.loads(document)
            shared = {
                "pattern_type": kind, "as_of": now, "computed_at": now, "code_version": "1",
                "input_fingerprint": "f", "run_id": "r",
            }  # fmt: skip
            connection.execute(
                insert(tables.conversion_patterns),
                [
                    shared | {
                        "client_id": n, "patterns": document,
                        "sample_size": plain["sample_size"], "confidence": plain["confidence"],
                        "valid_until": now + timedelta(days=-1 if n in expired else 9),
                    }
                    for n in names
                ],
            )  # fmt: skip
            connection.execute(
                insert(tables.pattern_outcomes),
                [shared | {"client_id": n, "outcome": "found"} for n in names],
            )
        facts = LearningFacts(borrowing=BORROWED).model_dump_json()
        shared = {"as_of": now, "computed_at": now, "pool_id": "p", "facts": facts}
        connection.execute(
            insert(tables.learning_facts), [shared | {"client_id": n} for n in names]
        )
        connection.execute(
            insert(tables.pool_members), [{"pool_id": "p", "client_id": n} for n in names]
        )
        for number in range(FORECASTS):
            row = forecast(number, now)
            connection.execute(
                insert(tables.pattern_forecasts), [row | {"client_id": n} for n in names]
            )
        assert connection.execute(select(tables.clients.c.id)).first()


def forecast(number: int, now: datetime) -> dict[str, object]:
    """One graded forecast: five claims of each type over two windows, all of them true."""
    window, claim = divmod(number, 20)
    made = now - timedelta(days=28 * (window + 2))
    return {
        "made_as_of": made, "cell": f"{claim}", "pattern_type": list(PatternType)[claim % 4],
        "dimension": "d", "value": f"v{claim}", "unit": "lead", "rate": 0.3, "rate_low": 0.25,
        "rate_high": 0.35, "strength": 400.0, "lift": 1.5, "lift_low": 1.2, "lift_high": 1.8,
        "base_rate": 0.2, "delay_days": 5.0, "horizon_days": 28,
        "due_as_of": made + timedelta(days=33), "code_version": "1", "run_id": "r",
        "graded_as_of": made + timedelta(days=40), "n": 100, "k": 30, "expected": 20.0,
        "variance": 16.0, "base_k": 60, "is_judged": True, "is_inside": True, "brier": 0.2,
        "brier_base": 0.2,
    }  # fmt: skip


def write_instance(folder: Path, url: str, *, is_stock: bool) -> None:
    """Configure an instance as a deployment does, with our event log or Dagster's."""
    parsed = make_url(url)
    folder.mkdir()
    config = (Path(__file__).parents[1] / "dagster.yaml").read_text()
    if is_stock:
        config = config.replace(
            "conversion_assets.orchestration.event_log", "dagster_postgres.event_log"
        ).replace("PooledPostgresEventLogStorage", "PostgresEventLogStorage")
    (folder / "dagster.yaml").write_text(config)
    os.environ.update(
        DAGSTER_PG_USER=str(parsed.username),
        DAGSTER_PG_PASSWORD=str(parsed.password),
        DAGSTER_PG_HOST=str(parsed.host),
        DAGSTER_PG_PORT=str(parsed.port),
        DAGSTER_PG_DB=str(parsed.database),
    )


if __name__ == "__main__":
    main()
