"""The lead score one lead at a time, from the rules as they are written, in exact numbers."""

import calendar
import re
from datetime import datetime
from fractions import Fraction

TITLES = {
    None: 0,
    "  ": 0,
    "n/a": 0,
    "CEO": 25,
    "Chief Executive Officer": 25,
    "Co-Founder & CTO": 25,
    "Owner": 25,
    "President and CEO": 25,
    "CFO": 22,
    "President": 22,
    "Chief Revenue Officer": 22,
    "Managing Director": 22,
    "Deputy CEO": 22,
    "Vice-President, Sales": 18,
    "SVP Growth": 18,
    "VP of Marketing": 18,
    "Director of Sales": 15,
    "Head of Growth": 15,
    "Senior Director": 15,
    "Assistant VP": 15,
    "Senior Marketing Manager": 10,
    "Sr. Mgr, Ops": 10,
    "Marketing Manager": 7,
    "Team Lead": 7,
    "Senior Team Lead": 7,
    "Assistant Director": 7,
    "Director's Assistant": 5,
    "Assistant to the CEO": 5,
    "Former CEO": 5,
    "Analyst": 5,
    "Product Owner": 5,
    "经理": 5,
}
"""Points of some titles, decided by a person."""

ENGLISH = {
    "au": "australia", "australia": "australia", "usa": "united states", "us": "united states",
    "united states": "united states", "new zealand": "new zealand", "uk": "united kingdom",
}  # fmt: skip
CAPS = {"data_quality": 20, "authority": 25, "company_fit": 25, "timing": 15, "risk": 15}
GIVEN_BY_NOBODY = {"", "-", "n/a", "na", "none", "null", "unknown"}


def months_before(moment: datetime, months: int) -> datetime:
    """The same day some calendar months ago, or that month's last."""
    index = moment.year * 12 + moment.month - 1 - months
    year, month = divmod(index, 12)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)


def is_email(text: str | None) -> bool:
    parts = (text or "").strip().split("@")
    return len(parts) == 2 and all(parts) and not any(c.isspace() for p in parts for c in p)


def score_components(lead: dict, profile: dict, now: datetime) -> dict[str, int]:
    """Points of the five components of one lead."""
    authority = TITLES[lead["title"]]
    return {
        "data_quality": data_quality(lead),
        "authority": authority,
        "company_fit": company_fit(lead, profile),
        "timing": (5 if lead["is_hiring"] else 0) + role(lead, now) + funding(lead, now),
        "risk": risk(lead, authority),
    }


def data_quality(lead: dict) -> int:
    quality = 0
    if is_email(lead["email"]):
        quality += 8 if lead["email_verified"] else 4
    if sum(c in "0123456789" for c in lead["phone"] or "") >= 5:
        quality += 6 if lead["phone_verified"] else 3
    if (lead["linkedin_url"] or "").strip().lower() not in GIVEN_BY_NOBODY:
        quality += 4
    free = is_email(lead["email"]) and lead["email"].strip().lower().endswith("@gmail.com")
    if is_email(lead["personal_email"]) or free:
        quality += 2
    return quality


def company_fit(lead: dict, profile: dict) -> int:
    fit = 0
    if fold(lead["industry"]) in {fold(name) for name in profile["industries"]} - {None}:
        fit += 10
    low, high = profile["employees"] or (None, None)
    count = lead["employee_count"]
    if high is None or count is None:
        fit += 3
    elif low <= count <= high:
        fit += 8
    else:
        fit += 5 if high < count <= 4 * high else 3
    country = fold(lead["country"])
    country = ENGLISH.get(country, country)
    if country in {ENGLISH.get(fold(name), fold(name)) for name in profile["countries"]} - {None}:
        return fit + 7
    return fit + (4 if country in ENGLISH.values() else 0)


def role(lead: dict, now: datetime) -> int:
    started = lead["role_started_at"]
    if started is None or started > now:
        return 6 if lead["is_new_role"] else 0
    if started > months_before(now, 6):
        return 6
    return 3 if started > months_before(now, 12) else 0


def funding(lead: dict, now: datetime) -> int:
    funded = lead["funded_at"]
    if funded is None or funded > now:
        return 4 if lead["recently_funded"] else 0
    if funded >= months_before(now, 12):
        return 4
    return 2 if funded >= months_before(now, 24) else 0


def risk(lead: dict, authority: int) -> int:
    status = (lead["status"] or "").strip().lower()
    lost = {"bounced": 10, "unsubscribed": 15}.get(status, 0)
    lost += 15 if lead["is_competitor"] else 0
    lost += 5 if authority <= 5 else 0
    return max(15 - lost, 0)


def score(components: dict[str, int], weights: dict[str, float]) -> tuple[Fraction, str]:
    """Score and tier, exactly."""
    used = {**weights, "risk": 0.15}
    exact = {name: Fraction(str(value)) for name, value in used.items()}
    total = sum(Fraction(100 * components[n], CAPS[n]) * exact[n] for n in CAPS)
    total = min(max(total, Fraction(0)), Fraction(100))
    for tier, lowest in (("hot", 85), ("warm", 60), ("cool", 35), ("cold", 20)):
        if total >= lowest:
            return total, tier
    return total, "dead"


def fold(text: str | None) -> str | None:
    if text is None or not text.strip():
        return None
    return re.sub(r"\s+", " ", text.strip()).casefold()
