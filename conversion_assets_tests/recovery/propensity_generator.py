"""A second generator with another mechanism, so that a detector is not tested on its own model.

Here a lead has a propensity and either will or will not convert; its touches come as a Poisson
process. By default they are blind to the moment of conversion: no touch causes anything, nobody
minds the clock, and the converting touch is simply the last one before the moment. With `answers`
touches come by day, and a lead that will convert answers one of them, drawn in proportion to what
the touches are worth; the others compete with it. In neither case is there a hazard that is drawn
touch by touch.

Touches stop at the conversion, when the lead is lost (which only leads do that would not convert)
or when the campaign ends. Drop-out thus depends on the lead, and touches per lead are cut short by
conversion: the traps for estimators that count touches per lead.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from conversion_assets.domain.terms import SCORE_CAPS, WEEKDAYS

TIME = pl.Datetime("us", "UTC")
SOURCES = ("inbound", "fair", "bought_list", "partner", "podcast")
TITLES = {
    "Chief Executive Officer": "c_level",
    "VP Sales": "vp",
    "Director of Marketing": "director",
    "Operations Manager": "manager",
    "Finance Analyst": "other",
}
CANONICAL = ("CEO", None, "Marketing Director", None, None)
CHANNELS = ("email", "linkedin", "voice", "sms")
ACTIONS = ("email_sent", "linkedin_sent", "voice_completed", "sms_sent")
COUNTRIES = ("France", "Japan", "Kenya", "Peru")
ZONES = ("Europe/Paris", "Asia/Tokyo", "Africa/Nairobi", "America/Lima")
SUBJECTS = ("Quick question", "Partnership notes", "Our notes", "An idea for your group")
SUBJECT_PATTERNS = ("quick_question", "partnership", None, "idea_for")
CTAS = ("Please book a call with me.", "Any thoughts?", "Is it worth exploring?", "Kind regards.")
CTA_TYPES = ("direct_ask", "question", "soft_ask", None)
SEQUENCE = "winning_sequences"
COMPONENT = "recommended_weights"
DAY = 86400.0
# An answer comes within two days of its touch, and before the next touch.
LONGEST_DELAY = 2 * DAY
# Hours between which touches are sent where they are answered.
WAKING = (7, 21)
# Standard deviation of the logarithm of the time to the moment.
WAIT_SPREAD = 0.6
# Points of the quadrature over the gap to the next touch.
_NODES = 12
# Reversals: the attribute is common where conversion is rare.
SIMPSON_RATIO, SIMPSON_STRATUM_RATIO = 1.5, 4.0
SIMPSON_COMMON, SIMPSON_RARE = 0.70, 0.12
SIMPSON_HIGH_SOURCES, SIMPSON_HIGH_CHANNEL = ("inbound", "partner"), "email"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Effects = dict[tuple[str, Any], float]

LEAD_VALUES: dict[str, tuple[Any, ...]] = {
    "title_rankings.seniority": tuple(TITLES.values()),
    "title_rankings.title": CANONICAL,
    "source_rankings": SOURCES,
    "country_rankings": COUNTRIES,
    "first_touch": CHANNELS,
    "timing_signals.hiring": (True, False),
}
TOUCH_VALUES: dict[str, tuple[Any, ...]] = {
    "best_days": WEEKDAYS,
    "best_hours": tuple(range(24)),
    "subject_patterns": SUBJECT_PATTERNS,
    "ctas.by_type": CTA_TYPES,
    "channel": CHANNELS,
}
IMPLIED = {
    "title_rankings.seniority": (
        "title_rankings.seniority", "title_rankings.title", "title_rankings.function"
    ),
    "title_rankings.title": (
        "title_rankings.seniority", "title_rankings.title", "title_rankings.function"
    ),
    "first_touch": (SEQUENCE, "multi_channel"),
    SEQUENCE: ("first_touch", "multi_channel"),
    "channel": ("first_touch", "multi_channel", SEQUENCE),
    "best_days": ("day_hour",),
    "best_hours": ("day_hour",),
    "ctas.by_type": ("ctas.effective",),
}  # fmt: skip
"""Where else an effect shows because one attribute contains another."""


@dataclass(frozen=True)
class PropensityConfig:
    """What to generate.

    Attributes:
        odds: (dimension, value) to the odds ratio of a lead with that value. A value of
            `winning_sequences` is a tuple of channels, carried by `sequence_share` of the leads
            beside those that have it by chance; one of `recommended_weights` is a score component,
            and the ratio that of its cap over 0.
        answers: (dimension, value) of touches to how much rather such a touch is answered. With
            any, or with `cell_spread` or "channel" in `simpson`, touches are answered; else blind.
        mixed: each client has each of these effects with probability one half.
        cell_spread: standard deviation of the log ratio that every value of every attribute gets,
            drawn anew for each client: no cell is without effect.
        without: keys of `odds` and `answers` that are left out after all else was set, so that
            the rest is what it was: the world in which that one effect is nothing.
        simpson: reversals to build in, over "source" (hiring leads) and "channel" (direct asks).
        rate: share of leads that convert in the end, expected.
        spread: standard deviation of a lead's own log odds, of unknown cause.
        gap_days: mean days between touches.
        wait_days: median days from creation to the moment of conversion.
        campaign_days: no touch later than this after creation.
        lost_rate: share of the others that are lost within the campaign.
    """

    clients: int = 1
    leads: int = 2000
    seed: int = 1
    rate: float = 0.12
    spread: float = 0.5
    gap_days: float = 3.0
    wait_days: float = 12.0
    campaign_days: float = 45.0
    lost_rate: float = 0.4
    days: int = 360
    as_of: datetime = datetime(2026, 1, 4, tzinfo=UTC)
    odds: Effects = field(
        default_factory=lambda: {
            ("title_rankings.seniority", "director"): 2.0,
            ("source_rankings", "bought_list"): 0.5,
            ("first_touch", "linkedin"): 1.6,
        }
    )
    answers: Effects = field(default_factory=dict)
    mixed: bool = False
    cell_spread: float = 0.0
    without: frozenset[tuple[str, Any]] = frozenset()
    simpson: frozenset[str] = frozenset()
    sequence_share: float = 0.05
    zones: tuple[str, ...] = ZONES
    first_client: int = 0

    @property
    def is_answered(self) -> bool:
        """Whether leads answer one of their touches, instead of converting beside them."""
        return bool(self.answers) or self.cell_spread > 0 or "channel" in self.simpson


@dataclass(frozen=True)
class PropensityAgency:
    """Canonical raw rows, the truth, and what is known of each lead and planned touch.

    Attributes:
        latent_leads: client_id, lead_id, `probability` to convert in the end, `chance` to have
            converted by `as_of`.
        latent_touches: activity_id and `hazard` of every planned touch, sent or not: the
            probability to be the converting one, known by `as_of`, of a lead that gets it.
    """

    clients: pl.DataFrame
    leads: pl.DataFrame
    activities: pl.DataFrame
    truth: dict[str, Any]
    latent_leads: pl.DataFrame
    latent_touches: pl.DataFrame


def generate_propensity_agency(config: PropensityConfig) -> PropensityAgency:
    """Generate clients whose leads convert by propensity."""
    numbers = range(config.first_client, config.first_client + config.clients)
    parts = [_client(config, index) for index in numbers]
    names = ("clients", "leads", "activities", "latent_leads", "latent_touches")
    stacked = {name: pl.concat([part[name] for part in parts]) for name in names}
    entries = [
        _describe(config, client_id, part["planted"])
        for client_id, part in zip(stacked["clients"]["id"], parts, strict=True)
    ]
    truth = {
        "null": not (config.odds or config.is_answered or config.simpson),
        "effects": [effect for entry in entries for effect in entry.pop("effects")],
        "clients": entries,
    }
    return PropensityAgency(truth=truth, **stacked)


def _describe(config: PropensityConfig, client_id: str, planted: Effects) -> dict[str, Any]:
    """What is true of a client: its effects, and the dimensions in which some rate differs."""
    effects = [
        {
            "client_id": client_id,
            "pattern": "how" if dimension in ("first_touch", SEQUENCE) else "who",
            "dimension": dimension,
            "value": list(value) if isinstance(value, tuple) else value,
            "direction": "up" if ratio > 1 else "down",
            "ratio": ratio,
            "scale": "answers" if dimension in TOUCH_VALUES else "odds",
            "kind": "planted",
        }
        for (dimension, value), ratio in planted.items()
        if ratio != 1
    ]
    # With time from creation the moment comes nearer, and touches, gaps and channels count up.
    affected = {"touch_hazard", "optimal_gaps", "multi_channel"}
    touched = {dimension for dimension, _ in planted}
    if config.cell_spread > 0:
        touched |= {*LEAD_VALUES, *TOUCH_VALUES}
    places = {
        "source": ("who", "timing_signals.hiring", True, "source_rankings"),
        "channel": ("what", "ctas.by_type", "direct_ask", "channel"),
    }
    for stratum in sorted(config.simpson):
        pattern, dimension, value, other = places[stratum]
        touched |= {dimension, other}
        effects.append(
            {
                "client_id": client_id, "pattern": pattern, "dimension": dimension,
                "value": value, "direction": "up", "naive_direction": "down",
                "ratio": SIMPSON_RATIO, "kind": "simpson", "stratum": stratum,
            }
        )  # fmt: skip
    if "channel" in config.simpson:
        touched.add("subject_patterns")  # only one channel has subjects
    for dimension in touched:
        affected |= {dimension, *IMPLIED.get(dimension, ())}
    return {
        "client_id": client_id,
        "effects": effects,
        "affected_dimensions": sorted(affected),
    }


def _client(config: PropensityConfig, index: int) -> dict[str, Any]:
    rng = np.random.default_rng([config.seed, index, 77])
    n, client_id = config.leads, f"agency-{index}"
    drawn: dict[str, Any] = {
        "source": rng.integers(len(SOURCES), size=n),
        "title": rng.integers(len(TITLES), size=n),
        "first": rng.integers(len(CHANNELS), size=n),
        "place": rng.integers(len(config.zones), size=n),
        "employees": rng.integers(1, 600, size=n),
    }
    # A stream of its own: what was added later does not move what was there before.
    more = np.random.default_rng([config.seed, index, 78])
    width = int(config.campaign_days / config.gap_days * 2) + 20
    _draw_more(config, drawn, n, width, more)
    planted, tables = _choose_effects(config, more)
    noise = rng.standard_normal(n)
    drawn["channel"] = _draw_channels(config, drawn, n, width)
    propensity = _propensity(config, planted, tables, drawn, noise)
    will = rng.random(n) < propensity
    # The first touch is at most a day away and always before the moment.
    opening = rng.random(n) * DAY
    wait = config.wait_days * DAY * np.exp(WAIT_SPREAD * rng.standard_normal(n))
    loses = ~will & (rng.random(n) < config.lost_rate)
    lost_after = rng.random(n) * config.campaign_days * DAY
    age = rng.random(n) * config.days * DAY
    steps = rng.exponential(config.gap_days * DAY, size=(n, width))
    steps[:, 0] = opening
    at = np.cumsum(steps, axis=1)
    created = config.as_of.timestamp() - age
    if config.is_answered:
        at = _keep_hours(config, at + DAY, created, drawn["place"])
    planned = at <= config.campaign_days * DAY
    following = np.full_like(at, np.inf)
    following[:, :-1] = np.where(planned[:, 1:], at[:, 1:], np.inf)
    plan = _Plan(at, following, planned, age, created, drawn)
    if config.is_answered:
        moment, yet, known = _answer(config, planted, tables, plan, will, more)
        chance = propensity * known.sum(axis=1)
    else:
        moment = np.where(will, opening + wait, np.inf)
        yet, known = _wait(config, plan)
        waited = np.maximum(age - opening, 1e-9) / (config.wait_days * DAY)
        chance = propensity * ndtr(np.log(waited) / WAIT_SPREAD)
    lost = np.where(loses, at[:, 0] + lost_after, np.inf)
    end = np.minimum(np.minimum(moment, lost), np.minimum(config.campaign_days * DAY, age))
    row, position = np.nonzero(at <= end[:, None])
    ids = pl.Series([f"{client_id}/lead-{number}" for number in range(n)], dtype=pl.String)
    return {
        "planted": planted,
        "clients": _client_row(config, client_id),
        "leads": _lead_rows(config, client_id, ids, drawn, created, moment, lost),
        "activities": _activity_rows(
            drawn, client_id, ids.gather(pl.Series(row)), row, position,
            created[row] + at[row, position],
        ),
        "latent_leads": pl.DataFrame(
            {"client_id": pl.repeat(client_id, n, eager=True, dtype=pl.String), "lead_id": ids,
             "probability": propensity, "chance": chance}
        ),
        "latent_touches": _latent_touches(config, plan, ids, propensity, yet, known),
    }  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """Planned touches of a client's leads; times in seconds since creation, shape (L, T)."""

    at: Floats
    following: Floats
    planned: NDArray[np.bool_]
    age: Floats
    created: Floats
    drawn: dict[str, Any]


