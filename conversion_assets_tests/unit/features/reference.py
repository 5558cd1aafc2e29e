"""Features the slow and obvious way: one row at a time, with zoneinfo, json and re."""

import json
import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from conversion_assets.domain.content import PERSONAL_TOUCHES, ContentVocabulary
from conversion_assets.domain.terms import FAILED_STATUSES, OUTBOUND_ACTIONS, SIZE_BUCKETS
from conversion_assets.features.titles import normalize_title

Row = dict[str, Any]
LEGAL = re.compile(
    r"(?: (?:inc|incorporated|llc|llp|lp|ltd|limited|gmbh|plc|pty|pte|co|corp|corporation|sa|srl"
    r"|spa|bv|nv|ag|oy|ab|as|kk|ltda))+$"
)


def words(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).lower()
    return " ".join(re.findall(r"[^\W_]+|\?", folded))


def has(text: str | None, phrase: str) -> bool:
    """Whether a phrase stands in a text as whole words."""
    wanted = re.escape(words(phrase))
    return text is not None and re.search(rf"(?:^| ){wanted}(?:$| )", words(text)) is not None


def blank(text: object) -> str | None:
    return text if isinstance(text, str) and text.strip() else None


def lead_features(clients: list[Row], leads: list[Row], activities: list[Row]) -> list[Row]:
    live = {client["id"] for client in clients if client["deleted_at"] is None}
    rows = []
    for lead in leads:
        if lead["client_id"] not in live or lead["deleted_at"] is not None:
            continue
        times = [
            activity["occurred_at"]
            for activity in activities
            if activity["action"] == "meeting_booked"
            and (activity["client_id"], activity["lead_id"]) == (lead["client_id"], lead["id"])
        ]
        if lead["status"] == "converted" and lead["converted_at"] is not None:
            times.append(lead["converted_at"])
        title = normalize_title(lead["title"])
        components = decode(lead["als_components"])
        bucket = None
        if lead["employee_count"] is not None and lead["employee_count"] >= 1:
            bucket = next(name for name, top in SIZE_BUCKETS if lead["employee_count"] <= top)
        rows.append(
            {
                "client_id": lead["client_id"],
                "lead_id": lead["id"],
                "created_at": lead["created_at"],
                "converted_at": min(times, default=None),
                "failed_at": (lead["updated_at"] or lead["created_at"])
                if lead["status"] in list(FAILED_STATUSES)
                else None,
                "seniority": title.seniority,
                "function": title.function,
                "title": title.title,
                "industry": strip(lead["industry"]),
                "source": strip(lead["source"]),
                "country": strip(lead["country"]),
                "tier": strip(lead["als_tier"]),
                "size_bucket": bucket,
                "is_new_role": lead["is_new_role"],
                "is_hiring": lead["is_hiring"],
                "recently_funded": lead["recently_funded"],
                **{
                    name: number(components.get(name))
                    for name in ("data_quality", "authority", "company_fit", "timing")
                },
                "scored_at": lead.get("scored_at"),
            }
        )
    return sorted(rows, key=lambda row: (row["client_id"], row["lead_id"]))


def strip(text: str | None) -> str | None:
    return (text or "").strip() or None


def number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def decode(text: str | None) -> Row:
    try:
        value = json.loads(text or "")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def channel_of(activity: Row) -> str | None:
    action = (activity["action"] or "").strip().lower()
    channel = (activity["channel"] or "").strip().lower()
    known = {str(name) for name in OUTBOUND_ACTIONS.values()}
    unseen = bool(channel) and channel not in known
    if action in OUTBOUND_ACTIONS:
        return channel if unseen else str(OUTBOUND_ACTIONS[action])
    return channel if unseen and action == f"{channel}_sent" else None


def local_time(moment: datetime, *zones: str | None) -> tuple[int | None, int | None]:
    for zone in zones:
        try:
            local = moment.astimezone(ZoneInfo((zone or "").strip()))
        except (ValueError, OSError, KeyError):
            continue
        return local.isoweekday(), local.hour
    return None, None


