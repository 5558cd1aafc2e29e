"""Synthetic agencies with a known truth, for recovery tests, the demo and benchmarks.

Every lead is drawn with attributes and a planned sequence of touches; at each touch it converts
with a known hazard (:mod:`conversion_assets.synthetic.outcome`). The truth says which effects were
planted; the latent frames hold the probability of every lead and the hazard of every touch, so the
true rate of any cell of any feature is a mean over them.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from conversion_assets.domain.terms import BOOKING_ACTION, LeadStatus
from conversion_assets.synthetic import catalog, design, frames, outcome
from conversion_assets.synthetic.clock import ZoneClock
from conversion_assets.synthetic.config import (
    CHANNEL_DIMENSIONS,
    COMPONENT_DIMENSION,
    LEAD_DIMENSIONS,
    NUMBER_DIMENSIONS,
    SEQUENCE_DIMENSION,
    TOUCH_DIMENSIONS,
    Effect,
    SyntheticConfig,
)

TRUTH_VERSION = "1.0"
# Planned touches per batch: about 200 MB of arrays, whatever the number of clients.
_BATCH_TOUCHES = 1_000_000

# Where else an effect shows because one attribute is made of another, or contains it.
_TITLE = ("title_rankings.seniority", "title_rankings.function", "title_rankings.title")
_IMPLIED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_TITLE, (*_TITLE, COMPONENT_DIMENSION, "channel_by_tier")),
    "industry_rankings": (COMPONENT_DIMENSION, "channel_by_tier"),
    "country_rankings": (COMPONENT_DIMENSION, "channel_by_tier"),
    "size_analysis.distribution": (COMPONENT_DIMENSION, "channel_by_tier"),
    "timing_signals.new_role": (COMPONENT_DIMENSION, "channel_by_tier"),
    "timing_signals.hiring": (COMPONENT_DIMENSION, "channel_by_tier"),
    "timing_signals.funded": (COMPONENT_DIMENSION, "channel_by_tier"),
    "ctas.by_type": ("ctas.effective",),
    "ctas.effective": ("ctas.by_type",),
    "subject_patterns": ("channel_by_tier", "personalization_lift"),
    "personalization_lift": ("subject_patterns",),
    "best_days": ("day_hour",),
    "best_hours": ("day_hour",),
    "channel": ("first_touch", "multi_channel", "winning_sequences", "channel_by_tier"),
    "first_touch": ("channel", "multi_channel", "winning_sequences", "channel_by_tier"),
    "winning_sequences": ("channel", "first_touch", "multi_channel", "channel_by_tier"),
}
_COMPONENT_OF: dict[str, tuple[str, ...]] = {
    "data_quality": (),
    "authority": _TITLE,
    "company_fit": ("industry_rankings", "country_rankings", "size_analysis.distribution"),
    "timing": ("timing_signals.new_role", "timing_signals.hiring", "timing_signals.funded"),
}


@dataclass(frozen=True)
class Agency:
    """Generated rows and what is true of them.

    Attributes:
        clients: canonical raw client rows, sorted by id.
        leads: canonical raw lead rows, sorted by (client_id, id).
        activities: canonical raw activity rows, sorted by (client_id, lead_id, occurred_at, id).
        truth: JSON-able record of what was planted.
        latent_leads: client_id, lead_id and `probability` to convert in the end.
        latent_touches: client_id, lead_id, activity_id and `hazard` of each touch sent, whether it
            is a conversion (`is_event`), and the attributes it was meant to have; `gap` effects
            hold on `rounded_gap_days`, the gap rounded to the nearest day.

    The true rate of a cell of touches is the mean `hazard` of its touches, that of a cell of leads
    the mean `probability` of its leads, once joined to their features by id.
    """

    clients: pl.DataFrame
    leads: pl.DataFrame
    activities: pl.DataFrame
    truth: dict[str, Any]
    latent_leads: pl.DataFrame
    latent_touches: pl.DataFrame


def generate_agency(config: SyntheticConfig) -> Agency:
    """Generate clients, leads and activities, and the truth about them.

    Args:
        config: what to generate; the same record gives the same rows, and the rows of client i do
            not depend on which other clients are generated.

    Raises:
        InputError: a zone of the config is unknown.

    Example:
        >>> agency = generate_agency(SyntheticConfig(clients=2, leads=50, seed=1))
        >>> agency.leads.height, agency.truth["null"]
        (100, False)
    """
    end = int(config.as_of.timestamp())
    # Seven days is the longest gap; a week more for the first touch and what follows the last.
    clock = ZoneClock(
        config.zones, end - config.days * design.DAY, end + (config.touches[1] + 2) * 7 * design.DAY
    )
    numbers = np.arange(config.first_client, config.first_client + config.clients)
    parts = [_generate_batch(config, batch, clock) for batch in _batches(config, numbers)]
    return Agency(
        clients=_stack(parts, "clients"),
        leads=_stack(parts, "leads"),
        activities=_stack(parts, "activities"),
        truth=_truth(config, [entry for part in parts for entry in part.truth["clients"]]),
        latent_leads=_stack(parts, "latent_leads"),
        latent_touches=_stack(parts, "latent_touches"),
    )


def known_at(agency: Agency, as_of: datetime) -> Agency:
    """The agency as its tables stood at a time: nothing that happened later is in it.

    Conversions, losses and bookings that came later are undone, later touches and leads absent.

    Args:
        agency: generated, best with `include_future`.
        as_of: time with zone.
    """
    moment = pl.lit(as_of).cast(frames.TIME)
    activities = agency.activities.filter(pl.col("occurred_at") <= moment)
    leads = agency.leads.filter(pl.col("created_at") <= moment)
    seen = activities.group_by("lead_id").agg(last_at=pl.col("occurred_at").max())
    is_later = pl.col("updated_at") > moment
    is_scored = pl.col("scored_at") <= moment
    before = (
        pl.when(pl.col("last_at").is_not_null())
        .then(pl.lit(str(LeadStatus.IN_SEQUENCE)))
        .when(is_scored)
        .then(pl.lit(str(LeadStatus.SCORED)))
        .otherwise(pl.lit(str(LeadStatus.NEW)))
    )
    until = pl.max_horizontal("created_at", pl.when(is_scored).then("scored_at"), "last_at")
    score_columns = ["als_score", "als_tier", "als_components", "als_weights_used", "scored_at"]
    leads = (
        leads.join(seen, left_on="id", right_on="lead_id", how="left", maintain_order="left")
        .with_columns(
            status=pl.when(is_later).then(before).otherwise("status"),
            converted_at=pl.when(pl.col("converted_at") <= moment).then("converted_at"),
            updated_at=pl.when(is_later).then(until).otherwise("updated_at"),
            **{name: pl.when(is_scored).then(name) for name in score_columns},
        )
        .drop("last_at")
    )
    converted = pl.concat(
        [
            leads.filter(pl.col("converted_at").is_not_null()).get_column("id"),
            activities.filter(pl.col("action") == BOOKING_ACTION).get_column("lead_id"),
        ]
    ).unique()
    is_known = pl.col("lead_id").is_in(converted.implode())
    latent_touches = agency.latent_touches.filter(
        pl.col("activity_id").is_in(activities["id"].implode())
    )
    return Agency(
        clients=agency.clients,
        leads=leads,
        activities=activities.with_columns(led_to_booking=pl.col("led_to_booking") & is_known),
        truth={**agency.truth, "as_of": as_of.isoformat()},
        latent_leads=agency.latent_leads.filter(pl.col("lead_id").is_in(leads["id"].implode())),
        latent_touches=latent_touches.with_columns(is_event=pl.col("is_event") & is_known),
    )


def _batches(config: SyntheticConfig, numbers: design.Ints) -> list[design.Ints]:
    counts = design.lead_counts(config, numbers) * config.touches[1]
    group = np.cumsum(counts) // _BATCH_TOUCHES
    cuts = np.flatnonzero(np.diff(group)) + 1
    return [part for part in np.split(numbers, cuts) if len(part)] or [numbers]


def _stack(parts: list[Agency], name: str) -> pl.DataFrame:
    stacked: pl.DataFrame = pl.concat([getattr(part, name) for part in parts])
    return stacked


def _generate_batch(config: SyntheticConfig, numbers: design.Ints, clock: ZoneClock) -> Agency:
    plan = design.draw_design(config, numbers, clock)
    result = outcome.draw_outcome(config, plan)
    clients = frames.build_clients(config, plan)
    leads = frames.build_leads(config, plan, result)
    activities = frames.build_activities(config, plan, result, leads)
    batch = Agency(
        clients=clients,
        leads=leads,
        activities=activities,
        truth={"clients": _client_truths(config, plan, result, clients)},
        latent_leads=leads.select(
            "client_id", pl.col("id").alias("lead_id"), pl.Series("probability", result.probability)
        ),
        latent_touches=_latent_touches(config, plan, result, leads),
    )
    return batch if config.include_future else known_at(batch, config.as_of)


def _latent_touches(
    config: SyntheticConfig, plan: design.Design, result: outcome.Outcome, leads: pl.DataFrame
) -> pl.DataFrame:
    row, position = np.nonzero(result.sent)
    touch = {
        name: plan.touch[name][row, position] for name in plan.touch if not name.startswith("u_")
    }
    lead_id = leads["id"].gather(pl.Series(row))
    labels = {
        "channel": tuple(config.channels),
        "subject": tuple(catalog.SUBJECTS),
        "pain": tuple(catalog.PAIN_POINTS),
        "angle": tuple(catalog.ANGLES),
        "cta": tuple(catalog.CTAS),
        "template": tuple(catalog.TEMPLATES),
    }
    columns: dict[str, Any] = {
        "client_id": leads["client_id"].gather(pl.Series(row)),
        "lead_id": lead_id,
        "activity_id": frames.touch_ids(lead_id, position),
        "hazard": result.hazard[row, position],
        "is_event": result.converted[row] & (position == result.last[row]),
        "touch_number": (position + 1).astype(np.int32),
        "local_weekday": (touch["weekday"] + 1).astype(np.int8),
        "local_hour": touch["hour"].astype(np.int8),
        "rounded_gap_days": touch["gap_days"].astype(np.int32),
        "has_content": touch["has_content"],
        **{name: touch[name] for name in catalog.PERSONAL},
    }
    for name, values in labels.items():
        kind = pl.Enum([value for value in values if value])
        known = pl.Series([value or None for value in values], dtype=kind)
        columns[name] = known.gather(pl.Series(touch[name]))
    return pl.DataFrame(columns)


def _client_truths(
    config: SyntheticConfig, plan: design.Design, result: outcome.Outcome, clients: pl.DataFrame
) -> list[dict[str, Any]]:
    counts = np.bincount(plan.owner, minlength=len(plan.client_numbers))
    entries = []
    for row, client_id in enumerate(clients["id"]):
        effects = [_entry(effect, client_id) for effect in result.effects[row]]
        effects += [] if config.null else _simpson_entries(config, client_id)
        entries.append(
            {
                "client_id": client_id,
                "leads": int(counts[row]),
                "expected_conversion": float(result.expected[row]),
                "base_hazard": float(result.base[row]),
                "touch_hazard": [float(hazard) for hazard in result.by_touch[row]],
                "effects": effects,
                "affected_dimensions": _affected(config, result.effects[row]),
            }
        )
    return entries


def _entry(effect: Effect, client_id: str) -> dict[str, Any]:
    value = list(effect.value) if isinstance(effect.value, tuple) else effect.value
    direction = "up" if effect.ratio > 1 else "down" if effect.ratio < 1 else "none"
    return {
        "client_id": client_id,
        "pattern": effect.pattern,
        "dimension": effect.dimension,
        "value": value,
        "direction": direction,
        "ratio": effect.ratio,
        "scale": effect.scale,
        "kind": "planted",
    }


def _simpson_entries(config: SyntheticConfig, client_id: str) -> list[dict[str, Any]]:
    places = {
        "source": ("who", "timing_signals.hiring", True, "odds"),
        "channel": ("what", "ctas.by_type", design.SIMPSON_CTA_TYPE, "hazard"),
    }
    return [
        {
            "client_id": client_id,
            "pattern": places[stratum][0],
            "dimension": places[stratum][1],
            "value": places[stratum][2],
            "direction": "up",
            "naive_direction": "down",
            "ratio": design.SIMPSON_RATIO,
            "scale": places[stratum][3],
            "kind": "simpson",
            "stratum": stratum,
        }
        for stratum in sorted(config.simpson)
    ]


def _affected(config: SyntheticConfig, effects: tuple[Effect, ...]) -> list[str]:
    """Dimensions in which some true rate differs from the base rate; all others are null.

    Every lead-level cause, frailty too, depletes: touch_hazard then falls with the touch number.
    """
    found: set[str] = set()
    for effect in effects:
        if effect.ratio == 1:
            continue
        found |= {effect.dimension, *_IMPLIED.get(effect.dimension, ())}
        if effect.dimension == COMPONENT_DIMENSION:
            found |= {*_COMPONENT_OF[str(effect.value)], "channel_by_tier"}
        if effect.scale == "odds":
            found.add("touch_hazard")
    if not config.null and "source" in config.simpson:
        found |= {"source_rankings", "timing_signals.hiring", COMPONENT_DIMENSION}
        found |= {"channel_by_tier", "touch_hazard"}
    if not config.null and "channel" in config.simpson:
        found |= {"ctas.by_type", "ctas.effective", "subject_patterns", *_IMPLIED["channel"]}
        found.add("channel")
    if config.frailty > 0:
        found.add("touch_hazard")
    return sorted(found)


def _truth(config: SyntheticConfig, clients: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "version": TRUTH_VERSION,
        "config": config.model_dump(mode="json", exclude={"effects"}),
        "null": config.null,
        "as_of": config.as_of.isoformat(),
        "dimensions": [
            *LEAD_DIMENSIONS,
            COMPONENT_DIMENSION,
            *TOUCH_DIMENSIONS,
            *NUMBER_DIMENSIONS,
            "day_hour",
            *CHANNEL_DIMENSIONS,
            SEQUENCE_DIMENSION,
            "multi_channel",
            "channel_by_tier",
        ],
        "effects": [effect for client in clients for effect in client["effects"]],
        "clients": [{k: v for k, v in client.items() if k != "effects"} for client in clients],
    }
