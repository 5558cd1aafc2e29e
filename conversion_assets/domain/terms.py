"""The closed vocabularies of the domain, as string enumerations."""

from enum import StrEnum


class PatternType(StrEnum):
    """One question each: who converts, what content, when, and through which channels."""

    WHO = "who"
    WHAT = "what"
    WHEN = "when"
    HOW = "how"


class OutcomeKind(StrEnum):
    """What a refresh came to for one client and pattern type."""

    FOUND = "found"
    NONE_FOUND = "none_found"
    NOT_ENOUGH_DATA = "not_enough_data"
    FAILED = "failed"


class Verdict(StrEnum):
    """How far an estimate may be acted upon."""

    ACT = "act"
    WATCH = "watch"
    NO_EVIDENCE = "no_evidence"


class Severity(StrEnum):
    """High alerts somebody; medium is listed and shown."""

    HIGH = "high"
    MEDIUM = "medium"


class HealthRule(StrEnum):
    """What a finding says; each has a page in docs/runbooks."""

    EXPIRED = "expired"
    EXPIRES_SOON = "expires_soon"
    LOW_SAMPLE = "low_sample"
    LOW_CONFIDENCE = "low_confidence"
    EXTREME_WEIGHT = "extreme_weight"
    INVALID_WEIGHTS = "invalid_weights"
    INVALID_DOCUMENT = "invalid_document"
    MISSING_PATTERN = "missing_pattern"
    FAILED = "failed"
    NO_RESULT = "no_result"
    EXCLUDED_ROWS = "excluded_rows"
    STALE_SOURCE = "stale_source"
    DRIFT = "drift"
    FORWARD_FAILING = "forward_failing"
    POOL_PRIVACY = "pool_privacy"


class NoteKind(StrEnum):
    """Why rows were left out of a document, or counted otherwise than they say."""

    YOUNG_LEAD = "young_lead"
    YOUNG_TOUCH = "young_touch"
    TOUCH_AFTER_CONVERSION = "touch_after_conversion"
    BOOKING_CONTRADICTS_TIMES = "booking_contradicts_times"
    NO_LOCAL_TIME = "no_local_time"
    RARE_VALUE = "rare_value"


DEFECTS: tuple[NoteKind, ...] = (NoteKind.BOOKING_CONTRADICTS_TIMES, NoteKind.NO_LOCAL_TIME)
"""Notes that tell of defects of the data; the others are about rows that are as they should be."""


class Unit(StrEnum):
    """What a sample counts."""

    LEAD = "lead"
    TOUCH = "touch"


class Channel(StrEnum):
    """Channels of outbound touches."""

    EMAIL = "email"
    SMS = "sms"
    LINKEDIN = "linkedin"
    VOICE = "voice"
    MAIL = "mail"


class SubscriptionStatus(StrEnum):
    """State of a client's contract."""

    ACTIVE = "active"
    TRIALING = "trialing"
    PAUSED = "paused"
    CANCELLED = "cancelled"


class LeadStatus(StrEnum):
    """State of a lead. Neither converted nor failed means open, and open means censored."""

    NEW = "new"
    ENRICHED = "enriched"
    SCORED = "scored"
    IN_SEQUENCE = "in_sequence"
    CONVERTED = "converted"
    UNSUBSCRIBED = "unsubscribed"
    BOUNCED = "bounced"
    NOT_INTERESTED = "not_interested"
    DEAD = "dead"


FAILED_STATUSES: tuple[LeadStatus, ...] = (
    LeadStatus.UNSUBSCRIBED,
    LeadStatus.BOUNCED,
    LeadStatus.NOT_INTERESTED,
    LeadStatus.DEAD,
)

# Only these actions are touches; everything else is inbound or administrative.
OUTBOUND_ACTIONS: dict[str, Channel] = {
    "email_sent": Channel.EMAIL,
    "sms_sent": Channel.SMS,
    "linkedin_sent": Channel.LINKEDIN,
    "voice_completed": Channel.VOICE,
    "mail_sent": Channel.MAIL,
}
BOOKING_ACTION = "meeting_booked"

SIZE_BUCKETS: tuple[tuple[str, int], ...] = (
    ("1-5", 5),
    ("6-15", 15),
    ("16-30", 30),
    ("31-50", 50),
    ("51-100", 100),
    ("101-250", 250),
    ("251-500", 500),
    ("501+", 2**31 - 1),
)
"""Company size buckets: label and highest head count."""

WEEKDAYS: tuple[str, ...] = (
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
)

SCORE_COMPONENTS: tuple[str, ...] = ("data_quality", "authority", "company_fit", "timing")
SCORE_CAPS: dict[str, int] = {
    "data_quality": 20,
    "authority": 25,
    "company_fit": 25,
    "timing": 15,
    "risk": 15,
}
DEFAULT_WEIGHTS: dict[str, float] = {
    "data_quality": 0.20,
    "authority": 0.25,
    "company_fit": 0.25,
    "timing": 0.15,
}
WEIGHT_SUM = 0.85
"""Weights of the four learned components; 0.15 is kept for risk."""
WEIGHT_BOUNDS: tuple[float, float] = (0.05, 0.50)

TIERS: tuple[tuple[str, float], ...] = (
    ("hot", 85.0),
    ("warm", 60.0),
    ("cool", 35.0),
    ("cold", 20.0),
    ("dead", 0.0),
)
"""Tiers of the lead score and the lowest score of each."""
