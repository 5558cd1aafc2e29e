"""The same in SQL: DuckDB over the Parquet files."""

from itertools import chain
from pathlib import Path

import duckdb
import polars as pl

from benchmarks.contenders.breakdowns import LEAD_COLUMNS, TOUCH_COLUMNS, list_flags, settle


def count(store: Path, threads: int = 2) -> pl.DataFrame:
    """Count the breakdowns of all clients in a columnar store; see `floor.count`."""
    with duckdb.connect() as database:
        database.execute(f"SET threads = {threads}")
        database.execute(
            "CREATE TEMP TABLE leads AS SELECT client_id, converted_at IS NOT NULL AS outcome, "
            f"{', '.join(_quote(c) for c in LEAD_COLUMNS)} "
            f"FROM read_parquet('{store}/lead_features/*.parquet')"
        )
        described = database.execute(
            f"DESCRIBE SELECT * FROM read_parquet('{store}/touch_features/*.parquet')"
        ).fetchall()
        flags = list_flags([str(row[0]) for row in described])
        columns = [*TOUCH_COLUMNS, *chain(*flags.values())]
        database.execute(
            "CREATE TEMP TABLE touches AS SELECT client_id, is_converting AS outcome, "
            f"{', '.join(_quote(c) for c in columns)} "
            f"FROM read_parquet('{store}/touch_features/*.parquet')"
        )
        queries = [
            *(_count_column("leads", column) for column in LEAD_COLUMNS),
            *(_count_column("touches", column) for column in TOUCH_COLUMNS),
            *(
                _count_flag(family, column)
                for family, members in flags.items()
                for column in members
            ),
        ]
        return settle(pl.from_arrow(database.sql(" UNION ALL ".join(queries)).to_arrow_table()))  # type: ignore[arg-type]


def _quote(name: str) -> str:
    return f'"{name}"'


def _count_column(table: str, column: str) -> str:
    return (
        f"SELECT client_id, '{column}' AS breakdown, CAST({_quote(column)} AS VARCHAR) AS value, "
        "count(*) AS n, count(*) FILTER (outcome) AS k "
        f"FROM {table} GROUP BY client_id, {_quote(column)}"
    )


def _count_flag(family: str, column: str) -> str:
    value = column.removeprefix(f"{family}__")
    return (
        f"SELECT client_id, '{family}' AS breakdown, '{value}' AS value, "
        f"count(*) FILTER ({_quote(column)}) AS n, "
        f"count(*) FILTER ({_quote(column)} AND outcome) AS k FROM touches GROUP BY client_id"
    )
