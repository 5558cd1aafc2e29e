"""Arrays of a batch to the canonical raw frames: ids, texts, JSON columns, times."""

import json
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from conversion_assets.domain.contracts import CONTRACTS
from conversion_assets.domain.terms import (
    BOOKING_ACTION,
    DEFAULT_WEIGHTS,
    FAILED_STATUSES,
    OUTBOUND_ACTIONS,
    TIERS,
    LeadStatus,
    SubscriptionStatus,
)
from conversion_assets.synthetic import catalog
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.design import (
    DAY,
    HOUR,
    IDEAL_EMPLOYEES,
    IDEAL_INDUSTRIES,
    Design,
    Ints,
)
from conversion_assets.synthetic.outcome import Outcome

TIME = pl.Datetime("us", "UTC")

Columns = dict[str, pl.DataType]


def _columns(table: str) -> Columns:
    # The pipeline itself writes these two later; a generated client comes without them.
    later = ("als_weights_updated_at", "conversion_sample_count")
    contract = CONTRACTS[table].columns()
    return {name: column.dtype for name, column in contract.items() if name not in later}


CLIENT_COLUMNS = _columns("clients")
LEAD_COLUMNS = _columns("leads")
ACTIVITY_COLUMNS = _columns("activities")

_SCORED_AFTER = 10 * 60
# Days before scoring: between half a year and a year, and between one year and two.
_AGED_ROLE, _AGED_FUNDING = 270, 540
# Shares of the failed statuses of leads lost within a sequence, in their order.
_FAILED_SHARES = np.cumsum([0.30, 0.15, 0.40, 0.15])
_GIVEN_UP_AFTER_DAYS = (7, 14)
_INBOUND_SHARE = 0.05
_INBOUND_AFTER = HOUR
_STATUS_LAG = 2 * HOUR


def build_clients(config: SyntheticConfig, design: Design) -> pl.DataFrame:
    """Canonical client rows of a batch."""
    numbers = pl.Series(design.client_numbers)
    names = _take(catalog.CLIENT_NAMES, design.client_numbers % len(catalog.CLIENT_NAMES))
    created = int(config.as_of.timestamp()) - (config.days + 30) * DAY
    moments = np.full(len(numbers), created)
    frame = pl.DataFrame(
        {
            "id": _client_ids(design.client_numbers),
            "name": names + " Agency " + (numbers + 1).cast(pl.String),
            "timezone": _take(config.zones, design.client["zone"]),
            "ideal_profile": _profiles(design),
            "pool_opt_in": design.client["u_pool"] < config.pool_opt_in,
            "created_at": _times(moments),
            "updated_at": _times(moments),
        }
    ).with_columns(
        subscription_status=pl.lit(str(SubscriptionStatus.ACTIVE)), is_paused=pl.lit(value=False)
    )
    return conform(frame, CLIENT_COLUMNS)


