"""The lead score: points of five components, their weighted sum, and its tier.

- data_quality, at most 20: e-mail 4, verified 8; phone 3, verified 6; LinkedIn 4; personal
  e-mail 2.
- authority, 25: by title, see `AUTHORITY_POINTS`; no title 0.
- company_fit, 25: industry 10; head count in range 8, up to four times its upper end 5, else 3;
  country 7, another English-speaking one 4.
- timing, 15: role younger than 6 months 6, than 12 months 3; hiring 5; funded within 12 months 4,
  within 24 months 2.
- risk, 15: 15, less 10 if bounced, 15 if unsubscribed, 15 if a competitor, 5 if the title is weak;
  not below 0.

What is not known gets the lowest number of its rule: an e-mail address not known to be verified is
unverified, a flag that is null counts as false, an unknown head count gets 3. A date says more than
the flag beside it (`role_started_at`, `is_new_role`); without a date the flag gets the full points.
A date later than the time of scoring is none.

The rules are those of the agency's scorer, not estimates: what they are worth is learned as the
weights (`evaluation.score_weights`).
"""

import json
import unicodedata
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import polars as pl

from conversion_assets.domain.errors import InputError
from conversion_assets.domain.ideal_profile import DEFAULT_PROFILE, ENGLISH_SPEAKING, IdealProfile
from conversion_assets.domain.terms import (
    DEFAULT_WEIGHTS,
    SCORE_CAPS,
    SCORE_COMPONENTS,
    TIERS,
    WEIGHT_SUM,
    LeadStatus,
)
from conversion_assets.features.frames import UTC, select_canonical
from conversion_assets.features.titles import normalize_authorities
from conversion_assets.scoring.weights import find_fault

SCORE_VERSION = "score-1"
"""Moves whenever the same lead, weights and profile would get another score."""

RISK_WEIGHT = round(1 - WEIGHT_SUM, 2)
"""What the learned weights leave for risk, 0.15."""

AUTHORITY_POINTS: dict[str, int] = {
    "principal": 25,
    "chief": 22,
    "vp": 18,
    "director": 15,
    "senior_manager": 10,
    "manager": 7,
    "other": 5,
}
"""Points of each step of `features.titles.AUTHORITIES`."""

WEAK_AUTHORITY = 5
"""A title is weak that is none of the named steps, or none at all."""

SCORE_DIGITS = 6
"""Digits kept of the score: without rounding a sum that is 85 may miss its tier by 1e-14."""

FREE_MAIL: tuple[str, ...] = (
    "gmail.com", "googlemail.com", "yahoo.com", "yahoo.com.au", "yahoo.co.uk", "yahoo.co.in",
    "ymail.com", "rocketmail.com", "hotmail.com", "hotmail.co.uk", "hotmail.com.au", "outlook.com",
    "outlook.com.au", "live.com", "live.com.au", "live.co.uk", "msn.com", "icloud.com", "me.com",
    "mac.com", "aol.com", "proton.me", "protonmail.com", "gmx.com", "gmx.de", "gmx.net", "web.de",
    "mail.com", "zoho.com", "yandex.com", "yandex.ru", "mail.ru", "qq.com", "163.com",
    "bigpond.com", "bigpond.net.au", "optusnet.com.au", "btinternet.com", "comcast.net",
    "rediffmail.com", "orange.fr", "free.fr", "libero.it", "uol.com.br", "fastmail.com",
)  # fmt: skip
"""Domains where people have private addresses: an address there is a personal e-mail."""

COMPONENT_NAMES: tuple[str, ...] = (*SCORE_COMPONENTS, "risk")
"""All five components."""

SCORED_COLUMNS: dict[str, pl.DataType] = {
    "client_id": pl.String(),
    "id": pl.String(),
    "email": pl.String(),
    "email_verified": pl.Boolean(),
    "personal_email": pl.String(),
    "phone": pl.String(),
    "phone_verified": pl.Boolean(),
    "linkedin_url": pl.String(),
    "title": pl.String(),
    "industry": pl.String(),
    "employee_count": pl.Int64(),
    "country": pl.String(),
    "is_new_role": pl.Boolean(),
    "role_started_at": UTC,
    "is_hiring": pl.Boolean(),
    "recently_funded": pl.Boolean(),
    "funded_at": UTC,
    "is_competitor": pl.Boolean(),
    "status": pl.String(),
}
"""Columns of a lead that its score depends on, and its key."""

