"""Mark 4: the hazard of each touch where leads drop out, and what counting per lead makes of it.

Drop-out depends on the lead: those that would convert anyway leave by converting, those that would
not are taken off earlier. Two naive answers: the share that converted among leads with so many
touches, and the share of all leads that converted at this touch.
"""

from typing import Any

import numpy as np
import polars as pl

from conversion_assets.detectors.population import select_population
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.terms import OUTBOUND_ACTIONS, PatternType
from conversion_assets.features import build_features
from conversion_assets.learning import detect_patterns
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import Agency, generate_agency
from conversion_assets_tests.recovery.marks import Mark
from conversion_assets_tests.recovery.propensity_generator import (
    PropensityAgency,
    PropensityConfig,
    generate_propensity_agency,
)
from conversion_assets_tests.recovery.worlds import HAZARD, PROPENSITY

WITHIN = 0.10
# A hazard that rests on fewer conversions is not known within 10 % by anybody: at 1,600 that is
# four standard errors. Later touches stand in the detail.
LEAST_CONVERSIONS = 1600
LAST_SHOWN = 12


def measure_touch_hazard(leads: int, *, seed: int = 4, world: str = HAZARD) -> list[Mark]:
    """Mark 4 in one client: largest relative error over the touches that can be judged."""
    agency = _make_propensity(leads, seed) if world == PROPENSITY else _make_hazard(leads, seed)
    features = build_features(agency.clients, agency.leads, agency.activities)
    as_of = SyntheticConfig().as_of
    members = agency.clients.select(client_id="id", pool_opt_in="pool_opt_in")
    detection = detect_patterns(features.leads, features.touches, members, as_of=as_of)
    ((_, document),) = [
        item for item in detection.documents.items() if item[0][1] == PatternType.WHEN
    ]
    ours = pl.DataFrame(
        [(int(e.value), e.n, e.k, e.shrunk_rate) for e in document.touch_hazard],  # type: ignore[union-attr, arg-type]
        schema=["touch_number", "n", "k", "ours"],
        orient="row",
    )
    ids = members["client_id"].to_list()
    population = select_population(features.leads, features.touches, ids, as_of, LearningConfig())
    truth = (
        population.touches.join(agency.latent_touches.select("activity_id", "hazard"),
                                on="activity_id")
        .group_by(pl.col("touch_number").cast(pl.Int64))
        .agg(truth=pl.col("hazard").mean())
    )  # fmt: skip
    table = (
        ours.join(truth, on="touch_number")
        .join(_count_per_lead(population.leads, features.touches), on="touch_number", how="left")
        .sort("touch_number")
    )
    judged = table.filter(pl.col("k") >= LEAST_CONVERSIONS * min(1.0, leads / 200_000))
    error = {
        name: float(np.abs(judged[name].to_numpy() / judged["truth"].to_numpy() - 1).max())
        for name in ("ours", "of_length", "of_all")
    }
    detail = {
        f"touch {row['touch_number']}": f"true {row['truth']:.4f}, ours {row['ours']:.4f}, of leads"
        f" with so many touches {row['of_length']:.4f}, of all leads {row['of_all']:.4f}"
        f" ({row['k']} conversions)"
        for row in table.filter(pl.col("touch_number") <= LAST_SHOWN).iter_rows(named=True)
    }
    return [
        Mark(4, f"hazard by touch, largest error, {leads:,} leads", error["ours"], high=WITHIN,
             n=judged.height, detail=detail, world=world, baseline=error["of_length"]),
        Mark(4, "share of all leads at that touch, largest error", error["of_all"], low=WITHIN,
             n=judged.height, world=world),
    ]  # fmt: skip


def _count_per_lead(leads: pl.DataFrame, touches: pl.DataFrame) -> pl.DataFrame:
    """What counting per lead says of each number of touches."""
    sent = touches.filter(~pl.col("is_after_conversion")).group_by("lead_id").agg(sent=pl.len())
    counted = leads.join(sent, on="lead_id").group_by(pl.col("sent").cast(pl.Int64))
    return (
        counted.agg(n=pl.len(), k=pl.col("is_converted").sum())
        .select(
            touch_number="sent",
            of_length=pl.col("k") / pl.col("n"),
            of_all=pl.col("k") / pl.lit(leads.height),
        )
    )  # fmt: skip


def _make_propensity(leads: int, seed: int) -> PropensityAgency:
    config = PropensityConfig(leads=leads, seed=seed, rate=0.2, lost_rate=0.8, odds={})
    return generate_propensity_agency(config)


def _make_hazard(leads: int, seed: int) -> Agency:
    """One client of frail leads; those that promise little are taken off sooner."""
    config = SyntheticConfig(
        clients=1, leads=leads, seed=seed, base_conversion=0.2, frailty=1.0, with_text=False,
        dropout=0.0, open_share=1.0,
    )  # fmt: skip
    agency = generate_agency(config)
    rng = np.random.default_rng([seed, 41])
    probability = agency.latent_leads["probability"].to_numpy()
    # Touches until somebody gives up: 3 on average for the least promising, 15 for the best.
    rank = probability.argsort().argsort() / max(len(probability), 1)
    patience = 1 + rng.geometric(1 / (3 + 12 * rank))
    limits = pl.DataFrame({"lead_id": agency.latent_leads["lead_id"], "limit": patience})
    return _cut_short(agency, limits)


def _cut_short(agency: Agency, limits: pl.DataFrame) -> Agency:
    """No touch after a lead's limit, and no conversion that such a touch brought."""
    numbered = (
        agency.activities.with_columns(is_touch=pl.col("action").is_in(list(OUTBOUND_ACTIONS)))
        .sort("lead_id", "occurred_at", "id")
        .with_columns(number=pl.col("is_touch").cum_sum().over("lead_id"))
        .join(limits, on="lead_id", maintain_order="left")
    )
    kept = numbered.filter(pl.col("number") <= pl.col("limit"))
    gone = numbered.filter("is_touch", pl.col("number") > pl.col("limit"))["lead_id"].unique()
    is_gone = pl.col("id").is_in(gone.implode())
    changed: dict[str, Any] = {
        "converted_at": pl.when(~is_gone).then("converted_at"),
        "status": pl.when(is_gone).then(pl.lit("in_sequence")).otherwise("status"),
    }
    return Agency(
        clients=agency.clients,
        leads=agency.leads.with_columns(**changed),
        activities=kept.select(agency.activities.columns),
        truth=agency.truth,
        latent_leads=agency.latent_leads,
        latent_touches=agency.latent_touches,
    )
