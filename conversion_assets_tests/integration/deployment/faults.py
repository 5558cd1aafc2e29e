"""An agency of seven clients, one of them healthy, each other with a fault of its own."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
from sqlalchemy import Engine, insert, select, text, update

from conversion_assets.storage import tables
from conversion_assets.storage.database import migrate, write_transaction
from conversion_assets.storage.importer import import_frames
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import generate_agency

CLIENTS = [f"client-{number:04d}" for number in range(1, 8)]
EXPIRED, LOW_SAMPLE, EXTREME, MISSING, FAILED, STALE, HEALTHY = CLIENTS
LEADS = 300
"""So many at this conversion rate that nothing is wrong which was not planted."""

PLANTED = {
    EXPIRED: {("who", "expired")},
    LOW_SAMPLE: {("what", "low_sample")},
    EXTREME: {("who", "extreme_weight")},
    MISSING: {("how", "missing_pattern")},
    FAILED: {(kind, "failed") for kind in ("who", "what", "when", "how")},
    STALE: {(None, "stale_source")},
}
"""Pattern and rule of every finding, by client."""

FAILING_CHECKS = {
    "who_patterns": {
        "patterns_have_not_expired",
        "no_weight_is_too_high",
        "no_weight_is_too_low",
        "last_learning_succeeded",
    },
    "what_patterns": {"samples_are_large_enough", "last_learning_succeeded"},
    "when_patterns": {"last_learning_succeeded"},
    "how_patterns": {"last_learning_succeeded", "no_pattern_is_missing"},
    "activities": {"sources_are_fresh"},
}
"""What the UI must show as failing, and nothing else."""

_NEVER_LEARNED = "'client-0005'"
_POISON = {
    "sqlite": [
        "CREATE TRIGGER poison BEFORE INSERT ON conversion_patterns "
        f"WHEN NEW.client_id = {_NEVER_LEARNED} "
        "BEGIN SELECT RAISE(ABORT, 'poisoned for a test'); END"
    ],
    "postgresql": [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'poisoned for a test'; END$$",
        "CREATE TRIGGER poison BEFORE INSERT ON conversion_patterns FOR EACH ROW "
        f"WHEN (NEW.client_id = {_NEVER_LEARNED}) EXECUTE FUNCTION refuse()",
    ],
}
_CURE = {
    "sqlite": "DROP TRIGGER poison",
    "postgresql": "DROP TRIGGER poison ON conversion_patterns",
}


def import_agency(engine: Engine, home: Path, as_of: datetime) -> None:
    """Fill a database; one client's last row is three weeks old."""
    migrate(engine)
    agency = generate_agency(
        SyntheticConfig(clients=len(CLIENTS), leads=LEADS, base_conversion=0.2, as_of=as_of)
    )
    import_frames(
        engine,
        clients=agency.clients,
        leads=_age(agency.leads, STALE, timedelta(days=21)),
        activities=_age(agency.activities, STALE, timedelta(days=21)),
        quarantine_dir=home / "quarantine",
    )


def _age(rows: pl.DataFrame, client_id: str, by: timedelta) -> pl.DataFrame:
    moments = [name for name, kind in rows.schema.items() if isinstance(kind, pl.Datetime)]
    is_client = pl.col("client_id") == client_id
    return rows.with_columns(
        pl.when(is_client).then(pl.col(name) - by).otherwise(pl.col(name)).alias(name)
        for name in moments
    )


def poison_learning(engine: Engine) -> None:
    """Let the database refuse every pattern of one client."""
    with write_transaction(engine) as connection:
        for statement in _POISON[engine.dialect.name]:
            connection.execute(text(statement))


def plant_faults(engine: Engine, now: datetime) -> None:
    """Spoil what was learned, as time, hands and bugs would."""
    table = tables.conversion_patterns
    with write_transaction(engine) as connection:

        def spoil(client_id: str, kind: str, **values: object) -> None:
            where = (table.c.client_id == client_id, table.c.pattern_type == kind)
            assert connection.execute(update(table).where(*where).values(**values)).rowcount == 1

        spoil(EXPIRED, "who", valid_until=now - timedelta(days=1))
        spoil(LOW_SAMPLE, "what", sample_size=12)
        stored = connection.execute(
            select(table.c.patterns).where(
                table.c.client_id == EXTREME, table.c.pattern_type == "who"
            )
        ).scalar_one()
        document = json.loads(stored)
        weights = {"data_quality": 0.07, "authority": 0.50, "company_fit": 0.14, "timing": 0.14}
        spoil(EXTREME, "who", patterns=json.dumps({**document, "recommended_weights": weights}))
        gone = connection.execute(
            table.delete().where(table.c.client_id == MISSING, table.c.pattern_type == "how")
        )
        assert gone.rowcount == 1


def repair_sources(engine: Engine, now: datetime) -> None:
    """Let the refused client's patterns pass, and give the stale client a touch."""
    with write_transaction(engine) as connection:
        connection.execute(text(_CURE[engine.dialect.name]))
        table = tables.activities
        lead = connection.execute(
            select(table.c.lead_id).where(table.c.client_id == STALE).limit(1)
        ).scalar_one()
        connection.execute(
            insert(table),
            {
                "id": "news",
                "client_id": STALE,
                "lead_id": lead,
                "channel": "email",
                "action": "email_sent",
                "occurred_at": now,
                "created_at": now,
            },
        )