def _draw_more(
    config: PropensityConfig,
    drawn: dict[str, Any],
    n: int,
    width: int,
    rng: np.random.Generator,
) -> None:
    drawn["subject"] = rng.integers(len(SUBJECTS), size=(n, width))
    drawn["cta"] = rng.integers(len(CTAS), size=(n, width))
    drawn["other_channels"] = rng.integers(len(CHANNELS), size=(n, width))
    for name, cap in SCORE_CAPS.items():
        drawn[name] = rng.integers(cap + 1, size=n)
    drawn["u_carrier"] = rng.random(n)
    uniform, confounded = rng.random(n), rng.random((n, width))
    high = np.isin(drawn["source"], [SOURCES.index(s) for s in SIMPSON_HIGH_SOURCES])
    common = np.where(high, SIMPSON_RARE, SIMPSON_COMMON)
    drawn["hiring"] = uniform < (common if "source" in config.simpson else 0.3)
    drawn["u_confounded"] = confounded


def _draw_channels(config: PropensityConfig, drawn: dict[str, Any], n: int, width: int) -> Ints:
    """Channel of every planned touch; carriers of a planted sequence have it from the start."""
    channel: Ints = drawn["other_channels"].astype(np.int64)
    channel[:, 0] = drawn["first"]
    sequences = [value for dimension, value in config.odds if dimension == SEQUENCE]
    for number, sequence in enumerate(sequences):
        slot = np.floor(drawn["u_carrier"] / config.sequence_share * len(sequences))
        codes = [CHANNELS.index(name) for name in sequence][:width]
        channel[slot == number, : len(codes)] = codes
    drawn["first"] = channel[:, 0] if n else drawn["first"]
    if "channel" in config.simpson:
        high = channel == CHANNELS.index(SIMPSON_HIGH_CHANNEL)
        is_own = drawn["u_confounded"] < np.where(high, SIMPSON_RARE, SIMPSON_COMMON)
        others = 1 + drawn["cta"] % (len(CTAS) - 1)
        drawn["cta"] = np.where(is_own, CTA_TYPES.index("direct_ask"), others)
    return channel


