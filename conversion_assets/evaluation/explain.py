"""Explain: what moved a client's patterns from one stored version to another.

The later version is reached from the earlier one in steps, each of which changes one thing and
computes again with today's code and feature rows:

1. `not reproduced (from)`: the earlier version as stored, against the same moment computed again.
   Not zero when it was stored by other code, or rows or thresholds have changed since.
2. `matured outcomes`: the leads and touches of then, with what has become known of them since.
3. `new leads`: leads and touches that came since.
4. `old leads`: what has left the learning window.
5. `pool`: what the other clients' rows say now instead of then.
6. `settings`: the thresholds and the window's length of the later version instead of the earlier
   one's, as stored with them (a version from before they were stored: today's).
7. `said before`: what the refreshes before the later version had claimed, and how those claims
   did since, instead of before the earlier version: repeated looking and the forward record.
8. `not reproduced (to)`: the later moment computed again, against the later version as stored.

The steps add up to the whole change, in this order. Another order would share effects that act
together in another way; all orders (Shapley) would cost 64 computations instead of seven.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import polars as pl

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.patterns import (
    AnyPattern,
    Estimate,
    HowPattern,
    WhatPattern,
    WhenPattern,
    WhoPattern,
)

STEPS = (
    "not reproduced (from)",
    "matured outcomes",
    "new leads",
    "old leads",
    "pool",
    "settings",
    "said before",
    "not reproduced (to)",
)
CELL = ("pattern_type", "dimension", "value")
CELLS: dict[str, pl.DataType] = {
    **dict.fromkeys(CELL, pl.String()),
    "n": pl.Int64(),
    "k": pl.Int64(),
    "lift": pl.Float64(),
    "verdict": pl.String(),
    "forward": pl.String(),
}

LEAST_CHANGE = 0.05
"""A lift that moved by less than 5 % and kept its verdict is not listed."""

Learn = Callable[
    [pl.DataFrame, pl.DataFrame, datetime, LearningConfig, datetime], Sequence[AnyPattern]
]
"""The client's documents from leads and touches (its own and the pool's), a moment, the thresholds,
and the moment before which earlier refreshes are heard."""


@dataclass(frozen=True)
class Version:
    """A stored version of a client's patterns.

    Attributes:
        as_of: Its moment.
        window_days: Length of its learning window.
        documents: Its documents.
        code_version: What it was computed by.
        settings: What it was computed with; None for a version stored without.
    """

    as_of: datetime
    window_days: int
    documents: Sequence[AnyPattern]
    code_version: str
    settings: LearningConfig | None = None

    def choose_settings(self, today: LearningConfig) -> LearningConfig:
        """Its thresholds; today's with its own window where none are stored."""
        return (self.settings or today).model_copy(update={"window_days": self.window_days})


@dataclass(frozen=True)
class Explanation:
    """What changed, and what changed it.

    Attributes:
        cells: One row per cell that changed: `CELL`, n_from, n_to, lift_from, lift_to,
            verdict_from, verdict_to (null where a version does not list the cell), factors (per
            step, the factor on the lift), decided_by (the step after which the verdict was the
            later one and stayed it; where it did not change, the step that moved the lift most).
        steps: Per step: verdicts (cells whose verdict it changed), moved (mean absolute change
            of the logarithm of the lift over all cells).
        notes: What could not be recomputed, and why.
    """

    cells: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    notes: list[str]


