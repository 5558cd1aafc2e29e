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
    """

    written: pl.DataFrame
    known: pl.DataFrame
    graded: pl.DataFrame

    def add_grades(self, graded: Sequence[pl.DataFrame]) -> "ForwardState":
        """The same forecasts with grades given now, each part of other clients."""
        added = pl.concat([pl.DataFrame(schema=FORECASTS), *graded])
        return ForwardState(self.written, put_grades(self.known, added), added)


def read_record(
    engine: Engine, client_ids: Sequence[str], *, as_of: datetime, config: LearningConfig
) -> ForwardState:
    """Read the clients' forecasts as they were known at `as_of`, none graded now.

    A grade that was given later is not known: it is given anew.

    Raises:
        UnreachableError: the database cannot be reached.
    """
    longest = timedelta(days=max(config.window_days, HORIZON_DAYS))
    written = read_forecasts(engine, client_ids, made_after=as_of - longest)
    return ForwardState(written, forget_later(written, as_of), pl.DataFrame(schema=FORECASTS))


def grade_due(
    forecasts: pl.DataFrame,
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    *,
    as_of: datetime,
    config: LearningConfig,
) -> tuple[pl.DataFrame, dict[str, str]]:
    """Grade the forecasts that are due, with what is known at `as_of`.

    Args:
        forecasts: As known at `as_of`, columns of `FORECASTS`.
        leads: `lead_features` of at least their clients.
        touches: `touch_features` of at least their clients.
        as_of: Nothing later is known.
        config: Thresholds.

    Returns:
        Those graded now, and why the others of a client could not be.
    """

    def grade(group: Sequence[str]) -> pl.DataFrame:
        own = forecasts.filter(pl.col("client_id").is_in(list(group)))
        return grade_forecasts(own, leads, touches, as_of=as_of, config=config)

    parts, errors = isolate_failures(grade, forecasts["client_id"].unique().sort().to_list())
    reasons = {
        client: f"grading of forecasts: {' '.join(str(error).split())}"
        for client, error in errors.items()
    }
    return pl.concat([pl.DataFrame(schema=FORECASTS), *parts]), reasons


def look_back(
    engine: Engine,
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    client_ids: Sequence[str],
    *,
    as_of: datetime,
    config: LearningConfig,
) -> ForwardState:
    """Read the clients' forecasts and grade those that are due; see `grade_due`.

    Those of a client whose rows cannot be graded stay as they are.
    """
    state = read_record(engine, client_ids, as_of=as_of, config=config)
    graded, _ = grade_due(state.known, leads, touches, as_of=as_of, config=config)
    return state.add_grades([graded])


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

    Only claims of documents that are stored become forecasts. Clients are those of the detection.
    """
    stored = pl.DataFrame(
        [(client, kind.value) for client, kind in detection.documents if kind in kinds],
        schema={"client_id": pl.String, "pattern_type": pl.String},
        orient="row",
    )
    claims = detection.claims.join(stored, on=["client_id", "pattern_type"], how="semi")
    own = pl.col("client_id").is_in(sorted({one.client_id for one in detection.outcomes}))
    made = make_forecasts(claims, state.written.filter(own), as_of)
    graded = state.graded.filter(own)
    of_client = {
        name: {str(key): part for (key,), part in frame.group_by("client_id", maintain_order=True)}
        for name, frame in (("made", made), ("graded", graded))
    }
    return {
        client: ForecastChanges(
            **{name: parts[client] for name, parts in of_client.items() if client in parts}
        )
        for client in {*made["client_id"], *graded["client_id"]}
    }
