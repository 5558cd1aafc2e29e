"""Attributes and planned touches of generated leads, drawn before anything converts.

All random numbers of a client come from one stream that belongs to its index, as blocks of
uniforms; everything else is table look-up over all clients of a batch at once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from conversion_assets.domain.terms import DEFAULT_WEIGHTS, SCORE_CAPS, SIZE_BUCKETS, TIERS
from conversion_assets.synthetic import catalog
from conversion_assets.synthetic.clock import ZoneClock
from conversion_assets.synthetic.config import SEQUENCE_DIMENSION, SyntheticConfig

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Uniforms = dict[str, NDArray[np.float32]]

DAY = 86400
HOUR = 3600

_CLIENT_DRAWS = ("size", "zone", "base", "ideal", "pool")
_LEAD_DRAWS = (
    "created", "zone", "zone_missing", "title", "title_missing", "industry", "industry_missing",
    "source", "bucket", "employees", "new_role", "new_role_age", "hiring", "funded", "funded_age",
    "signal_missing", "email_points", "phone_points", "linkedin_points", "personal_email",
    "first_name", "last_name", "company", "company_tail", "frailty", "touches", "start", "carrier",
    "sequence_name", "campaign", "fate", "fate_time", "booking", "booking_kind", "delay",
)  # fmt: skip
_TOUCH_DRAWS = (
    "channel", "gap", "hour", "outside", "second", "subject", "subject_length", "pain",
    "pain_variant", "angle", "angle_variant", "cta", "confounded", "company_mention", "first_name",
    "recent_news", "mutual_connection", "industry_specific", "template", "length", "no_content",
    "convert", "drop", "drop_time", "inbound",
)  # fmt: skip

# Ordinary spacing: every gap is common enough to be compared, three days the most usual.
_GAP_SHARES = (0.13, 0.17, 0.20, 0.15, 0.13, 0.11, 0.11)
_WINDOW = (8, 18)
_OUTSIDE_HOURS = (6, 7, 18, 19, 20, 21)
_FIRST_TOUCH_AFTER_DAYS = 3
_SIGNAL_SHARE = 0.30
_PERSONAL_SHARE = 0.30
IDEAL_INDUSTRIES = 3
IDEAL_EMPLOYEES = (6, 100)

# Reversals: the attribute is common where conversion is rare. With odds of 4 between the halves
# and of 1.5 for the attribute, the naive effect is well below 1 and the one in every half 1.5.
SIMPSON_STRATUM_RATIO = 4.0
SIMPSON_RATIO = 1.5
_SIMPSON_COMMON, _SIMPSON_RARE = 0.70, 0.12
SIMPSON_LOW_SOURCES = ("linkedin", "cold_list", "paid_ads", "apollo")
SIMPSON_LOW_CHANNELS = ("linkedin", "voice", "sms", "mail")
SIMPSON_CTA_TYPE = "direct_ask"


@dataclass(frozen=True)
class Design:
    """Clients, leads and planned touches of a batch as arrays.

    Attributes:
        client_numbers: index of each client, shape (C,).
        client: zone, ideal industry and draws of each client, shape (C,).
        owner: row of the lead's client, shape (L,).
        number: number of the lead within its client, shape (L,).
        lead: columns of shape (L,); codes into the catalog, one past the end where missing.
        touch: columns of shape (L, T).
        planned: whether the lead's plan has this touch, shape (L, T).
    """

    client_numbers: Ints
    client: dict[str, NDArray[Any]]
    owner: Ints
    number: Ints
    lead: dict[str, NDArray[Any]]
    touch: dict[str, NDArray[Any]]
    planned: Flags


def draw_design(config: SyntheticConfig, numbers: Ints, clock: ZoneClock) -> Design:
    """Draw the clients of these indices.

    Args:
        config: what to generate.
        numbers: client indices, shape (C,).
        clock: offsets of `config.zones` over the whole time of the plan.
    """
    uniforms, owner, number = _draw_uniforms(config, numbers)
    client, lead, touch = uniforms
    _add_clients(config, client)
    _add_people(config, client, lead, owner)
    _add_score(lead, client, owner)
    planned = _add_plan(config, lead, touch)
    _add_times(config, lead, touch, clock)
    _add_content(config, lead, touch)
    return Design(numbers, client, owner, number, lead, touch, planned)


def lead_counts(config: SyntheticConfig, numbers: Ints) -> Ints:
    """Number of leads of each client."""
    if config.size_spread == 0:
        return np.full(len(numbers), config.leads, dtype=np.int64)
    uniform = np.array([_stream(config, i).random(len(_CLIENT_DRAWS))[0] for i in numbers])
    spread = np.exp(config.size_spread * ndtri(np.clip(uniform, 1e-9, 1 - 1e-9)))
    counts: Ints = np.rint(config.leads * spread).astype(np.int64)
    return counts


def _stream(config: SyntheticConfig, index: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, int(index)])


def _draw_uniforms(
    config: SyntheticConfig, numbers: Ints
) -> tuple[tuple[dict[str, Any], dict[str, Any], dict[str, Any]], Ints, Ints]:
    counts = lead_counts(config, numbers)
    ends = np.cumsum(counts)
    total, width = int(counts.sum()), config.touches[1]
    clients = np.empty((len(_CLIENT_DRAWS), len(numbers)))
    leads = np.empty((len(_LEAD_DRAWS), total), dtype=np.float64)
    touches = np.empty((len(_TOUCH_DRAWS), total, width), dtype=np.float32)
    for row, (index, end, count) in enumerate(zip(numbers, ends, counts, strict=True)):
        stream = _stream(config, index)
        part = slice(int(end - count), int(end))
        clients[:, row] = stream.random(len(_CLIENT_DRAWS))
        leads[:, part] = stream.random((len(_LEAD_DRAWS), int(count)))
        touches[:, part] = stream.random((len(_TOUCH_DRAWS), int(count), width), dtype=np.float32)
    owner = np.repeat(np.arange(len(numbers)), counts)
    number = np.arange(total) - np.repeat(ends - counts, counts)
    drawn = (
        {f"u_{name}": clients[i] for i, name in enumerate(_CLIENT_DRAWS)},
        {f"u_{name}": leads[i] for i, name in enumerate(_LEAD_DRAWS)},
        {f"u_{name}": touches[i] for i, name in enumerate(_TOUCH_DRAWS)},
    )
    return drawn, owner, number


def _pick(uniform: NDArray[Any], shares: Any) -> Ints:
    """Category of each uniform under these shares, which need not sum to 1."""
    edges = np.cumsum(np.asarray(shares, dtype=np.float64))
    edges = (edges / edges[-1]).astype(uniform.dtype)
    return np.minimum(np.searchsorted(edges, uniform, side="right"), len(edges) - 1)


def _pick_equal(uniform: NDArray[Any], count: int) -> Ints:
    return np.minimum((uniform * count).astype(np.int64), count - 1)


def _add_clients(config: SyntheticConfig, client: dict[str, Any]) -> None:
    client["zone"] = _pick_equal(client["u_zone"], len(config.zones))
    client["country"] = _zone_countries(config)[client["zone"]]
    client["ideal"] = _pick_equal(client["u_ideal"], len(catalog.INDUSTRIES))


def _zone_countries(config: SyntheticConfig) -> Ints:
    """Country code of each zone; one past the end for a zone of no listed country."""
    codes = {name: code for code, name in enumerate(catalog.COUNTRIES)}
    names = [catalog.ZONES.get(zone, "") for zone in config.zones]
    return np.array([codes.get(name, len(codes)) for name in names], dtype=np.int64)


def _add_people(
    config: SyntheticConfig, client: dict[str, Any], lead: dict[str, Any], owner: Ints
) -> None:
    titles = catalog.TITLES
    lead["zone"] = _pick_equal(lead["u_zone"], len(config.zones))
    lead["country"] = _zone_countries(config)[lead["zone"]]
    lead["zone_missing"] = lead["u_zone_missing"] < config.missing
    lead["zone_used"] = np.where(lead["zone_missing"], client["zone"][owner], lead["zone"])
    title = _pick(lead["u_title"], [t.share for t in titles])
    lead["title"] = np.where(lead["u_title_missing"] < config.missing, len(titles), title)
    industry = _pick_equal(lead["u_industry"], len(catalog.INDUSTRIES))
    missing = lead["u_industry_missing"] < config.missing
    lead["industry"] = np.where(missing, len(catalog.INDUSTRIES), industry)
    lead["source"] = _pick(lead["u_source"], catalog.SOURCE_SHARES)
    bucket = _pick(lead["u_bucket"], catalog.BUCKET_SHARES)
    tops = np.array([top for _, top in SIZE_BUCKETS])
    tops[-1] = catalog.HIGHEST_EMPLOYEE_COUNT
    bottoms = np.concatenate([[1], tops[:-1] + 1])
    width = tops[bucket] - bottoms[bucket] + 1
    lead["bucket"] = bucket
    lead["employees"] = bottoms[bucket] + (lead["u_employees"] * width).astype(np.int64)
    hiring_share: Any = _SIGNAL_SHARE
    if "source" in config.simpson:
        low = np.isin(lead["source"], [catalog.SOURCES.index(s) for s in SIMPSON_LOW_SOURCES])
        hiring_share = np.where(low, _SIMPSON_COMMON, _SIMPSON_RARE)
    unknown = lead["u_signal_missing"] < config.missing
    for name, share in (
        ("new_role", _SIGNAL_SHARE),
        ("hiring", hiring_share),
        ("funded", _SIGNAL_SHARE),
    ):
        lead[name] = np.where(unknown, 1, np.where(lead[f"u_{name}"] < share, 0, 1))
        lead[f"{name}_known"] = ~unknown
    lead["created"] = _as_of_seconds(config) - (lead["u_created"] * config.days * DAY).astype(
        np.int64
    )


def _as_of_seconds(config: SyntheticConfig) -> int:
    return int(config.as_of.timestamp())


def _add_score(lead: dict[str, Any], client: dict[str, Any], owner: Ints) -> None:
    """Components of the lead score by the rules of the domain, and the score by default weights.

    Effects on conversion need the points before there is any text, so they are drawn here; a test
    holds that `scoring.lead_score` gives the same for the rows made of them.
    """
    authority = np.array([*(t.authority for t in catalog.TITLES), 0])
    lead["authority"] = authority[lead["title"]]
    # Verified, given, or missing.
    lead["email"] = _pick(lead["u_email_points"], (0.6, 0.3, 0.1))
    lead["phone"] = _pick(lead["u_phone_points"], (0.3, 0.3, 0.4))
    lead["data_quality"] = (
        np.array([8, 4, 0])[lead["email"]]
        + np.array([6, 3, 0])[lead["phone"]]
        + np.where(lead["u_linkedin_points"] < 0.6, 4, 0)
        + np.where(lead["u_personal_email"] < 0.3, 2, 0)
    )
    count = len(catalog.INDUSTRIES)
    is_ideal = (lead["industry"] - client["ideal"][owner]) % count < IDEAL_INDUSTRIES
    is_ideal &= lead["industry"] < count
    low, high = IDEAL_EMPLOYEES
    fits = (lead["employees"] >= low) & (lead["employees"] <= high)
    near = (lead["employees"] > high) & (lead["employees"] <= 4 * high)
    home = lead["country"] == client["country"][owner]
    home &= lead["country"] < len(catalog.COUNTRIES)
    speaks = np.array([*(name in catalog.ENGLISH_SPEAKING for name in catalog.COUNTRIES), False])
    country = np.where(home, 7, np.where(speaks[lead["country"]], 4, 0))
    lead["company_fit"] = (
        np.where(is_ideal, 10, 0) + np.where(fits, 8, np.where(near, 5, 3)) + country
    )
    new, funded = lead["new_role"] == 0, lead["funded"] == 0
    lead["role_aged"] = ~new & (lead["u_new_role_age"] < 0.15)
    lead["funding_aged"] = ~funded & (lead["u_funded_age"] < 0.15)
    lead["timing"] = (
        np.where(new, 6, np.where(lead["role_aged"], 3, 0))
        + np.where(lead["hiring"] == 0, 5, 0)
        + np.where(funded, 4, np.where(lead["funding_aged"], 2, 0))
    )
    lead["risk"] = 15 - np.where(lead["authority"] <= 5, 5, 0)
    weights = {**DEFAULT_WEIGHTS, "risk": 0.15}
    score = sum(100 * w * lead[name] / SCORE_CAPS[name] for name, w in weights.items())
    lead["score"] = np.clip(np.asarray(score, dtype=np.float64), 0, 100)
    lows = np.array([low for _, low in TIERS])
    lead["tier"] = np.argmax(lead["score"][:, None] >= lows[None, :], axis=1)


def _add_plan(config: SyntheticConfig, lead: dict[str, Any], touch: dict[str, Any]) -> Flags:
    low, high = config.touches
    length = low + _pick_equal(lead["u_touches"], high - low + 1)
    names = list(config.channels)
    channel = _pick(touch["u_channel"], list(config.channels.values()))
    sequences = [e.value for e in config.effects if e.dimension == SEQUENCE_DIMENSION]
    for row, sequence in enumerate(sequences):
        lower = row / len(sequences) * config.sequence_share
        upper = (row + 1) / len(sequences) * config.sequence_share
        carries = (lead["u_carrier"] >= lower) & (lead["u_carrier"] < upper)
        codes = [names.index(str(name)) for name in sequence][:high]  # type: ignore[union-attr]
        channel[carries, : len(codes)] = codes
    touch["channel"] = channel
    lead["length"] = length
    planned: Flags = np.arange(high)[None, :] < length[:, None]
    return planned


def _add_times(
    config: SyntheticConfig, lead: dict[str, Any], touch: dict[str, Any], clock: ZoneClock
) -> None:
    gap = 1 + _pick(touch["u_gap"], _GAP_SHARES)
    gap[:, 0] = 1 + _pick_equal(lead["u_start"], _FIRST_TOUCH_AFTER_DAYS)
    first, last = _WINDOW
    hour = first + _pick_equal(touch["u_hour"], last - first)
    outside = np.array(_OUTSIDE_HOURS)[_pick_equal(touch["u_hour"], len(_OUTSIDE_HOURS))]
    hour = np.where(touch["u_outside"] < config.outside_hours, outside, hour)
    zone = lead["zone_used"][:, None]
    created_day = clock.to_local(lead["zone_used"], lead["created"]) // DAY
    day = created_day[:, None] + np.cumsum(gap, axis=1)
    local = day * DAY + hour * HOUR + (touch["u_second"] * (HOUR - 1)).astype(np.int64)
    utc = clock.to_utc(zone, local)
    local = clock.to_local(zone, utc)
    touch["at"] = utc
    touch["hour"] = local // HOUR % 24
    # 1 January 1970 was a Thursday.
    touch["weekday"] = (local // DAY + 3) % 7
    days = np.zeros_like(utc)
    days[:, 1:] = np.floor((utc[:, 1:] - utc[:, :-1]) / DAY + 0.5).astype(np.int64)
    touch["gap_days"] = days


def _add_content(config: SyntheticConfig, lead: dict[str, Any], touch: dict[str, Any]) -> None:
    names = list(config.channels)
    emails = touch["channel"] == (names.index("email") if "email" in names else -1)
    subject = _pick_equal(touch["u_subject"], len(catalog.SUBJECTS))
    touch["has_subject"] = emails
    touch["subject"] = np.where(emails, subject, len(catalog.SUBJECTS) - 1)
    touch["subject_length"] = _pick_equal(touch["u_subject_length"], 3)
    touch["pain"] = _pick_equal(touch["u_pain"], len(catalog.PAIN_POINTS))
    touch["pain_variant"] = _pick_equal(touch["u_pain_variant"], 2)
    touch["angle"] = _pick_equal(touch["u_angle"], len(catalog.ANGLES))
    touch["angle_variant"] = _pick_equal(touch["u_angle_variant"], 2)
    touch["cta"] = _ctas(config, touch, names)
    for flag in catalog.PERSONAL:
        touch[flag] = touch[f"u_{flag}"] < _PERSONAL_SHARE
    # A subject that opens with the first name is a personal touch of its own.
    touch["first_name"] |= touch["subject"] == list(catalog.SUBJECTS).index("name_dash")
    touch["industry_specific"] &= (lead["industry"] < len(catalog.INDUSTRIES))[:, None]
    touch["template"] = _pick_equal(touch["u_template"], len(catalog.TEMPLATES))
    is_short = touch["channel"] == (names.index("sms") if "sms" in names else -1)
    touch["length"] = np.where(
        is_short, _pick_equal(touch["u_length"], 2), _pick_equal(touch["u_length"], 8)
    )
    touch["has_content"] = touch["u_no_content"] >= config.missing


def _ctas(config: SyntheticConfig, touch: dict[str, Any], names: list[str]) -> Ints:
    cta = _pick_equal(touch["u_cta"], len(catalog.CTAS))
    if "channel" not in config.simpson:
        return cta
    kinds = [kind for kind, _ in catalog.CTAS.values()]
    own = np.flatnonzero([kind == SIMPSON_CTA_TYPE for kind in kinds])
    others = np.flatnonzero([kind != SIMPSON_CTA_TYPE for kind in kinds])
    low = np.isin(touch["channel"], [names.index(c) for c in SIMPSON_LOW_CHANNELS if c in names])
    is_own = touch["u_confounded"] < np.where(low, _SIMPSON_COMMON, _SIMPSON_RARE)
    rest = others[_pick_equal(touch["u_cta"], len(others))]
    return np.where(is_own, own[_pick_equal(touch["u_cta"], len(own))], rest)
