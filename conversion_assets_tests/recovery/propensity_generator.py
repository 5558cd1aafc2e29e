"""A second generator with another mechanism, so that a detector is not tested on its own model.

Here a lead has a propensity and either will or will not convert; if it will, the moment is drawn
first. Touches come as a Poisson process around the clock, blind to that moment, and stop when it
arrives, when the lead is lost or when the campaign ends. No touch causes anything: content, hour,
weekday and every channel but the first are null whatever the data seem to say, while the converting
touch is simply the last one before the moment. The number of touches is cut short by conversion,
which is the trap for estimators that count touches per lead.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

TIME = pl.Datetime("us", "UTC")
SOURCES = ("inbound", "fair", "bought_list", "partner", "podcast")
TITLES = {
    "Chief Executive Officer": "c_level",
    "VP Sales": "vp",
    "Director of Marketing": "director",
    "Operations Manager": "manager",
    "Finance Analyst": "other",
}
CHANNELS = ("email", "linkedin", "voice", "sms")
ACTIONS = ("email_sent", "linkedin_sent", "voice_completed", "sms_sent")
COUNTRIES = ("France", "Japan", "Kenya", "Peru")
ZONES = ("Europe/Paris", "Asia/Tokyo", "Africa/Nairobi", "America/Lima")
SUBJECTS = ("Quick question", "Partnership notes", "Our notes", "An idea for your group")
CTAS = ("Please book a call with me.", "Any thoughts?", "Is it worth exploring?", "Kind regards.")
DAY = 86400.0


@dataclass(frozen=True)
class PropensityConfig:
    """What to generate.

    Attributes:
        odds: (dimension, value) to the odds ratio of a lead with that value.
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
    odds: dict[tuple[str, str], float] = field(
        default_factory=lambda: {
            ("title_rankings.seniority", "director"): 2.0,
            ("source_rankings", "bought_list"): 0.5,
            ("first_touch", "linkedin"): 1.6,
        }
    )


@dataclass(frozen=True)
class PropensityAgency:
    """Canonical raw rows, the truth, and each lead's propensity."""

    clients: pl.DataFrame
    leads: pl.DataFrame
    activities: pl.DataFrame
    truth: dict[str, Any]
    latent_leads: pl.DataFrame


def generate_propensity_agency(config: PropensityConfig) -> PropensityAgency:
    """Generate clients that convert by propensity, never by touch."""
    parts = [_client(config, index) for index in range(config.clients)]
    names = ("clients", "leads", "activities", "latent_leads")
    stacked = {name: pl.concat([part[name] for part in parts]) for name in names}
    effects = [
        {
            "client_id": client_id,
            "pattern": "how" if dimension == "first_touch" else "who",
            "dimension": dimension,
            "value": value,
            "direction": "up" if ratio > 1 else "down",
            "ratio": ratio,
            "scale": "odds",
            "kind": "planted",
        }
        for client_id in stacked["clients"]["id"]
        for (dimension, value), ratio in config.odds.items()
        if ratio != 1
    ]
    return PropensityAgency(truth={"effects": effects}, **stacked)


