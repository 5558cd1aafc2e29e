"""Notebook door: frames in, documents and a tidy table out, with nothing installed beside it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import polars as pl

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.errors import InputError
from conversion_assets.domain.findings import iterate_findings
from conversion_assets.domain.patterns import AnyPattern, Estimate, Outcome
from conversion_assets.domain.terms import PatternType
from conversion_assets.features import build_features
from conversion_assets.learning import detect_patterns

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    Frame: TypeAlias = pl.DataFrame | pl.LazyFrame | pd.DataFrame | pa.Table

ESTIMATE_SCHEMA: dict[str, pl.DataType] = {
    "client_id": pl.String(),
    "pattern_type": pl.String(),
    "path": pl.String(),
    "value": pl.String(),
    "unit": pl.String(),
    "n": pl.Int64(),
    "k": pl.Int64(),
    "rate": pl.Float64(),
    "shrunk_rate": pl.Float64(),
    "rate_low": pl.Float64(),
    "rate_high": pl.Float64(),
    "lift": pl.Float64(),
    "lift_low": pl.Float64(),
    "lift_high": pl.Float64(),
    "naive_lift": pl.Float64(),
    "p_lift": pl.Float64(),
    "q_value": pl.Float64(),
    "own_weight": pl.Float64(),
    "verdict": pl.String(),
}
"""Columns of the tidy table: one row per client, pattern type, path and value."""


@dataclass(frozen=True)
class LearnedPatterns(Mapping[str, dict[PatternType, AnyPattern]]):
    """Documents by client and pattern type, and the outcome of every client and type.

    Example:
        `learned["acme"][PatternType.WHO].title_rankings.seniority[0].lift`
    """

    documents: dict[tuple[str, PatternType], AnyPattern]
    outcomes: list[Outcome]

    def __getitem__(self, client_id: str) -> dict[PatternType, AnyPattern]:
        if client_id not in set(self):
            raise KeyError(client_id)
        return {kind: d for (client, kind), d in self.documents.items() if client == client_id}

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({outcome.client_id for outcome in self.outcomes}))

    def __len__(self) -> int:
        return len({outcome.client_id for outcome in self.outcomes})

    def to_polars(self) -> pl.DataFrame:
        """Every estimate of every document as one row; columns of `ESTIMATE_SCHEMA`."""
        rows = [
            _tabulate(client, kind, path, estimate)
            for (client, kind), document in sorted(self.documents.items())
            for path, estimate in iterate_findings(document)
        ]
        return pl.DataFrame(rows, schema=ESTIMATE_SCHEMA, orient="row")

    def to_pandas(self) -> "pd.DataFrame":
        """The table of `to_polars` as a pandas frame."""
        return self.to_polars().to_pandas()


def _tabulate(client: str, kind: PatternType, path: str, e: Estimate) -> tuple[Any, ...]:
    value = " > ".join(e.value) if isinstance(e.value, list) else str(e.value)
    return (
        client, kind.value, path, value, e.unit.value, e.n, e.k, e.rate, e.shrunk_rate,
        *e.interval, e.lift, *e.lift_interval, e.naive_lift, e.p_lift, e.q_value, e.own_weight,
        e.verdict.value,
    )  # fmt: skip


def learn_patterns(
    leads: "Frame",
    activities: "Frame",
    clients: "Frame | None" = None,
    *,
    as_of: datetime,
    settings: LearningConfig | None = None,
) -> LearnedPatterns:
    """Learn WHO, WHAT, WHEN and HOW for every client in the frames.

    Args:
        leads: Raw leads in the canonical columns (Polars, pandas or Arrow); id, client_id and
            created_at are required.
        activities: Raw activities; id, client_id, lead_id, action and occurred_at are required.
        clients: Raw clients; without them every client of the leads counts, has no zone of its
            own and takes no part in a pool.
        as_of: Aware time; nothing later counts.
        settings: Thresholds of detection; the defaults when not given.

    Returns:
        Documents, outcomes, and a tidy table of all estimates.

    Raises:
        InputError: A column is missing or of the wrong type, or a time has no zone.

    Example:
        >>> from datetime import UTC
        >>> leads = pl.DataFrame({"id": ["l"], "client_id": ["c"],
        ...                       "created_at": [datetime(2024, 1, 1, tzinfo=UTC)]})
        >>> sent = pl.DataFrame({"id": ["a"], "client_id": ["c"], "lead_id": ["l"],
        ...                      "action": ["email_sent"],
        ...                      "occurred_at": [datetime(2024, 1, 2, tzinfo=UTC)]})
        >>> learned = learn_patterns(leads, sent, as_of=datetime(2024, 6, 1, tzinfo=UTC))
        >>> learned.outcomes[0].reason
        '1 resolved leads, 30 are needed'
    """
    lead_rows = _read(leads, "leads", ("id", "client_id", "created_at"))
    activity_rows = _read(
        activities, "activities", ("id", "client_id", "lead_id", "action", "occurred_at")
    )
    client_rows = None if clients is None else _read(clients, "clients", ("id",))
    features = build_features(client_rows, lead_rows, activity_rows)
    detection = detect_patterns(
        features.leads,
        features.touches,
        _list_clients(client_rows, lead_rows),
        as_of=as_of,
        config=settings,
    )
    return LearnedPatterns(detection.documents, detection.outcomes)


def _read(frame: "Frame", name: str, required: tuple[str, ...]) -> pl.DataFrame:
    """Any supported frame as Polars, with its required columns present."""
    if isinstance(frame, pl.LazyFrame):
        taken = frame.collect()
    elif isinstance(frame, pl.DataFrame):
        taken = frame
    else:
        try:
            taken = pl.DataFrame(frame)
        except Exception as error:  # noqa: BLE001 - whatever conversion raises becomes one line
            raise InputError(
                f"{name}: a Polars, pandas or Arrow frame is needed, got {type(frame).__name__}"
                f" ({' '.join(str(error).split())[:160]})"
            ) from None
    missing = [column for column in required if column not in taken.columns]
    if missing:
        raise InputError(f"{name}: required columns are missing: {', '.join(missing)}")
    return taken


def _list_clients(clients: pl.DataFrame | None, leads: pl.DataFrame) -> pl.DataFrame:
    schema = {"client_id": pl.String, "pool_opt_in": pl.Boolean}
    if clients is None:
        ids = leads["client_id"].cast(pl.String).unique().drop_nulls().sort()
        return pl.DataFrame({"client_id": ids, "pool_opt_in": [False] * len(ids)}, schema=schema)
    opted = pl.col("pool_opt_in") if "pool_opt_in" in clients.columns else pl.lit(False)
    kept = (
        clients.filter(pl.col("deleted_at").is_null())
        if "deleted_at" in clients.columns
        else clients
    )
    return kept.select(
        client_id=pl.col("id").cast(pl.String), pool_opt_in=opted.cast(pl.Boolean)
    ).sort("client_id")
