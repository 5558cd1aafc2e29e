"""The forward record in a refresh: read it, grade what is due, add what is claimed anew."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import polars as pl
from sqlalchemy import Engine

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.forecasts import FORECASTS, HORIZON_DAYS
from conversion_assets.domain.terms import PatternType
from conversion_assets.evaluation.forward import (
    forget_later,
    grade_forecasts,
    make_forecasts,
    put_grades,
)
from conversion_assets.learning import Detection
from conversion_assets.storage.forecasts import ForecastChanges, read_forecasts
from conversion_assets.survey import isolate_failures


@dataclass(frozen=True)
class ForwardState:
    """Forecasts of the clients of a refresh.

    Attributes:
        written: What the repository holds, whenever made.
        known: What may be known at the moment of the refresh, with the grades given now.
        graded: Those that were graded now.
        errors: Clients whose forecasts could not be graded.
    """

    written: pl.DataFrame
    known: pl.DataFrame
    graded: pl.DataFrame
    errors: dict[str, Exception]


def look_back(
    engine: Engine,
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    client_ids: Sequence[str],
    *,
    as_of: datetime,
    config: LearningConfig,
) -> ForwardState:
    """Read the clients' forecasts and grade those that are due, with what is known at `as_of`.

    Args:
        engine: System of record.
        leads: `lead_features` of at least these clients.
        touches: `touch_features` of at least these clients.
        client_ids: The clients.
        as_of: Nothing later is known: a grade that was given later is given anew.
        config: Thresholds.

    Raises:
        UnreachableError: the database cannot be reached.
    """
    longest = timedelta(days=max(config.window_days, HORIZON_DAYS))
    written = read_forecasts(engine, client_ids, made_after=as_of - longest)
    then = forget_later(written, as_of)

    def grade(group: Sequence[str]) -> pl.DataFrame:
        own = then.filter(pl.col("client_id").is_in(list(group)))
        return grade_forecasts(own, leads, touches, as_of=as_of, config=config)

    parts, errors = isolate_failures(grade, then["client_id"].unique().sort().to_list())
    graded = pl.concat([pl.DataFrame(schema=FORECASTS), *parts])
    return ForwardState(written, put_grades(then, graded), graded, errors)


def add_record(fingerprints: Mapping[str, str], state: ForwardState) -> dict[str, str]:
    """Fingerprints that move with the grades too, for clients that have any."""
    graded = state.known.filter(pl.col("graded_as_of").is_not_null())
    texts = {
        str(client): part.drop("graded_as_of").write_json()
        for (client,), part in graded.group_by("client_id", maintain_order=True)
    }
    return {
        client: hashlib.sha256(f"{fingerprint}\1{texts[client]}".encode()).hexdigest()[:32]
        if client in texts
        else fingerprint
        for client, fingerprint in fingerprints.items()
    }


def list_changes(
    detection: Detection, state: ForwardState, kinds: Collection[PatternType], as_of: datetime
) -> dict[str, ForecastChanges]:
    """What to store with each client: its new grades, and its claims as new forecasts.

    Only claims of documents that are stored become forecasts.
    """
    stored = pl.DataFrame(
        [(client, kind.value) for client, kind in detection.documents if kind in kinds],
        schema={"client_id": pl.String, "pattern_type": pl.String},
        orient="row",
    )
    claims = detection.claims.join(stored, on=["client_id", "pattern_type"], how="semi")
    made = make_forecasts(claims, state.written, as_of)
    clients = {*made["client_id"], *state.graded["client_id"]}
    of_client = {
        name: {str(key): part for (key,), part in frame.group_by("client_id", maintain_order=True)}
        for name, frame in (("made", made), ("graded", state.graded))
    }
    return {
        client: ForecastChanges(
            **{name: parts[client] for name, parts in of_client.items() if client in parts}
        )
        for client in clients
    }