def _choose_effects(
    config: PropensityConfig, rng: np.random.Generator
) -> tuple[Effects, dict[str, Floats]]:
    """Effects of this client, and the log ratios of every value where no cell is without one."""
    everything = {**config.odds, **config.answers}
    kept = rng.random(len(everything)) < 0.5
    planted = {
        key: ratio
        for (key, ratio), keep in zip(everything.items(), kept, strict=True)
        if keep or not config.mixed
    }
    tables = {
        dimension: config.cell_spread * rng.standard_normal(len(values))
        for dimension, values in {**LEAD_VALUES, **TOUCH_VALUES}.items()
    }
    # Seniority says it already.
    tables["title_rankings.title"] = np.zeros(len(CANONICAL))
    return planted, tables


def _sum_effects(
    config: PropensityConfig,
    planted: Effects,
    tables: dict[str, Floats],
    codes: dict[str, Ints],
    values: dict[str, tuple[Any, ...]],
    *,
    is_complete: bool,
) -> Any:
    """Log ratios of coded attributes, added up; without those of `config.without` if complete."""
    total: Any = 0.0
    for dimension, code in codes.items():
        table = tables[dimension].copy()
        for (name, value), ratio in planted.items():
            is_out = is_complete and (name, value) in config.without
            if name == dimension and not is_out:
                table[values[dimension].index(value)] += np.log(ratio)
        total = total + table[code]
    return total