def explain_change(
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    *,
    client_id: str,
    earlier: Version,
    later: Version,
    learn: Learn,
    code_version: str,
    config: LearningConfig,
) -> Explanation:
    """Split the change between two versions of one client's patterns into steps.

    Args:
        leads: `lead_features` of the client and of the pool.
        touches: `touch_features` of the same clients.
        client_id: The client.
        earlier: Stored version to start from.
        later: Stored version to arrive at.
        learn: How to compute the client's documents.
        code_version: Version of the code that `learn` is.
        config: Thresholds of today, for versions that were stored without theirs.
    """
    own = (pl.col("client_id") == client_id).fill_null(value=False)
    mine = (leads.filter(own), touches.filter(own))
    others = (leads.filter(~own), touches.filter(~own))
    a, b = earlier.as_of, later.as_of
    start_a = a - timedelta(days=earlier.window_days)
    start_b = b - timedelta(days=earlier.window_days)
    frozen = _move_in_time(others, b - a, start_a, a)
    then, since = (version.choose_settings(config) for version in (earlier, later))
    # Days from the earlier window's start to the later moment, so that nothing leaves it yet.
    days = earlier.window_days + -(-(b - a) // timedelta(days=1))
    wide = then.model_copy(update={"window_days": days})
    stages = [
        tabulate_cells(earlier.documents),
        tabulate_cells(learn(*_join(mine, others), a, then, a)),
        tabulate_cells(learn(*_join(_limit(mine, start_a, a), frozen), b, wide, a)),
        tabulate_cells(learn(*_join(_limit(mine, start_a, b), frozen), b, wide, a)),
        tabulate_cells(learn(*_join(_limit(mine, start_b, b), frozen), b, wide, a)),
        tabulate_cells(learn(*_join(mine, others), b, then, a)),
    ]
    now = _join(mine, others)
    stages += [
        stages[-1] if then == since else tabulate_cells(learn(*now, b, since, a)),
        tabulate_cells(learn(*now, b, since, b)),
        tabulate_cells(later.documents),
    ]
    changed = _follow(stages)
    return Explanation(changed, _sum_steps(stages), _note(earlier, later, code_version, config))


def _limit(
    frames: tuple[pl.DataFrame, pl.DataFrame], start: datetime, end: datetime
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Leads created and touches made in (start, end]."""
    leads, touches = frames
    kept = leads.filter((pl.col("created_at") > start) & (pl.col("created_at") <= end))
    return kept, touches.filter((pl.col("occurred_at") > start) & (pl.col("occurred_at") <= end))


def _move_in_time(
    frames: tuple[pl.DataFrame, pl.DataFrame], by: timedelta, start: datetime, end: datetime
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of (start, end] with all times later: what was known then is what is known now."""
    leads, touches = _limit(frames, start, end)
    leads, touches = (
        frame.with_columns(
            (pl.col(name) + pl.lit(by)).alias(name)
            for name, kind in frame.schema.items()
            if isinstance(kind, pl.Datetime)
        )
        for frame in (leads, touches)
    )
    return leads, touches


def _join(
    mine: tuple[pl.DataFrame, pl.DataFrame], others: tuple[pl.DataFrame, pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    return pl.concat([mine[0], others[0]]), pl.concat([mine[1], others[1]])


def tabulate_cells(documents: Sequence[AnyPattern]) -> pl.DataFrame:
    """Every cell of some documents of one client under the detectors' names, columns of `CELLS`."""
    rows = [
        (
            document.type.value,
            dimension,
            prefix + _label(estimate.value),
            estimate.n,
            estimate.k,
            estimate.lift,
            estimate.verdict.value,
            estimate.forward.status if estimate.forward else None,
        )
        for document in documents
        for dimension, prefix, estimates in _list_cells(document)
        for estimate in estimates
    ]
    return pl.DataFrame(rows, schema=CELLS, orient="row").sort(CELL)


Listing = Iterator[tuple[str, str, Sequence[Estimate]]]


def _label(value: str | int | bool | list[str]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return " > ".join(value) if isinstance(value, list) else str(value)


def _list_cells(document: AnyPattern) -> Listing:
    if isinstance(document, WhoPattern):
        yield from _list_who(document)
    elif isinstance(document, WhatPattern):
        yield from _list_what(document)
    elif isinstance(document, WhenPattern):
        for name in ("best_days", "best_hours", "day_hour", "touch_hazard"):
            yield name, "", getattr(document, name)
        for gap in document.optimal_gaps:
            yield "optimal_gaps", f"{gap.position}|", gap.hazards
    elif isinstance(document, HowPattern):
        for name in ("first_touch", "multi_channel", "winning_sequences"):
            yield name, "", getattr(document, name)
        for tier, estimates in document.channel_by_tier.items():
            yield "channel_by_tier", f"{tier}|", estimates


def _list_who(document: WhoPattern) -> Listing:
    for name in ("seniority", "function", "title"):
        yield f"title_rankings.{name}", "", getattr(document.title_rankings, name)
    for name in ("industry_rankings", "source_rankings", "country_rankings"):
        yield name, "", getattr(document, name)
    yield "size_analysis", "", document.size_analysis.distribution
    for name in ("new_role", "hiring", "funded"):
        signal = getattr(document.timing_signals, name)
        found = [] if signal is None else [signal, signal.without]
        yield f"timing_signals.{name}", "", [e for e in found if e is not None]


def _list_what(document: WhatPattern) -> Listing:
    both = {
        "subject_patterns": (document.subject_patterns.winning, document.subject_patterns.losing),
        "pain_points": (document.pain_points.effective, document.pain_points.ineffective),
        "templates": (document.templates.top, document.templates.bottom),
    }
    for name, (good, bad) in both.items():
        yield name, "", [*good, *bad]
    yield "ctas.effective", "", document.ctas.effective
    yield "ctas.by_type", "", document.ctas.by_type
    yield "angles", "", document.angles
    for channel, length in document.optimal_length.items():
        yield "optimal_length", f"{channel}|", length.distribution
    yield "personalization_lift", "", list(document.personalization_lift.values())


def _follow(stages: Sequence[pl.DataFrame]) -> list[dict[str, Any]]:
    """Cells that differ between the first and the last stage, with their way between."""
    wide = _widen(stages)
    last = len(stages) - 1
    verdict, lift = [[f"{name}_{i}" for i in range(last + 1)] for name in ("verdict", "lift")]
    found = []
    for row in wide.iter_rows(named=True):
        verdicts = [row[name] for name in verdict]
        lifts = [row[name] for name in lift]
        factors = [_ratio(before, after) for before, after in pairwise(lifts)]
        total = _ratio(lifts[0], lifts[-1])
        is_same = verdicts[0] == verdicts[-1]
        if is_same and (total is None or abs(total - 1.0) < LEAST_CHANGE):
            continue
        found.append(
            {
                **{name: row[name] for name in CELL},
                "n_from": row["n_0"],
                "n_to": row[f"n_{last}"],
                "lift_from": lifts[0],
                "lift_to": lifts[-1],
                "verdict_from": verdicts[0],
                "verdict_to": verdicts[-1],
                "forward": row[f"forward_{last}"],
                "factors": dict(zip(STEPS, factors, strict=True)),
                "decided_by": _find_strongest(factors) if is_same else _find_turn(verdicts),
            }
        )
    return found


def _widen(stages: Sequence[pl.DataFrame]) -> pl.DataFrame:
    wide = pl.concat([stage.select(CELL) for stage in stages]).unique().sort(CELL)
    for number, stage in enumerate(stages):
        numbered = stage.rename({c: f"{c}_{number}" for c in stage.columns if c not in CELL})
        wide = wide.join(numbered, on=CELL, how="left", maintain_order="left")
    return wide


def _ratio(before: float | None, after: float | None) -> float | None:
    if before is None or after is None or before <= 0 or after <= 0:
        return None
    return after / before


def _find_turn(verdicts: Sequence[str | None]) -> str:
    """The step from which on the verdict is the later one."""
    turn = len(verdicts) - 1
    while turn > 1 and verdicts[turn - 1] == verdicts[-1]:
        turn -= 1
    return STEPS[turn - 1]


def _find_strongest(factors: Sequence[float | None]) -> str:
    sizes = [0.0 if f is None else max(f, 1.0 / f) for f in factors]
    return STEPS[sizes.index(max(sizes))]


def _sum_steps(stages: Sequence[pl.DataFrame]) -> list[dict[str, Any]]:
    found = []
    for step, (before, after) in zip(STEPS, pairwise(stages), strict=True):
        pair = before.join(after, on=CELL, how="full", coalesce=True, suffix="_after")
        moved = (pl.col("lift_after") / pl.col("lift")).log().abs()
        row = pair.select(
            verdicts=pl.col("verdict").ne_missing(pl.col("verdict_after")).sum(),
            moved=moved.filter(moved.is_finite()).mean(),
        ).row(0, named=True)
        found.append({"step": step, **row})
    return found


def _note(earlier: Version, later: Version, code_version: str, config: LearningConfig) -> list[str]:
    named = (("from", earlier), ("to", later))
    notes = [
        f"the version {name} was computed by code {version.code_version}, not by"
        f" {code_version}: what that changed stands in 'not reproduced ({name})'"
        for name, version in named
        if version.code_version != code_version
    ]
    notes += [
        f"the version {name} was stored without its settings: but for the window's length it is"
        " computed again with those of today"
        for name, version in named
        if version.settings is None
    ]
    then, since = (version.choose_settings(config).model_dump() for version in (earlier, later))
    moved = [f"{key} {value} to {since[key]}" for key, value in then.items() if since[key] != value]
    return [*notes, *([f"settings that differ: {', '.join(moved)}"] if moved else [])]


def read_settings(text: str | None) -> LearningConfig | None:
    """Settings as stored with a version, by whatever code; None where none are stored.

    What this code no longer knows is left out, and what that code did not know yet is the default.

    Example:
        >>> read_settings('{"window_days": 200, "forgotten": 1}').window_days
        200
    """
    if text is None:
        return None
    told = {
        key: value for key, value in json.loads(text).items() if key in LearningConfig.model_fields
    }
    return LearningConfig.model_validate(told)


def find_version(documents: Mapping[Any, Any]) -> Version:
    """The version that stored patterns of one client and moment make up.

    Args:
        documents: Stored patterns by type, as the repository gives them in force at a moment. The
            newest of them sets the moment; older ones are of an earlier refresh and left out.
    """
    as_of = max(stored.document.as_of for stored in documents.values())
    same = [stored for stored in documents.values() if stored.document.as_of == as_of]
    start, end = same[0].document.window
    return Version(
        as_of=as_of,
        window_days=round((end - start) / timedelta(days=1)),
        documents=[stored.document for stored in same],
        code_version=same[0].code_version,
        settings=read_settings(same[0].settings),
    )
