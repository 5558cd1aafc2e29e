"""How long rescoring leads takes, beside reading and writing their columns and nothing else.

Bare means: the columns a score depends on are read whole by the fastest reader at hand (the plain
driver on SQLite, binary COPY into Arrow on PostgreSQL), and the score columns of every lead are
written back by key from rows that are ready (`executemany` on SQLite, COPY and one UPDATE on
PostgreSQL), one transaction each. Rescoring reads the same columns and the stored scores, looks up
weights and profiles, computes, compares, and writes what differs: every lead, because the weights
are others each time. Both take turns on the same rows; the ratio is that of the medians.

`unchanged_s` is rescoring again when nothing differs.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from sqlalchemy import Connection, Engine, text

from conversion_assets.refresh.scoring import score_leads
from conversion_assets.scoring.lead_score import SCORE_COLUMNS, SCORED_COLUMNS
from conversion_assets.storage.database import (
    create_database_engine,
    migrate,
    next_change_id,
    write_transaction,
)
from conversion_assets.storage.sources import open_snapshot
from conversion_assets.storage.upsert import upsert_rows
from conversion_assets_tests.databases import running_postgres

MOST_RATIO = 2.0
"""Rescoring may take twice the time of reading and writing the columns."""

NOW = datetime(2026, 3, 1, tzinfo=UTC)
WEIGHTS = (
    {"data_quality": 0.10, "authority": 0.40, "company_fit": 0.20, "timing": 0.15},
    {"data_quality": 0.15, "authority": 0.20, "company_fit": 0.30, "timing": 0.20},
)
PROFILE = (
    '{"industries":["SaaS","Retail"],"employees":{"lowest":6,"highest":100},"countries":["AU"]}'
)
TIME = "%Y-%m-%dT%H:%M:%S%.6fZ"


def make_leads(leads: int, clients: int, seed: int = 7) -> pl.DataFrame:
    """Leads with every column a score depends on, some 1,500 different titles among them."""
    random = np.random.default_rng(seed)

    def pick(values: list[Any]) -> pl.Series:
        return pl.Series(values).gather(random.integers(0, len(values), leads))

    ranks = ["CEO", "VP", "Director of", "Head of", "Senior Manager,", "Manager,", "Analyst,"]
    fields = ["Sales", "Marketing", "Growth", "Operations", "IT", "HR", "Finance"]
    places = ["", "EMEA", "APAC", "North America", "ANZ", "Global", "Digital", "Enterprise"]
    titles = [
        f"{r} {f} {p}{s}"
        for r in ranks
        for f in fields
        for p in places
        for s in ("", " (acting)", " II", "!")
    ]
    days = pl.Series([NOW]).dt.offset_by("-3y").to_list()[0]
    numbers = pl.int_range(leads, eager=True).cast(pl.String)
    return pl.DataFrame(
        {
            "client_id": pl.Series([f"client-{n:03d}" for n in range(clients)]).gather(
                np.sort(random.integers(0, clients, leads))
            ),
            "id": "lead-" + numbers.str.zfill(8),
            "first_name": pick(["Ann", "Bob", "Chen", "Dipa"]),
            "last_name": pick(["Smith", "Jones", "Li", "Rao"]),
            "email": numbers + pick(["@acme.example", "@gmail.com"]),
            "email_verified": pick([True, False, None]),
            "phone": pick([None, "+61 2 5550 1234"]),
            "phone_verified": pick([True, False]),
            "linkedin_url": pick([None, "https://www.linkedin.com/in/someone"]),
            "title": pick([*titles, None]),
            "company_name": "Company " + numbers,
            "industry": pick(["SaaS", "Retail", "Health & Care", "Mining", None]),
            "employee_count": random.integers(1, 2000, leads),
            "country": pick(["Australia", "US", "Germany", "nz", None]),
            "timezone": pick(["Australia/Sydney", "Europe/Berlin"]),
            "source": pick(["referral", "apollo", "website"]),
            "is_new_role": pick([True, False, None]),
            "is_hiring": pick([True, False, None]),
            "recently_funded": pick([True, False, None]),
            "funded_at": pl.Series([days] * leads)
            + pl.Series(random.integers(0, 1000, leads) * 86_400_000_000).cast(pl.Duration("us")),
            "status": pick(["new", "in_sequence", "converted", "bounced", "dead"]),
        }
    ).with_columns(created_at=pl.lit(days), updated_at=pl.lit(days))


def run(leads: int = 1_000_000, rounds: int = 3, *, postgresql: bool = True) -> dict[str, object]:
    """Measure both databases.

    Args:
        leads: Leads of ten clients.
        rounds: Times that bare and rescoring take turns.
        postgresql: Also on a PostgreSQL server started for this.

    Returns:
        Per database: median seconds of reading, writing, rescoring, and rescoring when nothing
        differs; the ratio of rescoring to reading and writing.
    """
    rows = make_leads(leads, 10)
    result: dict[str, object] = {"leads": leads, "most_ratio": MOST_RATIO}
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/bench.db"
        result["sqlite"] = _measure(url, rows, rounds, _read_sqlite, _write_sqlite)
    if postgresql:
        with running_postgres() as server:
            url = server.render_as_string(hide_password=False)
            result["postgresql"] = _measure(url, rows, rounds, _read_postgresql, _write_postgresql)
    return result


def _measure(
    url: str,
    rows: pl.DataFrame,
    rounds: int,
    read: Callable[[Engine], int],
    write: Callable[[Connection, pl.DataFrame, int], float],
) -> dict[str, float]:
    engine = create_database_engine(url)
    _fill(engine, rows)
    seconds: dict[str, list[float]] = {"read": [], "write": [], "rescore": [], "unchanged": []}
    for turn in range(rounds):
        started = time.perf_counter()
        assert read(engine) == rows.height
        seconds["read"].append(time.perf_counter() - started)
        seconds["write"].append(_write_bare(engine, rows, turn, write))
        _settle(engine)
        _set_weights(engine, WEIGHTS[turn % 2])
        for name, expected in (("rescore", rows.height), ("unchanged", 0)):
            started = time.perf_counter()
            report = score_leads(engine, now=NOW)
            seconds[name].append(time.perf_counter() - started)
            assert (report.scored, report.written) == (rows.height, expected)
        _settle(engine)
    engine.dispose()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = median["rescore"] / (median["read"] + median["write"])
    return {f"{name}_s": round(value, 2) for name, value in median.items()} | {
        "ratio": round(ratio, 2)
    }


def _fill(engine: Engine, rows: pl.DataFrame) -> None:
    from conversion_assets.domain.contracts import CONTRACTS  # noqa: PLC0415

    def whole(table: str, frame: pl.DataFrame) -> pl.DataFrame:
        return frame.select(
            (pl.col(name) if name in frame.columns else pl.lit(None)).cast(column.dtype).alias(name)
            for name, column in CONTRACTS[table].columns().items()
        )

    clients = rows.select(id=pl.col("client_id").unique()).with_columns(
        subscription_status=pl.lit("active"),
        is_paused=pl.lit(value=False),
        pool_opt_in=pl.lit(value=False),
        ideal_profile=pl.lit(PROFILE),
        created_at=pl.lit(NOW),
    )
    migrate(engine)
    with write_transaction(engine) as connection:
        number = next_change_id(connection)
        for table, frame in (("clients", clients), ("leads", rows)):
            upsert_rows(connection, table, whole(table, frame), frame.columns, change_id=number)
    _settle(engine)


def _settle(engine: Engine) -> None:
    """Neither side pays for what the other left behind."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("VACUUM ANALYZE leads"))
            connection.execute(text("CHECKPOINT"))
        else:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def _set_weights(engine: Engine, weights: dict[str, float]) -> None:
    with write_transaction(engine) as connection:
        connection.execute(
            text("UPDATE clients SET als_learned_weights = :w").bindparams(w=json.dumps(weights))
            if engine.dialect.name == "sqlite"
            else text("UPDATE clients SET als_learned_weights = CAST(:w AS jsonb)").bindparams(
                w=json.dumps(weights)
            )
        )