def touch_features(
    clients: list[Row], leads: list[Row], activities: list[Row], vocabulary: ContentVocabulary
) -> list[Row]:
    zone_of = {client["id"]: client["timezone"] for client in clients}
    raw = {(lead["client_id"], lead["id"]): lead for lead in leads}
    rows: list[Row] = []
    for lead in lead_features(clients, leads, activities):
        key = (lead["client_id"], lead["lead_id"])
        own = sorted(
            (a for a in activities if (a["client_id"], a["lead_id"]) == key and channel_of(a)),
            key=lambda activity: (activity["occurred_at"], activity["id"]),
        )
        converted = lead["converted_at"]
        before = [a for a in own if converted is not None and a["occurred_at"] <= converted]
        seen: list[str] = []
        for position, activity in enumerate(own):
            channel = channel_of(activity)
            assert channel is not None
            moment = activity["occurred_at"]
            weekday, hour = local_time(moment, raw[key]["timezone"], zone_of[key[0]])
            previous = own[position - 1] if position else None
            is_converting = bool(before) and before[-1] is activity
            given = activity["led_to_booking"]
            rows.append(
                {
                    "client_id": key[0],
                    "lead_id": key[1],
                    "activity_id": activity["id"],
                    "occurred_at": moment,
                    "channel": channel,
                    "touch_number": position + 1,
                    "gap_days": (moment - previous["occurred_at"]) / timedelta(days=1)
                    if previous
                    else None,
                    "previous_channel": channel_of(previous) if previous else None,
                    "channel_count": len({*seen, channel}),
                    "adds_channel": channel not in seen,
                    "local_weekday": weekday,
                    "local_hour": hour,
                    "is_converting": is_converting,
                    "is_after_conversion": converted is not None and moment > converted,
                    "booking_mismatch": given is not None and given != is_converting,
                    "lead_created_at": lead["created_at"],
                    "lead_converted_at": converted,
                    "lead_scored_at": lead.get("scored_at"),
                    "source": lead["source"],
                    "tier": lead["tier"],
                    **content(activity, raw[key], vocabulary),
                }
            )
            seen.append(channel)
    return rows


def content(activity: Row, lead: Row, vocabulary: ContentVocabulary) -> Row:
    snapshot, metadata = decode(activity["content_snapshot"]), decode(activity["metadata"])
    subject = blank(snapshot.get("subject")) or blank(metadata.get("subject"))
    body = next(
        filter(
            None,
            (blank(d.get(key)) for d in (snapshot, metadata) for key in ("body", "message")),
        ),
        None,
    )
    labels = {} if body is not None else snapshot
    subject_labels = [] if subject is not None else snapshot.get("subject_patterns") or []
    count = len(subject.split()) if subject else snapshot.get("subject_word_count")
    cta = None
    if body is not None:
        found = [
            (f" {words(body)} ".index(f" {words(phrase)} "), -len(words(phrase)), phrase)
            for phrase in vocabulary.ctas
            if has(body, phrase)
        ]
        cta = min(found)[2] if found else None
    elif blank(labels.get("cta")):
        cta = labels["cta"].strip().lower()
    cta_type = vocabulary.ctas.get(cta or "")
    cta_type = blank(labels.get("cta_type")) or cta_type
    labelled = ("pain_points", "angles", "subject_patterns", "cta", "cta_type", *PERSONAL_TOUCHES)
    has_subject = subject is not None or bool(count) or bool(subject_labels)

    def matches(keywords: tuple[str, ...]) -> bool:
        return any(has(text, keyword) for text in (subject, body) for keyword in keywords)

    row: Row = {
        "has_content": has_subject
        or body is not None
        or any(snapshot.get(name) is not None for name in labelled),
        "has_subject": has_subject,
        "subject_length": None
        if not count
        else ("short" if count <= 3 else "medium" if count <= 6 else "long"),
        "word_count": len(body.split()) if body is not None else snapshot.get("word_count"),
        "char_count": len(body) if body is not None else snapshot.get("char_count"),
        "cta": cta,
        "cta_type": cta_type,
        "template_id": blank(snapshot.get("template_id")) or blank(metadata.get("template_id")),
        "sequence_id": blank(activity["sequence_id"])
        or blank(snapshot.get("sequence_id"))
        or blank(metadata.get("sequence_id")),
    }
    for name, pattern in vocabulary.subject_patterns.items():
        matched = subject is not None and re.search(f"(?i){pattern}", subject) is not None
        row[f"subject__{name}"] = matched or name in subject_labels
    for name, keywords in vocabulary.pain_points.items():
        row[f"pain__{name}"] = matches(keywords) or name in (labels.get("pain_points") or [])
    for name, keywords in vocabulary.angles.items():
        row[f"angle__{name}"] = matches(keywords) or name in (labels.get("angles") or [])
    for name, found_now in {
        "company_mention": matches(company_names(lead["company_name"], vocabulary)),
        "first_name": matches(first_names(lead["first_name"], vocabulary)),
        "recent_news": matches(vocabulary.recent_news),
        "mutual_connection": matches(vocabulary.mutual_connection),
        "industry_specific": matches(useful(lead["industry"], vocabulary)),
    }.items():
        row[f"personal__{name}"] = found_now or labels.get(name) is True
    return row


def useful(value: str | None, vocabulary: ContentVocabulary) -> tuple[str, ...]:
    plain = words(value or "")
    return (plain,) if len(plain) >= 2 and plain not in vocabulary.unmatchable_values else ()


def company_names(name: str | None, vocabulary: ContentVocabulary) -> tuple[str, ...]:
    full = words(name or "")
    bare = LEGAL.sub("", f" {full}").strip()
    return useful(bare, vocabulary) or useful(full, vocabulary)


def first_names(name: str | None, vocabulary: ContentVocabulary) -> tuple[str, ...]:
    found = useful(name, vocabulary)
    if found and found[0] in vocabulary.ambiguous_first_names:
        greetings = ("hi", "hey", "hello", "dear", "morning", "afternoon", "evening", "thanks")
        return tuple(f"{greeting} {found[0]}" for greeting in greetings)
    return found


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]