def _propensity(
    config: PropensityConfig,
    planted: Effects,
    tables: dict[str, Floats],
    drawn: dict[str, Any],
    noise: Floats,
) -> Floats:
    codes = {
        "title_rankings.seniority": drawn["title"],
        "title_rankings.title": drawn["title"],
        "source_rankings": drawn["source"],
        "country_rankings": drawn["place"] % len(COUNTRIES),
        "first_touch": drawn["first"],
        "timing_signals.hiring": np.where(drawn["hiring"], 0, 1),
    }
    sums = partial(_sum_effects, config, planted, tables, codes, LEAD_VALUES)
    odds = config.spread * noise
    if "source" in config.simpson:
        high = np.isin(drawn["source"], [SOURCES.index(s) for s in SIMPSON_HIGH_SOURCES])
        odds = odds + np.where(high, np.log(SIMPSON_STRATUM_RATIO), 0.0)
        odds = odds + np.where(drawn["hiring"], np.log(SIMPSON_RATIO), 0.0)
    whole = odds + sums(is_complete=False) + _odd_effects(config, planted, drawn, set())
    left = _odd_effects(config, planted, drawn, set(config.without))
    level = _level(whole, config.rate)
    propensity: Floats = expit(level + odds + sums(is_complete=True) + left)
    return propensity


