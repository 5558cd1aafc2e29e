"""The design that is replaced, in its slow and obvious form: a client at a time, rows as objects.

For each client four detectors query their own rows through the ORM, decode each touch's content
and count in dictionaries, as the requirements this project started from describe it. What is
counted is the same as everywhere here, so that the counts can be compared.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, registry

from benchmarks.contenders.breakdowns import SCHEMA, settle
from conversion_assets.domain.content import (
    DEFAULT_VOCABULARY,
    SUBJECT_LENGTHS,
    normalized_words,
)
from conversion_assets.domain.terms import (
    BOOKING_ACTION,
    OUTBOUND_ACTIONS,
    SIZE_BUCKETS,
    LeadStatus,
)
from conversion_assets.features.titles import normalize_title
from conversion_assets.storage.tables import activities, clients, leads


class Client:
    """A client as an object."""


class Lead:
    """A lead as an object."""


class Activity:
    """An activity as an object."""


_objects = registry()
for _kind, _table in ((Client, clients), (Lead, leads), (Activity, activities)):
    _objects.map_imperatively(_kind, _table)

Cell = tuple[str, str, bool]
"""Breakdown, value, and whether it converted."""


def count(engine: Engine, client_ids: Iterable[str]) -> pl.DataFrame:
    """Count the breakdowns of some clients from the system of record; see `floor.count`."""
    found = []
    for client_id in client_ids:
        with Session(engine) as session:
            client = session.get_one(Client, client_id)
            seen: Counter[tuple[str, str]] = Counter()
            converted: Counter[tuple[str, str]] = Counter()
            for detect in (_detect_who, _detect_what, _detect_when, _detect_how):
                for breakdown, value, outcome in detect(session, client):
                    seen[breakdown, value] += 1
                    converted[breakdown, value] += outcome
        found += [
            (client_id, breakdown, value, n, converted[breakdown, value])
            for (breakdown, value), n in seen.items()
        ]
    return settle(pl.DataFrame(found, schema=SCHEMA, orient="row"))


def _load(session: Session, client: Any) -> list[tuple[Any, datetime | None, list[Any]]]:
    """Each lead with the time of its conversion and its touches in order."""
    own: Iterable[Any] = session.scalars(
        select(Lead).where(leads.c.client_id == client.id, leads.c.deleted_at.is_(None))
    )
    done: dict[str, list[Any]] = {}
    for activity in session.scalars(select(Activity).where(activities.c.client_id == client.id)):
        done.setdefault(activity.lead_id, []).append(activity)
    loaded = []
    for lead in own:
        history = done.get(lead.id, [])
        times = [a.occurred_at for a in history if a.action == BOOKING_ACTION]
        if lead.status == LeadStatus.CONVERTED.value and lead.converted_at:
            times.append(lead.converted_at)
        touches = [activity for activity in history if activity.action in OUTBOUND_ACTIONS]
        touches.sort(key=lambda touch: (touch.occurred_at, touch.id))
        loaded.append((lead, min(times, default=None), touches))
    return loaded


def _detect_who(session: Session, client: Any) -> Iterator[Cell]:
    for lead, converted_at, _ in _load(session, client):
        title = normalize_title(lead.title)
        sizes = [name for name, highest in SIZE_BUCKETS if (lead.employee_count or 0) <= highest]
        values = {
            "seniority": title.seniority if lead.title else None,
            "function": title.function if lead.title else None,
            "title": title.title,
            "industry": (lead.industry or "").strip(),
            "source": (lead.source or "").strip(),
            "country": (lead.country or "").strip(),
            "size_bucket": sizes[0] if (lead.employee_count or 0) >= 1 else None,
            "is_new_role": _word(lead.is_new_role),
            "is_hiring": _word(lead.is_hiring),
            "recently_funded": _word(lead.recently_funded),
        }
        for breakdown, value in values.items():
            if value:
                yield breakdown, value, converted_at is not None


def _word(flag: bool | None) -> str | None:
    return None if flag is None else str(flag).lower()


def _outcomes(converted_at: datetime | None, touches: list[Any]) -> list[bool]:
    """Whether each touch is the last one at or before the conversion."""
    before = [t for t in touches if converted_at is not None and t.occurred_at <= converted_at]
    return [bool(before) and touch is before[-1] for touch in touches]


def _detect_when(session: Session, client: Any) -> Iterator[Cell]:
    for lead, converted_at, touches in _load(session, client):
        zone = _zone(lead.timezone or client.timezone)
        outcomes = _outcomes(converted_at, touches)
        for number, (touch, outcome) in enumerate(zip(touches, outcomes, strict=True), start=1):
            local = touch.occurred_at.astimezone(zone)
            yield "local_weekday", str(local.isoweekday()), outcome
            yield "local_hour", str(local.hour), outcome
            yield "touch_number", str(number), outcome


@cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _detect_how(session: Session, client: Any) -> Iterator[Cell]:
    for _, converted_at, touches in _load(session, client):
        outcomes = _outcomes(converted_at, touches)
        channels: set[str] = set()
        for touch, outcome in zip(touches, outcomes, strict=True):
            channel = OUTBOUND_ACTIONS[touch.action].value
            channels.add(channel)
            yield "channel", channel, outcome
            yield "channel_count", str(len(channels)), outcome


def _detect_what(session: Session, client: Any) -> Iterator[Cell]:
    for lead, converted_at, touches in _load(session, client):
        for touch, outcome in zip(touches, _outcomes(converted_at, touches), strict=True):
            content = touch.content_snapshot or {}
            if isinstance(content, str):
                content = json.loads(content)
            for breakdown, value in _describe(content, lead):
                yield breakdown, value, outcome


def _describe(content: dict[str, Any], lead: Any) -> Iterator[tuple[str, str]]:
    """Breakdown and value of everything that a touch's text says."""
    vocabulary = DEFAULT_VOCABULARY
    subject, body = content.get("subject") or "", content.get("body") or ""
    words = [normalized_words(subject), normalized_words(body)]
    if content.get("template_id"):
        yield "template_id", content["template_id"]
    if subject:
        size = len(subject.split())
        yield "subject_length", next(name for name, most in SUBJECT_LENGTHS if size <= most)
    for name, pattern in vocabulary.subject_patterns.items():
        if re.search(pattern, subject, re.IGNORECASE):
            yield "subject", name
    if kind := _find_call(words[1]):
        yield "cta_type", kind
    mentions = (
        *(("pain", *named) for named in vocabulary.pain_points.items()),
        *(("angle", *named) for named in vocabulary.angles.items()),
        *(("personal", *named) for named in _personal_words(lead).items()),
    )
    for family, name, keywords in mentions:
        if _mentions(words, map(_keyword, keywords)):
            yield family, name


def _find_call(body: str) -> str | None:
    """Type of the first call to action in a text, of two that begin together the longer."""
    called = [
        (body.find(_keyword(phrase)), -len(phrase), kind)
        for phrase, kind in DEFAULT_VOCABULARY.ctas.items()
        if _keyword(phrase) in body
    ]
    return min(called)[2] if called else None


def _personal_words(lead: Any) -> dict[str, tuple[str, ...]]:
    """What a personal touch of each kind would mention."""
    vocabulary = DEFAULT_VOCABULARY
    company = re.sub(r"( (trust|group|inc|llc|ltd|gmbh|co|corp|company))+ $", " ",
                     normalized_words(lead.company_name or ""))  # fmt: skip
    return {
        "company_mention": (company,),
        "first_name": (lead.first_name or "",),
        "recent_news": vocabulary.recent_news,
        "mutual_connection": vocabulary.mutual_connection,
        "industry_specific": (lead.industry or "",),
    }


_keyword = cache(normalized_words)


def _mentions(words: list[str], keywords: Iterable[str]) -> bool:
    return any(len(key) > 3 and key in text for key in keywords for text in words)
