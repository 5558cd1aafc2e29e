"""The same in pandas: one group-by a breakdown over all clients."""

from itertools import chain
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow.dataset

from benchmarks.contenders.breakdowns import (
    LEAD_COLUMNS,
    SCHEMA,
    TOUCH_COLUMNS,
    list_flags,
    settle,
)


def count(store: Path) -> pl.DataFrame:
    """Count the breakdowns of all clients in a columnar store; see `floor.count`."""
    leads = pd.read_parquet(
        store / "lead_features", columns=["client_id", "converted_at", *LEAD_COLUMNS]
    )
    leads["outcome"] = leads["converted_at"].notna()
    flags = list_flags(pyarrow.dataset.dataset(store / "touch_features").schema.names)
    touches = pd.read_parquet(
        store / "touch_features",
        columns=["client_id", "is_converting", *TOUCH_COLUMNS, *chain(*flags.values())],
    ).rename(columns={"is_converting": "outcome"})
    parts = [
        *(_count_column(leads, column) for column in LEAD_COLUMNS),
        *(_count_column(touches, column) for column in TOUCH_COLUMNS),
    ]
    for family, columns in flags.items():
        for column in columns:
            part = _count_column(touches[touches[column]], column)
            value = column.removeprefix(f"{family}__")
            parts.append(part.assign(breakdown=family, value=value))
    return settle(pl.from_pandas(pd.concat(parts)[list(SCHEMA)]))


def _count_column(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    counts = (
        rows.groupby(["client_id", column], observed=True)["outcome"]
        .agg(n="size", k="sum")
        .reset_index()
        .rename(columns={column: "value"})
    )
    numbers = counts["value"]
    if pd.api.types.is_float_dtype(numbers):
        numbers = numbers.astype("int64")  # whole numbers with gaps come as floats
    is_flag = pd.api.types.is_bool_dtype(rows[column]) or numbers.isin([True, False]).all()
    text = numbers.astype(str).str.lower() if is_flag else numbers.astype(str)
    return counts.assign(breakdown=column, value=text)
