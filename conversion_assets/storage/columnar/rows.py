"""Rows of the columnar store: in which order they stand, and which stand in place of others."""

from collections.abc import Collection, Mapping
from typing import Literal

import polars as pl

from conversion_assets.storage.columnar.manifest import FEATURE_TABLES, LEAD_KEY, Table
from conversion_assets.storage.fingerprints import join_sums, sum_tables


def compute_fingerprints(tables: Mapping[Table, pl.DataFrame]) -> dict[str, str]:
    """Content hash of each client's rows over all tables.

    It depends on column names, types and values only: not on the order of the rows, on files, on
    the history of writes, or on the version of a library's own hash.

    Args:
        tables: lead_features and touch_features, in any order of rows.

    Returns:
        64 hexadecimal digits by client id; see `storage.fingerprints`.
    """
    return join_sums(sum_tables({table: tables[table] for table in FEATURE_TABLES}))


def _key_order(frame: pl.DataFrame, key: list[str]) -> pl.Series | None:
    """Positions that bring the rows into the order of their key; None where they are in it."""
    is_later: pl.Expr = pl.lit(value=False)
    for name in reversed(key):
        column, before = pl.col(name), pl.col(name).shift(1)
        is_later = (column < before) | ((column == before) & is_later)
    if not frame.select(is_later.any()).item():
        return None
    return frame.select(pl.arg_sort_by(key)).to_series()


def sort_rows(frame: pl.DataFrame, key: list[str]) -> pl.DataFrame:
    """The rows in the order of their key; the very same frame where they are in it.

    Sorting two million touches takes 0.9 GB beside the 0.5 GB they have, and a file is sorted.
    """
    order = _key_order(frame, key)
    return frame if order is None else frame.select(pl.all().gather(order))


def merge_leads(parts: list[pl.DataFrame], key: list[str]) -> pl.DataFrame:
    """Rows of parts that share no lead, each sorted by a key that begins with it, in its order.

    Only the leads are sorted, not their rows.
    """
    if len(parts) == 1:
        return parts[0]
    whole = pl.concat(parts)
    runs = (
        whole.select(lead=pl.struct(LEAD_KEY).rle())
        .unnest("lead")
        .with_columns(start=pl.col("len").cast(pl.Int64).cum_sum() - pl.col("len"))
        .unnest("value")
        .sort(LEAD_KEY)
    )
    places = runs.select(pl.int_ranges("start", pl.col("start") + pl.col("len")).explode())
    return sort_rows(whole.select(pl.all().gather(places.to_series().drop_nulls())), key)


def empty_of(schema: Mapping[str, pl.DataType], names: Collection[str]) -> pl.DataFrame:
    """No rows, with some columns of a schema."""
    return pl.DataFrame(schema={name: schema[name] for name in names})


def keep_rows(
    rows: pl.DataFrame, keys: pl.DataFrame, on: list[str], how: Literal["semi", "anti"]
) -> pl.DataFrame:
    """Rows that have one of the keys, or none, in their order.

    Often all rows stay, and then not one is copied: of sixty columns that takes longer than the
    comparison.
    """
    places = rows.select(on).with_row_index("place")
    kept = places.join(keys, on=on, how=how, maintain_order="left")["place"]
    return rows if kept.len() == rows.height else rows.select(pl.all().gather(kept))


def leave_out(rows: pl.DataFrame, keys: list[pl.DataFrame]) -> pl.DataFrame:
    """Rows of leads that none of the keys names."""
    for listed in keys:
        if listed.height:
            rows = keep_rows(rows, listed, LEAD_KEY, "anti")
    return rows
