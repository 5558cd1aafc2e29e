"""How long the health job takes for 1,000 clients on PostgreSQL, with what Dagster writes.

    python -m benchmarks.health_speed [CLIENTS]

Documents are the patterns of one learned client of the synthetic agency, copied to every client,
so that their size is real. The job runs through Dagster with its event log on the same PostgreSQL.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dagster import DagsterInstance
from sqlalchemy import Engine, insert, make_url, select, text

from conversion_assets.definitions import defs
from conversion_assets.notebook import learn_patterns
from conversion_assets.refresh.health import check_health
from conversion_assets.settings import load_settings
from conversion_assets.storage import tables
from conversion_assets.storage.database import create_database_engine, write_transaction
from conversion_assets.storage.patterns import canonical_json
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import generate_agency
from conversion_assets_tests.databases import PostgresDatabases, running_postgres

PLANTED_SHARE = 0.1


def main() -> None:
    """Build the fleet, run the job, print the figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with running_postgres() as server, tempfile.TemporaryDirectory() as folder:
        databases = PostgresDatabases.create(server)
        with databases.fresh() as url, databases.fresh(migrated=False) as dagster_url:
            measure(Path(folder), url, dagster_url, count)


def measure(home: Path, url: str, dagster_url: str, count: int) -> None:
    """Run the job twice and the check once."""
    documents = learn_one()
    engine = create_database_engine(url)
    fill(engine, documents, count)
    os.environ["CONVERSION_HOME"] = str(home)
    os.environ["CONVERSION_DATABASE_URL"] = url
    write_instance(home / "dagster", dagster_url)
    size = sum(len(text) for text in documents.values())
    print(f"{count:,} clients, {size / 1024:.0f} KB of documents each")
    with DagsterInstance.from_config(str(home / "dagster")) as instance:
        job = defs.resolve_job_def("check_pattern_health")
        for attempt in ("first, everything is new", "second, nothing is"):
            started, cpu = time.perf_counter(), time.process_time()
            result = job.execute_in_process(instance=instance)
            seconds, used = time.perf_counter() - started, time.process_time() - cpu
            failed = [e for e in result.get_asset_check_evaluations() if not e.passed]
            assert result.success
            assert failed
            print(f"job through Dagster ({attempt}): {seconds:.2f} s, {used:.2f} s of processor")
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
            insert(tables.clients), [{"id": n, "created_at": created} for n in names]
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
        assert connection.execute(select(tables.clients.c.id)).first()


def write_instance(folder: Path, url: str) -> None:
    """Configure an instance as a deployment does."""
    parsed = make_url(url)
    folder.mkdir()
    shutil.copyfile(Path(__file__).parents[1] / "dagster.yaml", folder / "dagster.yaml")
    os.environ.update(
        DAGSTER_PG_USER=str(parsed.username),
        DAGSTER_PG_PASSWORD=str(parsed.password),
        DAGSTER_PG_HOST=str(parsed.host),
        DAGSTER_PG_PORT=str(parsed.port),
        DAGSTER_PG_DB=str(parsed.database),
    )


if __name__ == "__main__":
    main()
