"""How fast activities are imported, beside the bare bulk insert of the same rows.

Bare means: Python tuples that are ready, one `executemany` (SQLite) or one COPY (PostgreSQL), one
transaction. It is measured twice: into a table with the same columns and nothing else (no key,
index, check or trigger), and into the real, empty table. The import reads a Parquet file, checks
every value and reference, and inserts or updates in the real table.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from sqlalchemy import Engine

from conversion_assets.domain.contracts import CONTRACTS
from conversion_assets.storage.database import create_database_engine, migrate
from conversion_assets.storage.importer import ImportReport, import_files

REQUIRED_SHARE = 0.25
"""An import may take four times as long as the bare insert."""

LEADS_EACH = 10
"""Activities of a lead."""


def make_rows(rows: int, seed: int = 7) -> dict[str, pl.DataFrame]:
    """Clients, leads and activities with content, as an export would hold them."""
    random = np.random.default_rng(seed)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    leads = max(1, rows // LEADS_EACH)
    clients = pl.DataFrame({"id": ["bench"], "timezone": ["Asia/Kathmandu"]})
    lead_rows = pl.DataFrame({"n": np.arange(leads)}).select(
        id=pl.format("lead-{}", "n"),
        client_id=pl.lit("bench"),
        created_at=pl.lit(start),
        title=pl.lit("VP Sales"),
    )
    activities = pl.DataFrame(
        {
            "n": random.permutation(rows),
            "lead": random.integers(0, leads, rows),
            "minutes": random.integers(0, 500_000, rows),
        }
    ).select(
        id=pl.format("activity-{}", "n"),
        client_id=pl.lit("bench"),
        lead_id=pl.format("lead-{}", "lead"),
        channel=pl.lit("email"),
        action=pl.lit("email_sent"),
        touch_number=pl.lit(1),
        content_snapshot=pl.concat_str(
            pl.lit('{"subject":"Quick question '),
            "n",
            pl.lit('","body":"Open to a quick chat about revenue this week?"}'),
        ),
        occurred_at=pl.lit(start) + pl.duration(minutes="minutes"),
    )
    return {"clients": clients, "leads": lead_rows, "activities": activities}


def run(rows: int = 1_000_000, postgresql_url: str | None = None) -> dict[str, object]:
    """Measure both, on SQLite and, where an empty database's URL is given, on PostgreSQL.

    Returns:
        Per database: seconds of the two bare inserts, of the import and of the same import again,
        and the import's speed over that of each bare insert.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths = {}
        for table, frame in make_rows(rows).items():
            paths[table] = root / f"{table}.parquet"
            frame.write_parquet(paths[table])
        result: dict[str, object] = {
            "rows": rows,
            "required_share": REQUIRED_SHARE,
            # Each measurement has a file of its own: what one leaves behind would slow the next.
            "sqlite": _measure(lambda part: f"sqlite:///{root}/{part}.db", paths, _insert_sqlite),
        }
        if postgresql_url:
            result["postgresql"] = _measure(lambda _: postgresql_url, paths, _insert_postgresql)
    return result


def _measure(
    url: Callable[[str], str],
    paths: dict[str, Path],
    insert: Callable[[Engine, str, list[str], list[tuple[object, ...]]], float],
) -> dict[str, float]:
    names, ready = _ready_rows(paths["activities"])
    engines = {part: _prepare(url(part), paths) for part in ("bare", "activities", "import")}
    bare = insert(engines["bare"], "bare", names, ready)
    in_place = insert(engines["activities"], "activities", names, ready)
    first, again = (_import(engines["import"], paths["activities"]) for _ in range(2))
    assert first[1].activities.written == len(ready)
    assert again[1].activities.written == 0
    for engine in engines.values():
        engine.dispose()
    return {
        "bare_s": round(bare, 2),
        "bare_in_real_table_s": round(in_place, 2),
        "import_s": round(first[0], 2),
        "again_s": round(again[0], 2),
        "share": round(bare / first[0], 3),
        "share_of_real_table": round(in_place / first[0], 3),
    }


def _prepare(url: str, paths: dict[str, Path]) -> Engine:
    engine = create_database_engine(url)
    migrate(engine)
    folder = paths["clients"].parent / "quarantine"
    report = import_files(
        engine, clients=paths["clients"], leads=paths["leads"], quarantine_dir=folder
    )
    assert report.rejected == 0
    return engine


def _import(engine: Engine, path: Path) -> tuple[float, ImportReport]:
    started = time.perf_counter()
    report = import_files(engine, activities=path, quarantine_dir=path.parent / "quarantine")
    return time.perf_counter() - started, report


def _ready_rows(path: Path) -> tuple[list[str], list[tuple[object, ...]]]:
    """The columns and rows a bare insert would be handed: all of the table's, times as text."""
    names = CONTRACTS["activities"].column_names()
    frame = pl.read_parquet(path)
    frame = frame.with_columns(
        pl.lit(None).alias(name) for name in names if name not in frame.columns
    ).with_columns(created_at=pl.col("occurred_at"))
    return names, frame.select(names).with_columns(
        pl.selectors.datetime().dt.to_string("%Y-%m-%dT%H:%M:%S%.6fZ")
    ).rows()


def _insert_sqlite(
    engine: Engine, table: str, names: list[str], rows: list[tuple[object, ...]]
) -> float:
    columns = ", ".join([*names, "change_id"])
    values = ", ".join("?" * len(names))
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE TABLE bare ({columns})")
        connection.commit()
        started = time.perf_counter()
        connection.exec_driver_sql(f"INSERT INTO {table} ({columns}) VALUES ({values}, 1)", rows)
        seconds = time.perf_counter() - started
        connection.rollback()
        connection.exec_driver_sql("DROP TABLE bare")
        connection.commit()
    return seconds


def _insert_postgresql(
    engine: Engine, table: str, names: list[str], rows: list[tuple[object, ...]]
) -> float:
    columns = ", ".join(names)
    with engine.connect() as connection:
        connection.exec_driver_sql(
            f"CREATE TEMP TABLE bare AS SELECT {columns} FROM activities WHERE FALSE"
        )
        driver: Any = connection.connection.driver_connection
        started = time.perf_counter()
        with (
            driver.cursor() as cursor,
            cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as stream,
        ):
            for row in rows:
                stream.write_row(row)
        seconds = time.perf_counter() - started
        connection.rollback()
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--postgresql-url", help="an empty database")
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.rows, arguments.postgresql_url), indent=1))


if __name__ == "__main__":
    main()
