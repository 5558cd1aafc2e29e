"""From values as a file writes them to the canonical columns, with the reason for each misfit.

The result is typed as `domain.contracts` says. A value that cannot be read becomes null and its
reason stands beside it, so that one pass finds every fault of a row.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import dataframely as dy
import polars as pl

from conversion_assets.domain.contracts import (
    CONTRACTS,
    reason_of,
    required_columns,
)
from conversion_assets.domain.errors import InputError
from conversion_assets.domain.terms import OUTBOUND_ACTIONS, LeadStatus, SubscriptionStatus
from conversion_assets.storage.json_text import compact_documents

POSITION = "__position"
"""Position of a row in the frame it came in, from 0."""

REASONS = "__reasons"
"""Reasons a row is refused, a list of text."""

_INSTANT = (
    r"^\s*(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2})(:\d{2})?(?:[.,](\d{1,9}))?\d*"
    r"\s*(?:([Zz])|([+-])(\d{2}):?(\d{2})?)\s*$"
)
"""ISO 8601 with zone: date, T or a space, time with or without seconds and fractions, and Z or an
offset as +02, +0200 or +02:00. What is finer than a microsecond is cut off."""

_NAIVE = r"^\s*\d{4}-\d{2}-\d{2}([Tt ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?)?\s*$"

_TRUE = ["true", "1", "yes", "y", "t", "1.0"]
_FALSE = ["false", "0", "no", "n", "f", "0.0"]


@dataclass(frozen=True)
class Canonical:
    """Rows of one table after typing and checking.

    Attributes:
        rows: Rows that pass, with the contract's columns and `POSITION`.
        refused: `POSITION` and `REASONS` of the others.
        provided: Canonical columns that the source has; the rest are defaults.
        unknown: Columns of the source that the contract does not know.
    """

    rows: pl.DataFrame
    refused: pl.DataFrame
    provided: tuple[str, ...]
    unknown: tuple[str, ...]


def to_canonical(table: str, frame: pl.DataFrame, *, where: str) -> Canonical:
    """Type and check the rows of one table.

    Args:
        table: clients, leads or activities.
        frame: Rows as read; columns that start with two underscores are not looked at.
        where: Name of the source for messages.

    Raises:
        InputError: A required column is missing.
    """
    names = [name for name in frame.columns if not name.startswith("__")]
    contract = CONTRACTS[table].columns()
    missing = [c for c in required_columns(table) if c not in names]
    if missing and (names or frame.height):
        found = ", ".join(names) or "none"
        raise InputError(f"{where}: {table} need column {', '.join(missing)}; found: {found}")
    values = {
        name: _read(column, pl.col(name), frame.schema[name]) if name in names else _absent(column)
        for name, column in contract.items()
    }
    typed = frame.select(
        pl.int_range(pl.len(), dtype=pl.UInt32).alias(POSITION),
        *(value.value.alias(name) for name, value in values.items()),
        *(
            flag.fill_null(value=False).alias(f"{name}|{reason}")
            for name, value in values.items()
            for reason, flag in value.misfits.items()
        ),
    ).with_columns(_DEFAULTS[table])
    return Canonical(
        *_check(table, typed),
        provided=tuple(c for c in contract if c in names),
        unknown=tuple(n for n in names if n not in contract),
    )


_POSITIONED: dict[str, type[dy.Schema]] = {
    table: type(contract.__name__, (contract,), {"position": dy.UInt32(alias=POSITION)})
    for table, contract in CONTRACTS.items()
}
"""The contracts with the position beside their columns: checking keeps no other column."""


def _check(table: str, typed: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split rows by misfits, and the readable ones by the contract's rules."""
    flags = [name for name in typed.columns if "|" in name]
    is_unread = pl.any_horizontal(flags) if flags else pl.lit(value=False)
    checked = _POSITIONED[table].filter(typed.filter(~is_unread).drop(flags))
    broken = checked.failure.details()
    rules = [name for name in broken.columns if name not in typed.columns]
    broken = broken.with_columns(pl.col(rule) == "invalid" for rule in rules)
    refused = pl.concat([_reasons(typed.filter(is_unread), flags), _reasons(broken, rules)]).sort(
        POSITION
    )
    return checked.result, refused


