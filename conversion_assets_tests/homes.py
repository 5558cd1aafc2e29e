"""Embedded homes with generated data, made through the same functions as anybody's."""

import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from conversion_assets.storage.database import create_database_engine, migrate
from conversion_assets.storage.importer import import_frames
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import generate_agency

AS_OF = datetime(2026, 1, 4, tzinfo=UTC)
SMALL = SyntheticConfig(clients=5, leads=220, base_conversion=0.2, as_of=AS_OF)
CLIENTS = [f"client-{number:04d}" for number in range(1, 6)]

VARIABLES = (
    "CONVERSION_DATABASE_URL",
    "CONVERSION_STORE_URL",
    "CONVERSION_COMPUTE_URL",
    "DAGSTER_HOME",
    "SLACK_WEBHOOK_URL",
    "SENTRY_DSN",
    "ALERT_EMAIL",
    "SMTP_URL",
    "ENVIRONMENT",
    "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS",
    "DAGSTER_EVENT_BATCH_SIZE",
    "DAGSTER_DISABLE_TELEMETRY",
)
"""What may be set outside and would change a test."""

# What differs between two equal computations: when they ran and in which run.
_VOLATILE = {"computed_at", "run_id", "als_weights_updated_at"}


def make_home(folder: Path, config: SyntheticConfig = SMALL) -> Path:
    """A home whose database holds a generated agency; nothing is learned yet."""
    agency = generate_agency(config)
    engine = create_database_engine(f"sqlite:///{folder}/conversion.db")
    migrate(engine)
    import_frames(
        engine,
        clients=agency.clients,
        leads=agency.leads,
        activities=agency.activities,
        quarantine_dir=folder / "quarantine",
    )
    engine.dispose()
    return folder


def copy_home(home: Path, target: Path) -> Path:
    """The same home in another place."""
    shutil.copytree(home, target)
    return target


def dump_learned(home: Path) -> dict[str, list[tuple]]:
    """Everything learned that is in the database, without times of computation and run ids."""
    tables = ("conversion_patterns", "conversion_pattern_history", "pattern_outcomes", "clients")
    with sqlite3.connect(home / "conversion.db") as database:
        return {table: _dump(database, table) for table in tables}


def _dump(database: sqlite3.Connection, table: str) -> list[tuple]:
    names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    kept = ", ".join(name for name in names if name not in _VOLATILE)
    return sorted(database.execute(f"SELECT {kept} FROM {table}").fetchall(), key=repr)


def poison(home: Path, client_id: str) -> None:
    """Let the database refuse every pattern of one client, as a broken row of it might."""
    with sqlite3.connect(home / "conversion.db") as database:
        database.execute(
            "CREATE TRIGGER poison BEFORE INSERT ON conversion_patterns "
            f"WHEN NEW.client_id = '{client_id}' "
            "BEGIN SELECT RAISE(ABORT, 'poisoned for a test'); END"
        )


def cure(home: Path) -> None:
    """Take the poison out."""
    with sqlite3.connect(home / "conversion.db") as database:
        database.execute("DROP TRIGGER poison")