def _profiles(design: Design) -> list[str]:
    """Ideal profile of each client: some industries, a range of head counts, its own country."""
    lowest, highest = IDEAL_EMPLOYEES
    industries, countries = catalog.INDUSTRIES, catalog.COUNTRIES
    return [
        json.dumps(
            {
                "industries": [
                    industries[(ideal + step) % len(industries)] for step in range(IDEAL_INDUSTRIES)
                ],
                "employees": {"lowest": lowest, "highest": highest},
                "countries": list(countries[country : country + 1]),
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )
        for ideal, country in zip(design.client["ideal"], design.client["country"], strict=True)
    ]


def build_leads(config: SyntheticConfig, design: Design, outcome: Outcome) -> pl.DataFrame:
    """Canonical lead rows of a batch, as known when everything has happened."""
    lead = design.lead
    first = _pick_name(catalog.FIRST_NAMES, lead["u_first_name"])
    last = _pick_name(catalog.LAST_NAMES, lead["u_last_name"])
    zone = np.where(lead["zone_missing"], len(config.zones), lead["zone"])
    scored = lead["created"] + _SCORED_AFTER
    status, converted_at, updated_at = _states(config, design, outcome)
    components = pl.DataFrame(
        {
            name: lead[name]
            for name in ("data_quality", "authority", "company_fit", "timing", "risk")
        }
    )
    frame = pl.DataFrame(
        {
            "id": _lead_ids(design),
            "client_id": _client_ids(design.client_numbers).gather(design.owner),
            "first_name": first,
            "last_name": last,
            "title": _take([t.text for t in catalog.TITLES], lead["title"]),
            "company_name": companies(design),
            "industry": _take(catalog.INDUSTRIES, lead["industry"]),
            "employee_count": lead["employees"],
            "country": _take(catalog.COUNTRIES, lead["country"]),
            "timezone": _take(config.zones, zone),
            "source": _take(catalog.SOURCES, lead["source"]),
            "is_new_role": _signal(lead, "new_role"),
            "is_hiring": _signal(lead, "hiring"),
            "recently_funded": _signal(lead, "funded"),
            "status": status,
            "als_score": lead["score"],
            "als_tier": _take([name for name, _ in TIERS], lead["tier"]),
            "als_components": components.select(pl.struct(pl.all()).struct.json_encode())
            .to_series()
            .rename("als_components"),
            "scored_at": _times(scored),
            "created_at": _times(lead["created"]),
            "converted_at": converted_at,
            "updated_at": updated_at,
        }
    )
    plain = pl.col("last_name").str.to_lowercase().str.replace_all("[^a-z]", "")
    email, phone = pl.Series(lead["email"]), pl.Series(lead["phone"])
    frame = frame.with_columns(
        email=pl.when(email < 2).then(pl.format("{}.{}@example.com", plain, pl.col("id"))),
        email_verified=email == 0,
        personal_email=pl.when(pl.Series(lead["u_personal_email"] < 0.3)).then(
            pl.format("{}.{}@home.example", plain, pl.col("id"))
        ),
        # Numbers that are reserved for fiction.
        phone=pl.when(phone < 2).then(
            pl.format(
                "+1 202 555 01{}", pl.Series(design.number % 100).cast(pl.String).str.zfill(2)
            )
        ),
        phone_verified=phone == 0,
        role_started_at=_aged(lead["role_aged"], scored, _AGED_ROLE),
        funded_at=_aged(lead["funding_aged"], scored, _AGED_FUNDING),
        linkedin_url=pl.when(pl.Series(lead["u_linkedin_points"] < 0.6)).then(
            pl.format("https://www.linkedin.com/in/{}-{}", plain, pl.col("id"))
        ),
        als_weights_used=pl.lit(json.dumps(DEFAULT_WEIGHTS)),
    )
    return conform(frame, LEAD_COLUMNS)


def build_activities(
    config: SyntheticConfig, design: Design, outcome: Outcome, leads: pl.DataFrame
) -> pl.DataFrame:
    """Canonical activity rows of a batch: touches, opened e-mails, booked meetings."""
    row, position = np.nonzero(outcome.sent)
    touch = {name: design.touch[name][row, position] for name in design.touch}
    channels = list(config.channels)
    actions = {str(channel): action for action, channel in OUTBOUND_ACTIONS.items()}
    converting = outcome.converted[row] & (position == outcome.last[row])
    lead = design.lead
    touches = pl.DataFrame(
        {
            "id": touch_ids(leads["id"].gather(row), position),
            "client_id": leads["client_id"].gather(row),
            "lead_id": leads["id"].gather(row),
            "campaign_id": leads["client_id"].gather(row)
            + _take(("-camp-1", "-camp-2"), (lead["u_campaign"] * 2).astype(np.int64)).gather(row),
            "channel": _take(channels, touch["channel"]),
            "action": _take([actions.get(c, f"{c}_sent") for c in channels], touch["channel"]),
            "touch_number": position + 1,
            "sequence_id": _take(
                ("seq-a", "seq-b", "seq-c"), (lead["u_sequence_name"] * 3).astype(np.int64)
            ).gather(row),
            "led_to_booking": converting,
            "occurred_at": _times(touch["at"]),
        }
    )
    if config.with_text:
        people = leads.select("first_name", "company_name", "industry").select(
            pl.all().gather(pl.Series(row))
        )
        touches = touches.with_columns(
            content_snapshot=_contents(touch, people, touches["channel"])
        )
    opened = (touch["u_inbound"] < _INBOUND_SHARE) & (touches["channel"] == "email").to_numpy()
    inbound = (
        touches.filter(pl.Series(opened))
        .select("id", "client_id", "lead_id", "campaign_id", "channel", "occurred_at")
        .with_columns(
            pl.col("id") + "-open",
            pl.col("occurred_at") + pl.duration(seconds=_INBOUND_AFTER),
            action=pl.lit("email_opened"),
        )
    )
    parts = [touches, inbound, _bookings(config, design, outcome, touches, converting)]
    frame = pl.concat([conform(_dated(part), ACTIVITY_COLUMNS) for part in parts])
    return frame.sort("client_id", "lead_id", "occurred_at", "id")


def _aged(is_aged: NDArray[np.bool_], scored: Ints, days: int) -> pl.Series:
    """Dates some days before scoring, where the plan has one."""
    dates = _times(scored - days * DAY).to_frame("at")
    return dates.select(pl.when(pl.Series(is_aged)).then("at")).to_series()


def touch_ids(lead_ids: pl.Series, position: NDArray[np.int64]) -> pl.Series:
    """Ids of the touches at these positions of these leads."""
    labels = [f"-t{number:03d}" for number in range(1, 101)]
    return lead_ids + _take(labels, position)


def conform(frame: pl.DataFrame, columns: Columns) -> pl.DataFrame:
    """The frame with exactly these columns and types; what it lacks is null."""
    return frame.select(
        (pl.col(name) if name in frame.columns else pl.lit(None)).cast(kind).alias(name)
        for name, kind in columns.items()
    )


def companies(design: Design) -> pl.Series:
    """Company name of each lead; unique enough that no other text contains it."""
    lead = design.lead
    heads = _pick_name(catalog.COMPANY_HEADS, lead["u_company"])
    return heads + " " + _pick_name(catalog.COMPANY_TAILS, lead["u_company_tail"])


def _dated(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(created_at=pl.col("occurred_at"))


def _bookings(
    config: SyntheticConfig,
    design: Design,
    outcome: Outcome,
    touches: pl.DataFrame,
    converting: NDArray[np.bool_],
) -> pl.DataFrame:
    booked = outcome.converted & (design.lead["u_booking"] < config.booking_share)
    last = touches.filter(pl.Series(converting)).filter(pl.Series(booked[outcome.converted]))
    return last.select(
        (pl.col("lead_id") + "-meeting").alias("id"),
        "client_id",
        "lead_id",
        "campaign_id",
        "channel",
        pl.lit(BOOKING_ACTION).alias("action"),
        _times(outcome.ended_at[booked]).alias("occurred_at"),
    )


def _states(
    config: SyntheticConfig, design: Design, outcome: Outcome
) -> tuple[pl.Series, pl.Series, pl.Series]:
    """Status, converted_at and updated_at of each lead."""
    lead = design.lead
    given_up = ~outcome.converted & ~outcome.lost & (lead["u_fate"] >= config.open_share)
    low, high = _GIVEN_UP_AFTER_DAYS
    wait = ((low + lead["u_fate_time"] * (high - low)) * DAY).astype(np.int64)
    booked = outcome.converted & (lead["u_booking"] < config.booking_share)
    # Of the booked, a quarter never get the status, the others a little after the meeting.
    booked_only = booked & (lead["u_booking_kind"] < 0.25)
    late = booked & ~booked_only
    lag = np.where(late, (lead["u_booking_kind"] * _STATUS_LAG).astype(np.int64), 0)
    ended = outcome.ended_at + np.where(given_up, wait, lag)
    failed = np.minimum(np.searchsorted(_FAILED_SHARES, lead["u_fate"], side="right"), 3)
    names = [*map(str, FAILED_STATUSES), LeadStatus.CONVERTED, LeadStatus.IN_SEQUENCE]
    code = np.where(outcome.lost, failed, np.where(given_up, 3, 5))
    code = np.where(outcome.converted & ~booked_only, 4, code)
    converted_at = (
        _times(ended).to_frame("at").select(pl.when(pl.Series(code == 4)).then(pl.col("at")))
    )
    return _take(list(map(str, names)), code), converted_at.to_series(), _times(ended)


def _contents(
    touch: dict[str, NDArray[Any]], people: pl.DataFrame, channel: pl.Series
) -> pl.Series:
    """JSON content snapshot of each touch; null where the content was not kept."""
    subjects = [text for variants in catalog.SUBJECTS.values() for text in variants]
    template = _take(list(catalog.TEMPLATES), touch["template"])
    filler = _take(list(catalog.TEMPLATES.values()), touch["template"])
    # Long enough to repeat up to seven times, one sentence a step.
    frame = people.with_columns(
        subject=pl.when(pl.Series(touch["has_subject"])).then(
            _take(subjects, touch["subject"] * 3 + touch["subject_length"])
        ),
        template_id=template,
        channel=channel,
        filler=filler,
        length=pl.Series(touch["length"]),
        pain=_variant(catalog.PAIN_POINTS, touch["pain"], touch["pain_variant"]),
        angle=_variant(catalog.ANGLES, touch["angle"], touch["angle_variant"]),
        cta=_take([text for _, text in catalog.CTAS.values()], touch["cta"]),
        news=_optional(catalog.NEWS_SENTENCE, touch["recent_news"]),
        mutual=_optional(catalog.MUTUAL_SENTENCE, touch["mutual_connection"]),
        **{name: pl.Series(touch[name]) for name in ("company_mention", "industry_specific")},
        named=pl.Series(touch["first_name"]),
    )
    space = pl.lit(" ")
    body = pl.concat_str(
        pl.when("named").then(pl.format("Hi {},", "first_name")).otherwise(pl.lit("Greetings,")),
        pl.when("company_mention")
        .then(pl.format(" We follow {} with pleasure.", "company_name"))
        .otherwise(pl.lit("")),
        pl.when("industry_specific")
        .then(pl.format(" We know the {} field well.", "industry"))
        .otherwise(pl.lit("")),
        "news",
        "mutual",
        space,
        "pain",
        (space + pl.col("filler")).repeat_by("length").list.join(""),
        space,
        "angle",
        space,
        "cta",
    )
    encoded = frame.select(
        pl.struct(
            pl.col("subject").str.replace("{first}", pl.col("first_name"), literal=True),
            body.alias("body"),
            "channel",
            "template_id",
        )
        .struct.json_encode()
        .alias("content")
    )
    kept = pl.Series(touch["has_content"])
    return encoded.select(pl.when(kept).then("content")).to_series()


def _variant(
    table: dict[str, tuple[str, str]], code: NDArray[Any], variant: NDArray[Any]
) -> pl.Series:
    return _take([text for variants in table.values() for text in variants], code * 2 + variant)


def _optional(text: str, flag: NDArray[Any]) -> pl.Series:
    return _take(("", text), flag.astype(np.int64))


def _signal(lead: dict[str, NDArray[Any]], name: str) -> pl.Series:
    return _take_any(pl.Series([True, False, None]), np.where(lead[f"{name}_known"], lead[name], 2))


def _client_ids(numbers: Ints) -> pl.Series:
    return "client-" + pl.Series(numbers + 1).cast(pl.String).str.zfill(4)


def _lead_ids(design: Design) -> pl.Series:
    numbers = pl.Series(design.client_numbers + 1).cast(pl.String).str.zfill(4)
    prefix = ("c" + numbers + "-l").gather(design.owner)
    return prefix + pl.Series(design.number + 1).cast(pl.String).str.zfill(6)


def _pick_name(values: tuple[str, ...], uniform: NDArray[Any]) -> pl.Series:
    return _take(values, np.minimum((uniform * len(values)).astype(np.int64), len(values) - 1))


def _take(values: Any, codes: NDArray[Any]) -> pl.Series:
    """Value of each code; null for the code one past the end."""
    return _take_any(pl.Series([*values, None], dtype=pl.String), codes)


def _take_any(values: pl.Series, codes: NDArray[Any]) -> pl.Series:
    return values.gather(pl.Series(np.asarray(codes, dtype=np.int64)))


def _times(seconds: NDArray[Any]) -> pl.Series:
    return (pl.Series(np.asarray(seconds, dtype=np.int64)) * 1_000_000).cast(TIME)