SCORE_COLUMNS: dict[str, pl.DataType] = {
    "als_score": pl.Float64(),
    "als_tier": pl.String(),
    "als_components": pl.String(),
    "als_weights_used": pl.String(),
    "scored_at": UTC,
}
"""Columns of a lead that scoring writes."""

_JSON_ORDER = sorted(COMPONENT_NAMES, key=lambda name: (len(name), name))
"""Members in the order, and with the spaces, in which PostgreSQL gives JSONB back as text: whether
a stored score is the same can then be told by its text on either database."""
_EMAIL = r"^\s*[^@\s]+@[^@\s]+\s*$"
_FREE_MAIL = r"(?i)@(?:" + "|".join(name.replace(".", r"\.") for name in FREE_MAIL) + r")\s*$"
# Fewer digits are an extension or a placeholder.
_PHONE = r"(?:\d\D*){5}"
_PLACEHOLDERS = ["", "-", "n/a", "na", "none", "null", "unknown"]


def compute_lead_scores(
    leads: pl.DataFrame,
    weights: pl.DataFrame,
    profiles: Mapping[str, IdealProfile],
    now: datetime | pl.Series,
) -> pl.DataFrame:
    """Score the leads of any number of clients.

    Args:
        leads: Canonical lead rows; columns other than client_id and id may be missing.
        weights: client_id and the four weights, one row per client; clients without a row have
            the default weights.
        profiles: Ideal profile by client; clients without one have `DEFAULT_PROFILE`.
        now: Time of scoring, with zone; or one time per lead.

    Returns:
        client_id, id and `SCORE_COLUMNS`, one row per lead in the order given. The score is
        between 0 and 100; components are points, and weights include the 0.15 of risk, as JSON.

    Raises:
        InputError: a weight cannot be used, a column cannot be read, or the time has no zone.

    Example:
        >>> from datetime import UTC
        >>> leads = pl.DataFrame({"client_id": ["a"], "id": ["1"], "title": ["CEO"],
        ...                       "email": ["x@y.example"], "is_hiring": [True]})
        >>> now = datetime(2026, 3, 1, tzinfo=UTC)
        >>> scores = compute_lead_scores(leads, pl.DataFrame(), {}, now)
        >>> scores.select("als_score", "als_tier", "als_components").row(0)
        ... # doctest: +NORMALIZE_WHITESPACE
        (52.0, 'cool',
        '{"risk": 15, "timing": 5, "authority": 25, "company_fit": 3, "data_quality": 4}')
    """
    points = compute_components(leads, profiles, now)
    by_client = _weights_by_client(weights, points["client_id"])
    weighted = points.join(by_client, on="client_id", how="left", maintain_order="left")
    # Multiplied by what a point is worth: a division by one number is rounded otherwise than a
    # division by a column of it, and every way to cut the leads into parts must give the same.
    total = pl.sum_horizontal(
        pl.col(name) * pl.col(f"weight_{name}") * (100 / SCORE_CAPS[name])
        for name in COMPONENT_NAMES
    )
    score = total.clip(0, 100).round(SCORE_DIGITS)
    return weighted.select(
        "client_id",
        "id",
        score.alias("als_score"),
        _tier(score).alias("als_tier"),
        _components_text(points).alias("als_components"),
        "als_weights_used",
        _moments(now, points.height).alias("scored_at"),
    )


def compute_components(
    leads: pl.DataFrame, profiles: Mapping[str, IdealProfile], now: datetime | pl.Series
) -> pl.DataFrame:
    """Points of the five components.

    Args:
        leads: See `compute_lead_scores`; so for the others.
        profiles: Ideal profile by client.
        now: Time of scoring, with zone.

    Returns:
        client_id, id, data_quality, authority, company_fit, timing, risk (Int64), one row per
        lead in the order given.

    Raises:
        InputError: a column cannot be read, or the time has no zone.
    """
    rows = select_canonical(leads, SCORED_COLUMNS, where="leads")
    authority = normalize_authorities(rows["title"]).replace_strict(
        AUTHORITY_POINTS, default=0, return_dtype=pl.Int64
    )
    rows = rows.with_columns(
        authority=authority,
        company_fit=_company_fit(rows, profiles),
        now=_moments(now, rows.height),
    )
    return rows.select(
        "client_id",
        "id",
        data_quality=_data_quality(),
        authority="authority",
        company_fit="company_fit",
        timing=_timing(),
        risk=_risk(),
    )