def _odd_effects(
    config: PropensityConfig, planted: Effects, drawn: dict[str, Any], without: set[Any]
) -> Any:
    """Effects that are no table: of a sequence and of a score component."""
    total: Any = 0.0
    for key, ratio in planted.items():
        dimension, value = key
        if key in without:
            continue
        if dimension == SEQUENCE:
            codes = [CHANNELS.index(name) for name in value]
            matches = (drawn["channel"][:, : len(codes)] == codes).all(axis=1)
            total = total + np.where(matches, np.log(ratio), 0.0)
        if dimension == COMPONENT:
            total = total + np.log(ratio) * drawn[value] / SCORE_CAPS[value]
    return total


def _level(odds: Floats, rate: float) -> float:
    """Log odds to be added so that the mean probability is the rate; by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = float(np.mean(expit(middle + odds))) if len(odds) else rate
        low, high = (middle, high) if mean < rate else (low, middle)
    return low


def _answer(
    config: PropensityConfig,
    planted: Effects,
    tables: dict[str, Floats],
    plan: _Plan,
    will: NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[Floats, Floats, Floats]:
    """Which touch each lead that will convert answers, and when.

    Returns:
        Moment of conversion, shape (L,); share of a converting lead's probability that falls on
        this touch or a later one, and that which falls on it and is known by as_of, shape (L, T).
    """
    drawn = plan.drawn
    weekday, hour = _local_time(config, plan)
    is_email = drawn["channel"] == 0
    codes = {
        "best_days": weekday,
        "best_hours": hour,
        # What has no subject is like what has none of these patterns.
        "subject_patterns": np.where(is_email, drawn["subject"], SUBJECT_PATTERNS.index(None)),
        "ctas.by_type": drawn["cta"],
        "channel": drawn["channel"],
    }
    worth = _sum_effects(config, planted, tables, codes, TOUCH_VALUES, is_complete=True)
    if "channel" in config.simpson:
        high = drawn["channel"] == CHANNELS.index(SIMPSON_HIGH_CHANNEL)
        worth = worth + np.where(high, np.log(SIMPSON_STRATUM_RATIO), 0.0)
        is_own = drawn["cta"] == CTA_TYPES.index("direct_ask")
        worth = worth + np.where(is_own, np.log(SIMPSON_RATIO), 0.0)
    # Interest fades with time since creation.
    weight = np.where(plan.planned, np.exp(worth - plan.at / (2 * config.wait_days * DAY)), 0.0)
    share = weight / weight.sum(axis=1, keepdims=True)
    reach = np.cumsum(share, axis=1)
    chosen = np.minimum((reach < rng.random(len(will))[:, None]).sum(axis=1), share.shape[1] - 1)
    slowest = np.minimum(plan.following - plan.at, LONGEST_DELAY)
    row = np.arange(len(will))
    delay = rng.random(len(will)) * slowest[row, chosen]
    moment = np.where(will, plan.at[row, chosen] + delay, np.inf)
    passed = np.clip((plan.age[:, None] - plan.at) / np.where(plan.planned, slowest, 1.0), 0, 1)
    return moment, np.cumsum(share[:, ::-1], axis=1)[:, ::-1], share * passed


def _wait(config: PropensityConfig, plan: _Plan) -> tuple[Floats, Floats]:
    """The same shares where the moment comes by itself: the last touch before it converts.

    The gap to the next touch is not yet known at a touch: shares are means over it.
    """
    opening = plan.at[:, :1]

    def passed(time: Floats) -> Floats:
        since = np.maximum(time - opening, 1e-9) / (config.wait_days * DAY)
        return np.asarray(np.where(time > opening, ndtr(np.log(since) / WAIT_SPREAD), 0.0))

    start = passed(plan.at)
    share, known = -start, -np.minimum(start, passed(plan.age[:, None]))
    for gap, weight in zip(*np.polynomial.laguerre.laggauss(_NODES), strict=True):
        following = plan.at + gap * config.gap_days * DAY
        # After the campaign's end nothing follows.
        following = np.where(following <= config.campaign_days * DAY, following, np.inf)
        share = share + weight * passed(following)
        known = known + weight * passed(np.minimum(following, plan.age[:, None]))
    # Telescoping: what is yet to come of a lead is no sum of these means.
    return 1 - start, np.where(plan.planned, np.clip(known, 0.0, None), 0.0)


def _local_time(config: PropensityConfig, plan: _Plan) -> tuple[Ints, Ints]:
    """Weekday from Monday as 0, and hour, of every planned touch where its lead lives."""
    shape = plan.at.shape
    weekday, hour = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for place, zone in enumerate(config.zones):
        own = plan.drawn["place"] == place
        local = _times((plan.created[own, None] + plan.at[own]).ravel()).dt.convert_time_zone(zone)
        width = (int(own.sum()), shape[1])
        weekday[own] = local.dt.weekday().to_numpy().reshape(width) - 1
        hour[own] = local.dt.hour().to_numpy().reshape(width)
    return weekday, hour


def _keep_hours(config: PropensityConfig, at: Floats, created: Floats, place: Ints) -> Floats:
    """Touches moved within their local day into waking hours; their order stays."""
    first, last = WAKING
    moved = at.copy()
    for code, zone in enumerate(config.zones):
        own = place == code
        local = _times((created[own, None] + at[own]).ravel()).dt.convert_time_zone(zone)
        passed = local.dt.replace_time_zone(None).cast(pl.Int64).to_numpy() / 1e6 % DAY
        moved[own] += (first * 3600 + passed * ((last - first) / 24 - 1)).reshape(at[own].shape)
    return moved


def _latent_touches(
    config: PropensityConfig,
    plan: _Plan,
    ids: pl.Series,
    propensity: Floats,
    yet: Floats,
    known: Floats,
) -> pl.DataFrame:
    """Hazard of every planned touch: of the leads that would still be there, who converts at it."""
    gone = np.clip((plan.at - plan.at[:, :1]) / (config.campaign_days * DAY), 0, 1)
    p = propensity[:, None]
    there = p * yet + (1 - p) * (1 - config.lost_rate * gone)
    row, position = np.nonzero(plan.planned)
    return pl.DataFrame(
        {
            "activity_id": _touch_ids(ids.gather(pl.Series(row)), position),
            "hazard": (p * known / np.maximum(there, 1e-300))[row, position],
        }
    )


def _touch_ids(lead_ids: pl.Series, position: Ints) -> pl.Series:
    return lead_ids + "/" + pl.Series(position).cast(pl.String).str.zfill(3)


def _client_row(config: PropensityConfig, client_id: str) -> pl.DataFrame:
    since = config.as_of - timedelta(days=config.days + 1)
    return pl.DataFrame(
        {"id": [client_id], "name": [client_id], "timezone": ["Europe/Paris"],
         "pool_opt_in": [True],
         "subscription_status": ["active"], "is_paused": [False], "created_at": [since],
         "updated_at": [since]},
        schema_overrides={"created_at": TIME, "updated_at": TIME},
    )  # fmt: skip


def _lead_rows(
    config: PropensityConfig,
    client_id: str,
    ids: pl.Series,
    drawn: dict[str, Any],
    created: Floats,
    moment: Floats,
    lost: Floats,
) -> pl.DataFrame:
    now = config.as_of.timestamp()
    converted = created + moment <= now
    failed = created + lost <= now
    ended = np.where(converted, created + moment, np.where(failed, created + lost, created))
    status = np.where(converted, "converted", np.where(failed, "not_interested", "in_sequence"))
    components = pl.DataFrame({name: pl.Series(drawn[name]) for name in SCORE_CAPS})
    frame = pl.DataFrame(
        {
            "id": ids,
            "client_id": client_id,
            "title": pl.Series(list(TITLES)).gather(pl.Series(drawn["title"])),
            "employee_count": drawn["employees"],
            "country": pl.Series(COUNTRIES).gather(pl.Series(drawn["place"] % len(COUNTRIES))),
            "timezone": pl.Series(config.zones).gather(pl.Series(drawn["place"])),
            "source": pl.Series(SOURCES).gather(pl.Series(drawn["source"])),
            "is_hiring": pl.Series(drawn["hiring"], dtype=pl.Boolean),
            "als_components": components.select(
                pl.struct(pl.all()).struct.json_encode()
            ).to_series(),
            "status": pl.Series(status, dtype=pl.String),
            "created_at": _times(created),
            "updated_at": _times(ended),
            "scored_at": _times(created),
        }
    )
    return frame.with_columns(
        converted_at=pl.when(pl.Series(converted)).then("updated_at"),
        deleted_at=pl.lit(None, dtype=TIME),
    )


def _activity_rows(
    drawn: dict[str, Any],
    client_id: str,
    lead_ids: pl.Series,
    row: Ints,
    position: Ints,
    at: Floats,
) -> pl.DataFrame:
    channel = drawn["channel"][row, position]
    subject = pl.Series(SUBJECTS).gather(pl.Series(drawn["subject"][row, position]))
    cta = pl.Series(CTAS).gather(pl.Series(drawn["cta"][row, position]))
    frame = pl.DataFrame(
        {
            "id": _touch_ids(lead_ids, position),
            "client_id": pl.repeat(client_id, len(at), eager=True),
            "lead_id": lead_ids,
            "channel": pl.Series(CHANNELS).gather(pl.Series(channel)),
            "action": pl.Series(ACTIONS).gather(pl.Series(channel)),
            "touch_number": pl.Series(position + 1, dtype=pl.Int64),
            "occurred_at": _times(at),
            "created_at": _times(at),
        }
    )
    content = pl.struct(
        pl.when(pl.Series(channel == 0)).then(subject).alias("subject"),
        ("We write to you. " + cta).alias("body"),
    )
    return frame.with_columns(content_snapshot=content.struct.json_encode())


def _times(seconds: NDArray[Any]) -> pl.Series:
    return (pl.Series(np.asarray(seconds)) * 1e6).cast(pl.Int64).cast(TIME)
