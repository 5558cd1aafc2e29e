"""The floor: read the extracted columns from Parquet once, group by each, nothing else."""

from itertools import chain
from pathlib import Path

import polars as pl

from benchmarks.contenders.breakdowns import LEAD_COLUMNS, TOUCH_COLUMNS, list_flags, settle


def count(store: Path) -> pl.DataFrame:
    """Count the breakdowns of all clients in a columnar store.

    Args:
        store: Folder with `lead_features` and `touch_features`.

    Returns:
        Columns client_id, breakdown, value, n, k.
    """
    leads = pl.read_parquet(
        store / "lead_features" / "*.parquet",
        columns=["client_id", "converted_at", *LEAD_COLUMNS],
    ).with_columns(outcome=pl.col("converted_at").is_not_null())
    names = pl.scan_parquet(store / "touch_features" / "*.parquet").collect_schema().names()
    flags = list_flags(names)
    touches = pl.read_parquet(
        store / "touch_features" / "*.parquet",
        columns=["client_id", "is_converting", *TOUCH_COLUMNS, *chain(*flags.values())],
    ).rename({"is_converting": "outcome"})
    plans = [
        *(_count_column(leads, column) for column in LEAD_COLUMNS),
        *(_count_column(touches, column) for column in TOUCH_COLUMNS),
        *(_count_flags(touches, family, columns) for family, columns in flags.items()),
    ]
    return settle(pl.concat(pl.collect_all(plans)))


def _count_column(rows: pl.DataFrame, column: str) -> pl.LazyFrame:
    return (
        rows.lazy()
        .group_by("client_id", column)
        .agg(n=pl.len().cast(pl.Int64), k=pl.col("outcome").sum().cast(pl.Int64))
        .select(
            "client_id",
            pl.lit(column).alias("breakdown"),
            pl.col(column).cast(pl.String).alias("value"),
            "n",
            "k",
        )
    )


def _count_flags(rows: pl.DataFrame, family: str, columns: list[str]) -> pl.LazyFrame:
    outcome = pl.col("outcome")
    wide = (
        rows.lazy()
        .group_by("client_id")
        .agg(
            pl.struct(
                pl.lit(column.removeprefix(f"{family}__")).alias("value"),
                pl.col(column).sum().cast(pl.Int64).alias("n"),
                (pl.col(column) & outcome).sum().cast(pl.Int64).alias("k"),
            ).alias(column)
            for column in columns
        )
    )
    return (
        wide.unpivot(columns, index="client_id", value_name="cell")
        .select("client_id", pl.lit(family).alias("breakdown"), "cell")
        .unnest("cell")
        .select("client_id", "breakdown", "value", "n", "k")
    )