def _points(*conditions: tuple[pl.Expr, int]) -> pl.Expr:
    """Points of the first condition that holds; unknown counts as not."""
    points: pl.Expr = pl.lit(0, dtype=pl.Int64)
    for condition, value in reversed(conditions):
        points = pl.when(condition).then(pl.lit(value, dtype=pl.Int64)).otherwise(points)
    return points


def _data_quality() -> pl.Expr:
    has_email = pl.col("email").str.contains(_EMAIL)
    has_phone = pl.col("phone").str.contains(_PHONE)
    linkedin = pl.col("linkedin_url").str.strip_chars().str.to_lowercase()
    has_personal = pl.col("personal_email").str.contains(_EMAIL).fill_null(value=False)
    is_personal = has_email & pl.col("email").str.contains(_FREE_MAIL)
    return (
        _points((has_email & pl.col("email_verified"), 8), (has_email, 4))
        + _points((has_phone & pl.col("phone_verified"), 6), (has_phone, 3))
        + _points((~linkedin.is_in(_PLACEHOLDERS), 4))
        + _points((has_personal | is_personal, 2))
    )


def _timing() -> pl.Expr:
    def since(name: str) -> pl.Expr:
        return pl.when(pl.col(name) <= pl.col("now")).then(name)

    role, funded = since("role_started_at"), since("funded_at")
    half_a_year, year, two_years = (
        pl.col("now").dt.offset_by(f"-{months}mo") for months in (6, 12, 24)
    )
    return (
        _points(
            (role > half_a_year, 6),
            (role > year, 3),
            (role.is_null() & pl.col("is_new_role"), 6),
        )
        + _points((pl.col("is_hiring"), 5))
        + _points(
            (funded >= year, 4),
            (funded >= two_years, 2),
            (funded.is_null() & pl.col("recently_funded"), 4),
        )
    )


def _risk() -> pl.Expr:
    status = pl.col("status").str.strip_chars().str.to_lowercase()
    lost = (
        _points((status == LeadStatus.BOUNCED.value, 10))
        + _points((status == LeadStatus.UNSUBSCRIBED.value, 15))
        + _points((pl.col("is_competitor"), 15))
        + _points((pl.col("authority") <= WEAK_AUTHORITY, 5))
    )
    return (pl.lit(SCORE_CAPS["risk"], dtype=pl.Int64) - lost).clip(lower_bound=0)


def _company_fit(rows: pl.DataFrame, profiles: Mapping[str, IdealProfile]) -> pl.Series:
    """Points of company fit, one per row."""
    ids = rows["client_id"].unique().drop_nulls().to_list()
    known = {client: profiles.get(client, DEFAULT_PROFILE) for client in sorted(ids)}
    ranges = pl.DataFrame(
        [
            (client, profile.employees.lowest, profile.employees.highest)
            for client, profile in known.items()
            if profile.employees is not None
        ],
        schema={"client_id": pl.String(), "lowest": pl.Int64(), "highest": pl.Int64()},
        orient="row",
    )
    facts = rows.select(
        "client_id",
        "employee_count",
        industry=_by_distinct(rows["industry"], fold_name),
        country=_by_distinct(rows["country"], fold_country),
    ).join(ranges, on="client_id", how="left", maintain_order="left")
    industries = _wanted("industry", {c: p.industries for c, p in known.items()}, fold_name)
    countries = _wanted("country", {c: p.countries for c, p in known.items()}, fold_country)
    for name, wanted in (("industry", industries), ("country", countries)):
        facts = facts.join(wanted, on=["client_id", name], how="left", maintain_order="left")
    count = pl.col("employee_count")
    return facts.select(
        company_fit=_points((pl.col("is_wanted_industry"), 10))
        + _points(
            (count.is_between("lowest", "highest"), 8),
            ((count > pl.col("highest")) & (count <= 4 * pl.col("highest")), 5),
            (pl.lit(value=True), 3),
        )
        + _points(
            (pl.col("is_wanted_country"), 7),
            (pl.col("country").is_in(sorted(set(ENGLISH_SPEAKING.values()))), 4),
        )
    ).to_series()