def _reasons(rows: pl.DataFrame, rules: list[str]) -> pl.DataFrame:
    """Gather the rules that are true in each row into a list of reasons."""
    by_reason: dict[str, list[str]] = {}
    for rule in rules:
        by_reason.setdefault(reason_of(rule), []).append(rule)
    reasons = [
        pl.when(pl.any_horizontal(names)).then(pl.lit(reason))
        for reason, names in sorted(by_reason.items())
    ]
    return rows.select(
        POSITION,
        (pl.concat_list(reasons).list.drop_nulls() if reasons else pl.lit([""])).alias(REASONS),
    )


@dataclass(frozen=True)
class _Value:
    """Expression of a typed value, and of each way in which what stood there is none."""

    value: pl.Expr
    misfits: Mapping[str, pl.Expr]


def _absent(column: dy.Column) -> _Value:
    return _Value(pl.lit(None, dtype=column.dtype), {})


def _read(column: dy.Column, source: pl.Expr, dtype: pl.DataType) -> _Value:
    if dtype == pl.Null:
        return _absent(column)
    if isinstance(dtype, pl.Categorical | pl.Enum):
        source, dtype = source.cast(pl.String), pl.String()
    if (column.metadata or {}).get("json"):
        return _read_json(source, dtype)
    if isinstance(column, dy.Datetime):
        return _read_time(source, dtype)
    if isinstance(column, dy.Bool):
        return _read_flag(source, dtype)
    if isinstance(column, dy.String):
        return _read_text(source, dtype)
    return _read_number(source, dtype, is_whole=isinstance(column, dy.Int64))


def _blank_to_null(text: pl.Expr) -> pl.Expr:
    return pl.when(text.str.strip_chars() != "").then(text)


def _read_text(source: pl.Expr, dtype: pl.DataType) -> _Value:
    if dtype == pl.String:
        return _Value(_blank_to_null(source), {})
    if dtype.is_float():
        # An integer column with gaps leaves pandas as 12.0.
        whole = source.cast(pl.Int64, strict=False)
        text = pl.when(whole.cast(dtype) == source).then(whole.cast(pl.String))
        return _Value(text.otherwise(source.fill_nan(None).cast(pl.String)), {})
    if dtype.is_nested() or dtype == pl.Binary:
        return _Value(pl.lit(None, dtype=pl.String), {"not a text": source.is_not_null()})
    return _Value(source.cast(pl.String), {})


def _read_time(source: pl.Expr, dtype: pl.DataType) -> _Value:
    none = pl.lit(None, dtype=pl.Datetime("us", "UTC"))
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is None:
            return _Value(none, {"naive timestamp": source.is_not_null()})
        return _Value(source.dt.convert_time_zone("UTC").dt.cast_time_unit("us"), {})
    if dtype == pl.Date:
        return _Value(none, {"naive timestamp": source.is_not_null()})
    if dtype != pl.String:
        return _Value(none, {"unparsable timestamp": source.is_not_null()})
    text = _blank_to_null(source)
    value = parse_instants(text)
    is_naive = text.str.contains(_NAIVE)
    return _Value(
        value,
        {
            "naive timestamp": is_naive,
            "unparsable timestamp": text.is_not_null() & value.is_null() & ~is_naive,
        },
    )


def parse_instants(text: pl.Expr) -> pl.Expr:
    """Parse ISO 8601 times with zone into UTC; null for anything else.

    Example:
        >>> frame = pl.DataFrame({"t": ["2024-03-01T09:30:00+05:45", "2024-03-01 09:30"]})
        >>> [str(t) for t in frame.select(parse_instants(pl.col("t"))).to_series()]
        ['2024-03-01 03:45:00+00:00', 'None']
    """
    part = text.str.extract_groups(_INSTANT).struct
    seconds = pl.concat_str(
        part[0], part[1], part[2].fill_null(":00"), separator=" "
    ).str.to_datetime("%Y-%m-%d %H:%M :%S", time_unit="us", strict=False)
    micros = part[3].fill_null("0").str.pad_end(6, "0").str.slice(0, 6).cast(pl.Int64)
    hours, minutes = (part[i].fill_null("0").cast(pl.Int64) for i in (6, 7))
    offset = (hours * 60 + minutes) * pl.when(part[5] == "-").then(-1).otherwise(1)
    local = seconds + pl.duration(microseconds=micros, minutes=-offset)
    # 23:59 is the widest offset ISO 8601 can write; %S would take a leap second as the next one.
    is_valid = (hours < 24) & (minutes < 60) & (part[2].fill_null(":00") != ":60")
    return pl.when(is_valid).then(local).dt.replace_time_zone("UTC")