def _read_sqlite(engine: Engine) -> int:
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        return len(driver.execute(f"SELECT {', '.join(SCORED_COLUMNS)} FROM leads").fetchall())


def _read_postgresql(engine: Engine) -> int:
    schema = dict.fromkeys(SCORED_COLUMNS, None) | SCORED_COLUMNS
    with open_snapshot(engine) as snapshot:
        return snapshot.query(f"SELECT {', '.join(schema)} FROM leads", schema).height


def _write_bare(
    engine: Engine,
    rows: pl.DataFrame,
    turn: int,
    write: Callable[[Connection, pl.DataFrame, int], float],
) -> float:
    ready = rows.select(
        als_score=pl.lit(40.0 + turn),
        als_tier=pl.lit("cool"),
        als_components=pl.lit(
            f'{{"risk": {turn}, "timing": 6, "authority": 25, "company_fit": 7, "data_quality": 4}}'
        ),
        als_weights_used=pl.lit(json.dumps({**WEIGHTS[turn % 2], "risk": 0.15})),
        scored_at=pl.lit(datetime(2026, 2, 1 + turn, tzinfo=UTC)).dt.to_string(TIME),
        client_id="client_id",
        id="id",
    )
    with write_transaction(engine) as connection:
        return write(connection, ready, next_change_id(connection))


def _write_sqlite(connection: Connection, ready: pl.DataFrame, change_id: int) -> float:
    listed = ready.rows()
    set_ = ", ".join(f"{name} = ?" for name in SCORE_COLUMNS)
    started = time.perf_counter()
    connection.exec_driver_sql(
        f"UPDATE leads SET {set_}, change_id = {change_id} WHERE client_id = ? AND id = ?", listed
    )
    connection.commit()
    return time.perf_counter() - started


def _write_postgresql(connection: Connection, ready: pl.DataFrame, change_id: int) -> float:
    listed = ready.write_csv(include_header=False).encode()
    set_ = ", ".join(f"{name} = s.{name}" for name in SCORE_COLUMNS)
    started = time.perf_counter()
    connection.execute(
        text(
            "CREATE TEMP TABLE bare (als_score double precision, als_tier text,"
            " als_components jsonb, als_weights_used jsonb, scored_at timestamptz,"
            " client_id text, id text) ON COMMIT DROP"
        )
    )
    driver: Any = connection.connection.driver_connection
    with driver.cursor() as cursor, cursor.copy("COPY bare FROM STDIN (FORMAT csv)") as stream:
        stream.write(listed)
    connection.execute(
        text(
            f"UPDATE leads l SET {set_}, change_id = {change_id} FROM bare s"
            " WHERE l.client_id = s.client_id AND l.id = s.id"
        )
    )
    connection.commit()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leads", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sqlite-only", action="store_true")
    arguments = parser.parse_args()
    result = run(arguments.leads, arguments.rounds, postgresql=not arguments.sqlite_only)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