def _client(config: PropensityConfig, index: int) -> dict[str, pl.DataFrame]:
    rng = np.random.default_rng([config.seed, index, 77])
    n, client_id = config.leads, f"agency-{index}"
    drawn = {
        "source": rng.integers(len(SOURCES), size=n),
        "title": rng.integers(len(TITLES), size=n),
        "first": rng.integers(len(CHANNELS), size=n),
        "place": rng.integers(len(ZONES), size=n),
        "employees": rng.integers(1, 600, size=n),
    }
    propensity = _propensity(config, drawn, rng)
    will = rng.random(n) < propensity
    # The first touch is at most a day away and always before the moment.
    opening = rng.random(n) * DAY
    wait = config.wait_days * DAY * np.exp(0.6 * rng.standard_normal(n))
    moment = np.where(will, opening + wait, np.inf)
    lost = np.where(
        ~will & (rng.random(n) < config.lost_rate),
        opening + rng.random(n) * config.campaign_days * DAY,
        np.inf,
    )
    age = rng.random(n) * config.days * DAY
    end = np.minimum(np.minimum(moment, lost), np.minimum(config.campaign_days * DAY, age))
    width = int(config.campaign_days / config.gap_days * 2) + 20
    steps = rng.exponential(config.gap_days * DAY, size=(n, width))
    steps[:, 0] = opening
    at = np.cumsum(steps, axis=1)
    row, position = np.nonzero(at <= end[:, None])
    channel = rng.integers(len(CHANNELS), size=(n, width))
    channel[:, 0] = drawn["first"]
    created = config.as_of.timestamp() - age
    ids = [f"{client_id}/lead-{number}" for number in range(n)]
    return {
        "clients": _client_row(config, client_id),
        "leads": _lead_rows(config, client_id, ids, drawn, created, moment, lost),
        "activities": _activity_rows(
            rng, client_id, pl.Series(ids).gather(pl.Series(row)), position,
            channel[row, position], created[row] + at[row, position],
        ),
        "latent_leads": pl.DataFrame(
            {"client_id": client_id, "lead_id": ids, "probability": propensity}
        ),
    }  # fmt: skip


def _propensity(
    config: PropensityConfig, drawn: dict[str, np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    values = {
        "title_rankings.seniority": np.array(list(TITLES.values()))[drawn["title"]],
        "source_rankings": np.array(SOURCES)[drawn["source"]],
        "first_touch": np.array(CHANNELS)[drawn["first"]],
    }
    odds = config.spread * rng.standard_normal(len(drawn["title"]))
    for (dimension, value), ratio in config.odds.items():
        odds = odds + np.log(ratio) * (values[dimension] == value)
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = float(np.mean(1 / (1 + np.exp(-(middle + odds))))) if len(odds) else config.rate
        low, high = (middle, high) if mean < config.rate else (low, middle)
    return 1 / (1 + np.exp(-(low + odds)))


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
    ids: list[str],
    drawn: dict[str, np.ndarray],
    created: np.ndarray,
    moment: np.ndarray,
    lost: np.ndarray,
) -> pl.DataFrame:
    now = config.as_of.timestamp()
    converted = created + moment <= now
    failed = created + lost <= now
    ended = np.where(converted, created + moment, np.where(failed, created + lost, created))
    status = np.where(converted, "converted", np.where(failed, "not_interested", "in_sequence"))
    frame = pl.DataFrame(
        {
            "id": pl.Series(ids, dtype=pl.String),
            "client_id": client_id,
            "title": pl.Series(list(TITLES)).gather(pl.Series(drawn["title"])),
            "employee_count": drawn["employees"],
            "country": pl.Series(COUNTRIES).gather(pl.Series(drawn["place"])),
            "timezone": pl.Series(ZONES).gather(pl.Series(drawn["place"])),
            "source": pl.Series(SOURCES).gather(pl.Series(drawn["source"])),
            "status": pl.Series(status, dtype=pl.String),
            "created_at": _times(created),
            "updated_at": _times(ended),
        }
    )
    return frame.with_columns(
        converted_at=pl.when(pl.Series(converted)).then("updated_at"),
        deleted_at=pl.lit(None, dtype=TIME),
    )


def _activity_rows(
    rng: np.random.Generator,
    client_id: str,
    lead_ids: pl.Series,
    position: np.ndarray,
    channel: np.ndarray,
    at: np.ndarray,
) -> pl.DataFrame:
    subject = pl.Series(SUBJECTS).gather(pl.Series(rng.integers(len(SUBJECTS), size=len(at))))
    cta = pl.Series(CTAS).gather(pl.Series(rng.integers(len(CTAS), size=len(at))))
    is_email = pl.Series(channel == 0)
    frame = pl.DataFrame(
        {
            "id": lead_ids + "/" + pl.Series(position).cast(pl.String).str.zfill(3),
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
        pl.when(is_email).then(subject).alias("subject"), ("We write to you. " + cta).alias("body")
    )
    return frame.with_columns(content_snapshot=content.struct.json_encode())


def _times(seconds: np.ndarray) -> pl.Series:
    return (pl.Series(np.asarray(seconds)) * 1e6).cast(pl.Int64).cast(TIME)
