"""Attributes that do nothing themselves and go with something that does.

In generated clients one source works twice as well, or half of what converted before July, or
before a day in the middle of July, is taken out. Two passengers are put into their features: an
industry of leads and a subject pattern of touches, on nine of ten rows of that source, or from that
day on, and on one of ten elsewhere, and meaningless beside it. Whoever calls a passenger a win or a
loser has been misled.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from unittest.mock import patch

import numpy as np
import polars as pl

from conversion_assets.detectors import ledger
from conversion_assets.features import build_features
from conversion_assets.learning import detect_patterns
from conversion_assets.synthetic.config import Effect, SyntheticConfig
from conversion_assets.synthetic.generator import Agency, generate_agency
from conversion_assets_tests.recovery.agencies import tabulate_documents
from conversion_assets_tests.recovery.marks import IS_ACT, Mark
from conversion_assets_tests.recovery.propensity_generator import (
    PropensityAgency,
    PropensityConfig,
    generate_propensity_agency,
)
from conversion_assets_tests.recovery.raw_rates import rank_by_raw_rates
from conversion_assets_tests.recovery.worlds import BASE, HAZARD, PROPENSITY, YEAR_END

Cause = Literal["source", "month", "day within a month"]
CAUSES: tuple[Cause, ...] = ("source", "month", "day within a month")
# A fifth of the leads of either generator.
GOOD_SOURCE = {HAZARD: "linkedin", PROPENSITY: "partner"}
PASSENGERS = ("industry_rankings", "subject_patterns")
OFTEN, SELDOM = 0.9, 0.1
POOR_BEFORE: dict[Cause, datetime] = {
    "month": datetime(2025, 7, 1, tzinfo=UTC),
    "day within a month": datetime(2025, 7, 12, tzinfo=UTC),
}


@dataclass(frozen=True)
class _Rows:
    leads: pl.DataFrame
    touches: pl.DataFrame
    members: pl.DataFrame
    as_of: datetime


def measure_passengers(
    clients: int, leads: int, *, cause: Cause, world: str = HAZARD, seed: int = 12
) -> list[Mark]:
    """Mark 1 where attributes go with a cause: how often a passenger is an act.

    A case is a client and a passenger. Shown beside: the same without holding causes fixed, and how
    often the source itself, which does work, is an act. Months are held fixed, not days, so of a
    change in the middle of one a part remains: that figure is shown and not asked.
    """
    good = GOOD_SOURCE[world]
    rows = _add_passengers(_make(world, clients, leads, cause, seed), cause, good, seed)
    found = _learn(rows)
    with patch.object(ledger, "HELD_EVIDENCE", 1.0):
        unchecked = _learn(rows)
    wins = rank_by_raw_rates(rows.leads, rows.touches).filter("is_win")
    cases = clients * len(PASSENGERS)
    ours, before, theirs = (
        acts.filter(pl.col("dimension").is_in(PASSENGERS)).n_unique(["client_id", "dimension"])
        / cases
        for acts in (found, unchecked, wins)
    )
    highest = np.inf if cause == "day within a month" else 0.10
    name = f"clients that hear act about what only goes with a {cause}"
    marks = [
        Mark(1, name, ours, high=highest, n=cases, world=world, baseline=theirs),
        Mark(1, f"the same, no {cause.split()[-1]} held fixed", before, n=cases, world=world),
    ]
    if cause == "source":
        right = found.filter(pl.col("lift") > 1, dimension="source_rankings", value=good)
        share = right.height / clients
        marks.append(Mark(1, "the source itself is an act", share, n=clients, world=world))
    return marks


def _make(world: str, clients: int, leads: int, cause: Cause, seed: int) -> _Rows:
    works, good = cause == "source", GOOD_SOURCE[world]
    agency: Agency | PropensityAgency
    if world == PROPENSITY:
        odds = {("source_rankings", good): 2.0} if works else {}
        agency = generate_propensity_agency(
            PropensityConfig(clients=clients, leads=leads, seed=seed, rate=BASE, odds=odds,
                             as_of=YEAR_END)
        )  # fmt: skip
    else:
        effect = Effect(dimension="source_rankings", value=good, ratio=2.0)
        agency = generate_agency(
            SyntheticConfig(clients=clients, leads=leads, seed=seed, base_conversion=BASE,
                            effects=(effect,) if works else (), as_of=YEAR_END)
        )  # fmt: skip
    features = build_features(agency.clients, agency.leads, agency.activities)
    # Nobody shares: what others say would be misled alike.
    members = agency.clients.select(client_id="id", pool_opt_in=pl.lit(value=False))
    return _Rows(features.leads, features.touches, members, YEAR_END)


def _add_passengers(rows: _Rows, cause: Cause, good: str, seed: int) -> _Rows:
    rng = np.random.default_rng([seed, 17])
    leads, touches = rows.leads, rows.touches
    if cause != "source":
        changed = POOR_BEFORE[cause]
        is_out = pl.Series(rng.random(leads.height) < 0.5, dtype=pl.Boolean)
        is_poor = (pl.col("converted_at") < changed).fill_null(value=False)
        leads = leads.filter(~(is_poor & is_out))
        touches = touches.join(leads, on="lead_id", how="semi", maintain_order="left")
        goes, goes_with = (
            frame.select(pl.col(when) >= changed).to_series()
            for frame, when in ((leads, "created_at"), (touches, "occurred_at"))
        )
    else:
        goes, goes_with = (
            frame.select((pl.col("source") == good).fill_null(value=False)).to_series()
            for frame in (leads, touches)
        )
    industry = np.where(_draw(goes, rng), "Passengers", "Others")
    is_carried = pl.Series(_draw(goes_with, rng), dtype=pl.Boolean) & pl.col("has_subject")
    return _Rows(
        leads.with_columns(industry=pl.Series(industry)),
        touches.with_columns(subject__quick_question=is_carried),
        rows.members,
        rows.as_of,
    )


def _draw(is_good: pl.Series, rng: np.random.Generator) -> np.ndarray:
    return rng.random(len(is_good)) < np.where(is_good.to_numpy(), OFTEN, SELDOM)


def _learn(rows: _Rows) -> pl.DataFrame:
    detection = detect_patterns(rows.leads, rows.touches, rows.members, as_of=rows.as_of)
    return tabulate_documents(detection).filter(IS_ACT)