def _read_flag(source: pl.Expr, dtype: pl.DataType) -> _Value:
    if dtype == pl.Boolean:
        return _Value(source, {})
    if dtype.is_nested() or dtype.is_temporal():
        return _Value(pl.lit(None, dtype=pl.Boolean), {"not true or false": source.is_not_null()})
    if dtype.is_float():
        source = source.fill_nan(None)
    text = _blank_to_null(source.cast(pl.String)).str.strip_chars().str.to_lowercase()
    value = (
        pl.when(text.is_in(_TRUE))
        .then(pl.lit(value=True))
        .when(text.is_in(_FALSE))
        .then(pl.lit(value=False))
    )
    return _Value(value, {"not true or false": text.is_not_null() & value.is_null()})


def _read_number(source: pl.Expr, dtype: pl.DataType, *, is_whole: bool) -> _Value:
    reason = "not a whole number" if is_whole else "not a number"
    target = pl.Int64() if is_whole else pl.Float64()
    if not (dtype.is_numeric() or dtype == pl.String):
        return _Value(pl.lit(None, dtype=target), {reason: source.is_not_null()})
    if dtype == pl.String:
        given = _blank_to_null(source).str.strip_chars()
        given = pl.when(~given.str.to_lowercase().is_in(["nan", "null"])).then(given)
        number = given.cast(pl.Float64, strict=False)
        exact = given.cast(pl.Int64, strict=False) if is_whole else number
    else:
        given = source.fill_nan(None) if dtype.is_float() else source
        number = given.cast(pl.Float64)
        exact = given.cast(target, strict=False)
    if not is_whole:
        return _Value(
            pl.when(number.is_finite()).then(number),
            {reason: given.is_not_null() & ~number.is_finite().fill_null(value=False)},
        )
    # 12.0 is a whole number: a column with gaps leaves pandas that way.
    value = pl.when(number == number.floor()).then(
        pl.coalesce(exact, number.cast(pl.Int64, strict=False))
    )
    return _Value(value, {reason: given.is_not_null() & value.is_null()})


def _read_json(source: pl.Expr, dtype: pl.DataType) -> _Value:
    if isinstance(dtype, pl.Struct):
        source = encode_struct(source, dtype)
    elif dtype != pl.String:
        return _Value(pl.lit(None, dtype=pl.String), {"invalid json": source.is_not_null()})
    text = _blank_to_null(source)
    text = pl.when(text.str.strip_chars() != "null").then(text)
    value = text.map_batches(compact_documents, return_dtype=pl.String)
    return _Value(value, {"invalid json": text.is_not_null() & value.is_null()})


def encode_struct(struct: pl.Expr, dtype: pl.Struct) -> pl.Expr:
    """Write a struct as JSON without its null fields.

    A struct column has every field in every row; the same rows as text have not.
    """
    fields = []
    for field in dtype.fields:
        value = struct.struct.field(field.name)
        key = pl.lit(json.dumps(field.name, ensure_ascii=False) + ":")
        inner = field.dtype
        if isinstance(inner, pl.Struct):
            fields.append(key + encode_struct(value, inner))
        else:
            pair: pl.Expr = pl.struct(value.alias("v")).struct.json_encode()
            text = pair.str.strip_prefix('{"v":').str.head(-1)
            fields.append(pl.when(value.is_not_null()).then(key + text))
    if not fields:
        return pl.when(struct.is_not_null()).then(pl.lit("{}"))
    body = pl.concat_str(fields, separator=",", ignore_nulls=True)
    return pl.when(struct.is_not_null()).then("{" + body + "}")


_DEFAULTS: dict[str, list[pl.Expr]] = {
    "clients": [
        pl.col("name").fill_null(pl.col("id")),
        pl.col("subscription_status").fill_null(SubscriptionStatus.ACTIVE),
        pl.col("is_paused", "pool_opt_in").fill_null(value=False),
    ],
    "leads": [
        pl.coalesce(
            pl.col("status"),
            pl.when(pl.col("converted_at").is_not_null())
            .then(pl.lit(str(LeadStatus.CONVERTED)))
            .otherwise(pl.lit(str(LeadStatus.NEW))),
        ).alias("status"),
        pl.coalesce("updated_at", "converted_at", "created_at").alias("updated_at"),
    ],
    "activities": [
        pl.coalesce(
            pl.col("channel"),
            pl.col("action").replace_strict(
                {action: str(channel) for action, channel in OUTBOUND_ACTIONS.items()},
                default=None,
                return_dtype=pl.String,
            ),
        ).alias("channel"),
        pl.col("created_at").fill_null(pl.col("occurred_at")),
    ],
}