def fold_name(name: str) -> str | None:
    """Form in which names of industries are compared; None for a name without any character.

    Example:
        >>> fold_name("  Oil & GAS ") == fold_name("oil  and gas")
        True
    """
    text = unicodedata.normalize("NFKC", name).casefold().replace("&", " and ")
    return " ".join(text.split()) or None


def fold_country(name: str) -> str | None:
    """Form in which names of countries are compared.

    Spellings and codes of English-speaking countries meet; others are compared as written.

    Example:
        >>> fold_country("U.S.A."), fold_country("the United Kingdom"), fold_country("Österreich")
        ('united states', 'united kingdom', 'österreich')
    """
    folded = fold_name(name.replace(".", ""))
    if folded is None:
        return None
    plain = folded.removeprefix("the ")
    return ENGLISH_SPEAKING.get(plain, plain)


def _by_distinct(column: pl.Series, function: Callable[[str], str | None]) -> pl.Series:
    """Apply a function to each distinct text of a column."""
    distinct = column.drop_nulls().unique()
    folded = pl.Series([function(text) for text in distinct.to_list()], dtype=pl.String)
    return column.replace_strict(distinct, folded, default=None, return_dtype=pl.String)


def _wanted(
    name: str, lists: Mapping[str, tuple[str, ...]], fold: Callable[[str], str | None]
) -> pl.DataFrame:
    """One row per client and name it looks for."""
    pairs = {(client, fold(text)) for client, texts in lists.items() for text in texts}
    return pl.DataFrame(
        sorted(pair for pair in pairs if pair[1] is not None),
        schema={"client_id": pl.String(), name: pl.String()},
        orient="row",
    ).with_columns(pl.lit(value=True).alias(f"is_wanted_{name}"))


def _weights_by_client(weights: pl.DataFrame, client_ids: pl.Series) -> pl.DataFrame:
    """Weights of each client that has leads, as columns and as the JSON text to store."""
    given: dict[str, dict[str, Any]] = {}
    if weights.width:
        chosen = weights.filter(pl.col("client_id").is_in(client_ids.unique().implode()))
        for row in chosen.select("client_id", *SCORE_COMPONENTS).iter_rows(named=True):
            client = row.pop("client_id")
            fault = "they stand twice" if client in given else find_fault(row)
            if fault:
                raise InputError(f"score weights of client {client!r} cannot be used: {fault}")
            given[client] = row
    rows = []
    for client in sorted(client_ids.unique().drop_nulls().to_list()):
        used = {**given.get(client, DEFAULT_WEIGHTS), "risk": RISK_WEIGHT}
        numbers = {name: float(used[name]) for name in COMPONENT_NAMES}
        text = json.dumps({name: numbers[name] for name in _JSON_ORDER})
        rows.append((client, *numbers.values(), text))
    columns = [f"weight_{name}" for name in COMPONENT_NAMES]
    schema = {
        "client_id": pl.String(),
        **dict.fromkeys(columns, pl.Float64()),
        "als_weights_used": pl.String(),
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def _components_text(points: pl.DataFrame) -> pl.Series:
    """The five components as JSON; each distinct set of points is written once."""
    distinct = points.select(COMPONENT_NAMES).unique()
    members = [pl.format(f'"{name}": {{}}', pl.col(name)) for name in _JSON_ORDER]
    text = pl.concat_str(pl.lit("{"), pl.concat_str(members, separator=", "), pl.lit("}"))
    return points.join(
        distinct.with_columns(text=text), on=COMPONENT_NAMES, how="left", maintain_order="left"
    )["text"]


def _tier(score: pl.Expr) -> pl.Expr:
    tier: pl.Expr = pl.lit(TIERS[-1][0])
    for name, lowest in reversed(TIERS[:-1]):
        tier = pl.when(score >= lowest).then(pl.lit(name)).otherwise(tier)
    return pl.when(score.is_not_null()).then(tier)


def _moments(now: datetime | pl.Series, height: int) -> pl.Series:
    """Time of scoring of each row, in UTC."""
    if isinstance(now, pl.Series):
        if not isinstance(now.dtype, pl.Datetime) or now.dtype.time_zone is None:
            raise InputError("the times of scoring have no zone; give them one, such as UTC")
        return now.dt.convert_time_zone("UTC").dt.cast_time_unit("us").alias("now")
    if now.tzinfo is None:
        raise InputError(f"time {now.isoformat()} has no zone; give it one, for example +00:00")
    return pl.Series("now", [now], dtype=UTC).new_from_index(0, height)
