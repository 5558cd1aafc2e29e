"""Forecasts in the repository: written once, graded once, read as they stood at a moment."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl
from sqlalchemy import Connection, Engine, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from conversion_assets.domain.forecasts import FORECASTS, GRADES
from conversion_assets.storage.database import reported_connection_errors
from conversion_assets.storage.tables import pattern_forecasts


@dataclass(frozen=True)
class ForecastChanges:
    """What one refresh adds to one client's forecasts, stored with its patterns.

    Attributes:
        made: New forecasts; columns of `FORECASTS`.
        graded: Earlier ones with their grades; columns of `FORECASTS`.
    """

    made: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=FORECASTS))
    graded: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=FORECASTS))


def read_forecasts(
    engine: Engine,
    client_ids: Sequence[str],
    *,
    made_after: datetime | None = None,
    only_graded: bool = False,
) -> pl.DataFrame:
    """Forecasts about some clients with their grades, all or those made after a moment.

    Returns:
        Columns of `FORECASTS`, sorted by client, type, dimension, value and made_as_of.

    Raises:
        UnreachableError: the database cannot be reached.
    """
    columns = [pattern_forecasts.c[name] for name in FORECASTS]
    wanted = set(client_ids)
    # One client by its key; many by one pass over the table, which holds few other clients.
    query = select(*columns)
    if made_after is not None:
        query = query.where(pattern_forecasts.c.made_as_of > made_after)
    if only_graded:
        query = query.where(pattern_forecasts.c.graded_as_of.is_not(None))
    if len(wanted) == 1:
        query = query.where(pattern_forecasts.c.client_id == next(iter(wanted)))
    with reported_connection_errors(engine), engine.connect() as connection:
        rows = [tuple(row) for row in connection.execute(query) if row.client_id in wanted]
    frame = pl.DataFrame(rows, schema=FORECASTS, orient="row")
    return frame.sort("client_id", "pattern_type", "dimension", "value", "made_as_of")


def store_forecasts(
    connection: Connection,
    changes: Sequence[ForecastChanges],
    *,
    code_version: str,
    run_id: str,
) -> None:
    """Write some clients' new forecasts and grades inside the caller's transaction.

    A forecast that was made stays as it was made, and a grade as it was first given: the same
    changes again change nothing.
    """
    made = [row for one in changes for row in one.made.iter_rows(named=True)]
    graded = [row for one in changes for row in one.graded.iter_rows(named=True)]
    if made:
        connection.execute(
            _insert(connection).on_conflict_do_nothing(),
            [
                {**row, "cell": _cell(row), "code_version": code_version, "run_id": run_id}
                for row in made
            ],
        )
    if graded:
        table = pattern_forecasts
        statement = (
            update(table)
            .where(
                table.c.client_id == bindparam("of_client"),
                table.c.made_as_of == bindparam("of_moment"),
                table.c.cell == bindparam("of_cell"),
                table.c.graded_as_of.is_(None),
            )
            .values({name: bindparam(name) for name in GRADES})
        )
        connection.execute(
            statement,
            [
                {
                    "of_client": row["client_id"],
                    "of_moment": row["made_as_of"],
                    "of_cell": _cell(row),
                    **{name: row[name] for name in GRADES},
                }
                for row in graded
            ],
        )


def _cell(row: dict[str, Any]) -> str:
    text = "\0".join((row["pattern_type"], row["dimension"], row["value"]))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _insert(connection: Connection) -> postgresql.Insert | sqlite.Insert:
    if connection.dialect.name == "postgresql":
        return postgresql.insert(pattern_forecasts)
    return sqlite.insert(pattern_forecasts)
