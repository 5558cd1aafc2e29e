"""Frames at the border of the feature room: canonical dtypes in, the same for every caller."""

from collections.abc import Mapping

import polars as pl

from conversion_assets.domain.errors import InputError

UTC = pl.Datetime("us", "UTC")

CLIENT_COLUMNS: dict[str, pl.DataType] = {
    "id": pl.String(),
    "timezone": pl.String(),
    "deleted_at": UTC,
}
LEAD_COLUMNS: dict[str, pl.DataType] = {
    "id": pl.String(),
    "client_id": pl.String(),
    "first_name": pl.String(),
    "title": pl.String(),
    "company_name": pl.String(),
    "industry": pl.String(),
    "employee_count": pl.Int64(),
    "country": pl.String(),
    "timezone": pl.String(),
    "source": pl.String(),
    "is_new_role": pl.Boolean(),
    "is_hiring": pl.Boolean(),
    "recently_funded": pl.Boolean(),
    "status": pl.String(),
    "als_tier": pl.String(),
    "als_components": pl.String(),
    "scored_at": UTC,
    "created_at": UTC,
    "converted_at": UTC,
    "updated_at": UTC,
    "deleted_at": UTC,
}
ACTIVITY_COLUMNS: dict[str, pl.DataType] = {
    "id": pl.String(),
    "client_id": pl.String(),
    "lead_id": pl.String(),
    "channel": pl.String(),
    "action": pl.String(),
    "sequence_id": pl.String(),
    "content_snapshot": pl.String(),
    "metadata": pl.String(),
    "led_to_booking": pl.Boolean(),
    "occurred_at": UTC,
}
NOTE_SCHEMA: dict[str, pl.DataType] = {
    "client_id": pl.String(),
    "reason": pl.String(),
    "rows": pl.Int64(),
}


def select_canonical(
    frame: pl.DataFrame, columns: Mapping[str, pl.DataType], *, where: str
) -> pl.DataFrame:
    """The given columns in their order and dtype; absent ones are filled with nulls.

    Text times are read as ISO 8601 with zone, JSON columns may be structs, ids may be numbers.

    Raises:
        InputError: a time has no zone, or a column cannot be read as its type.
    """
    expressions = [
        _cast(frame.schema[name], name, dtype, where)
        if name in frame.columns
        else _null(name, dtype)
        for name, dtype in columns.items()
    ]
    try:
        return frame.select(expressions)
    except pl.exceptions.PolarsError as error:
        line = " ".join(str(error).split())[:200]
        raise InputError(f"{where}: a column is not of its type: {line}") from None


def _null(name: str, dtype: pl.DataType) -> pl.Expr:
    # A literal alone would give one row for an empty frame.
    return pl.repeat(None, pl.len(), dtype=dtype).alias(name)


def _cast(given: pl.DataType, name: str, dtype: pl.DataType, where: str) -> pl.Expr:
    column = pl.col(name)
    if given == dtype:
        return column
    if isinstance(dtype, pl.Datetime):
        return _cast_time(column, given, where=f"{where}.{name}")
    if isinstance(dtype, pl.String) and isinstance(given, pl.Struct):
        return column.struct.json_encode()
    if isinstance(dtype, pl.Boolean) and isinstance(given, pl.String):
        folded = column.str.to_lowercase().str.strip_chars()
        return folded.replace_strict(
            {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False},
            default=None,
            return_dtype=pl.Boolean,
        ).alias(name)
    return column.cast(dtype)


def _cast_time(column: pl.Expr, given: pl.DataType, *, where: str) -> pl.Expr:
    if isinstance(given, pl.Datetime):
        if given.time_zone is None:
            raise InputError(f"{where}: times have no zone; give them with one, such as UTC")
        return column.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    if isinstance(given, pl.String):
        # %#z reads "Z", "+05:30" and "+0530"; a time without any of them is an error here.
        text = column.str.strip_chars().str.replace(" ", "T", literal=True)
        return text.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", time_zone="UTC")
    if isinstance(given, pl.Null):
        return column.cast(UTC)
    raise InputError(f"{where}: {given} is no time; use ISO 8601 text or a timestamp with zone")
