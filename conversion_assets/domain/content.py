"""The content vocabulary: which words make a pain point, an angle, a call to action, a subject.

One frozen, versioned place. A client's own file adds to it or replaces parts
(:func:`load_vocabulary`); the version of the result tells features computed under one vocabulary
from features computed under another.

Keywords match whole words, case folded, with punctuation as a word boundary: the keyword
``sales`` matches "Sales-driven" and "your sales." but not "Salesforce". A keyword may belong to
several categories.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Literal, Self

import polars as pl
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from conversion_assets.domain.errors import InputError

CONTENT_VERSION = "1"
"""Version of the vocabulary below; moves whenever a word or pattern of it changes."""

PersonalTouch = Literal[
    "company_mention", "first_name", "recent_news", "mutual_connection", "industry_specific"
]
PERSONAL_TOUCHES: tuple[PersonalTouch, ...] = (
    "company_mention",
    "first_name",
    "recent_news",
    "mutual_connection",
    "industry_specific",
)
CtaType = Literal[
    "soft_ask", "time_specific", "value_offer", "direct_ask", "passive", "question", "casual"
]
SUBJECT_LENGTHS: tuple[tuple[str, int], ...] = (("short", 3), ("medium", 6), ("long", 2**31 - 1))
"""Length classes of a subject: label and highest number of words."""


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


# A category name becomes part of a column name (pain__NAME), so it must be a plain identifier.
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Keyword = Annotated[str, Field(min_length=1, max_length=80)]
Keywords = Annotated[tuple[Keyword, ...], BeforeValidator(_as_tuple)]


def normalized_words(text: str) -> str:
    """Words of a text, case folded, each surrounded by one space; "?" counts as a word.

    The vectorised matcher does the same to whole columns, so that a keyword is in a text exactly
    when its normalised form is a part of the normalised text.

    Example:
        >>> normalized_words("Sales-driven: thoughts?")
        ' sales driven thoughts ? '
    """
    words = re.findall(r"[^\W_]+|\?", text.lower())
    return f" {' '.join(words)} " if words else ""


class ContentVocabulary(BaseModel):
    """Words and patterns to look for in subjects and bodies.

    Attributes:
        version: name of this vocabulary; part of the feature version.
        pain_points: category to keywords, looked for in the subject and the body.
        angles: category to keywords, looked for in the subject and the body.
        ctas: phrase to type; the call to action of a touch is the first found in the body,
            of two that begin at the same word the longer.
        subject_patterns: pattern name to a regular expression of the Rust dialect (no
            look-around), case insensitive.
        recent_news: keywords of the personal touch of that name.
        mutual_connection: keywords of the personal touch of that name.
        ambiguous_first_names: first names that are common words; they count only after a greeting.
        unmatchable_values: values of company or industry that say nothing when found in a text.

    Example:
        >>> "leads" in DEFAULT_VOCABULARY.pain_points
        True
        >>> DEFAULT_VOCABULARY.ctas["open to a quick chat"]
        'soft_ask'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = Field(CONTENT_VERSION, min_length=1, max_length=80)
    pain_points: dict[Name, Keywords]
    angles: dict[Name, Keywords]
    ctas: dict[Keyword, CtaType]
    subject_patterns: dict[Name, str]
    recent_news: Keywords
    mutual_connection: Keywords
    ambiguous_first_names: Keywords = ()
    unmatchable_values: Keywords = ()

    @model_validator(mode="after")
    def _words_can_match(self) -> Self:
        phrases = [word for words in self.pain_points.values() for word in words]
        phrases += [word for words in self.angles.values() for word in words]
        phrases += [*self.ctas, *self.recent_news, *self.mutual_connection]
        for phrase in phrases:
            if not normalized_words(phrase):
                raise ValueError(f"keyword {phrase!r} has no letter or digit and can never match")
        for name, pattern in self.subject_patterns.items():
            try:
                pl.Series([""]).str.contains(f"(?i){pattern}")
            except pl.exceptions.ComputeError as error:
                line = " ".join(str(error).split())
                message = f"subject pattern {name!r} is not a valid regex: {line}"
                raise ValueError(message) from None
        return self

    def fingerprint(self) -> str:
        """Version and a short hash of the content: two vocabularies agree when these do."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return f"{self.version}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def feature_columns(self) -> list[str]:
        """Names of the Boolean feature columns, in their order."""
        return [
            *(f"subject__{name}" for name in self.subject_patterns),
            *(f"pain__{name}" for name in self.pain_points),
            *(f"angle__{name}" for name in self.angles),
            *(f"personal__{name}" for name in PERSONAL_TOUCHES),
        ]


DEFAULT_VOCABULARY = ContentVocabulary(
    pain_points={
        "leads": (
            "leads", "lead", "lead generation", "lead gen", "pipeline", "prospects", "prospecting",
            "appointments", "booked meetings", "inbound", "outbound", "top of funnel",
        ),
        "revenue": (
            "revenue", "sales", "growth", "grow", "turnover", "arr", "mrr", "profit", "profits",
            "profitability", "margin", "margins", "bottom line", "top line", "close rate", "quota",
        ),
        "time": (
            "time", "hours", "hours a week", "manual", "manually", "busy", "bandwidth",
            "time consuming", "repetitive", "admin", "faster", "delays", "bottleneck",
            "bottlenecks", "deadline", "deadlines", "efficiency", "automate", "automation",
        ),
        "scaling": (
            "scale", "scaling", "scalable", "capacity", "expand", "expanding", "expansion",
            "growing team", "headcount", "hiring", "growing pains", "outgrow", "outgrown",
        ),
        "competition": (
            "competition", "competitor", "competitors", "competitive", "rival", "rivals",
            "market share", "crowded market", "stand out", "differentiate", "undercut",
            "ahead of the curve",
        ),
        "cost": (
            "cost", "costs", "costly", "expensive", "budget", "budgets", "spend", "spending",
            "overhead", "overheads", "save money", "savings", "price", "pricing", "cpa", "cac",
            "margin", "margins", "waste", "wasted",
        ),
        "quality": (
            "quality", "low quality", "unqualified", "bad fit", "errors", "mistakes", "consistency",
            "inconsistent", "reliable", "reliability", "standards", "accuracy", "rework",
        ),
        "clients": (
            "client", "clients", "customer", "customers", "churn", "retention", "customer base",
            "client base", "accounts", "referrals", "onboarding",
        ),
    },
    angles={
        "roi_focused": (
            "roi", "return on investment", "return on ad spend", "roas", "payback",
            "pays for itself", "revenue increase", "increase revenue", "cut costs", "save money",
            "cost savings", "bottom line", "x return",
        ),
        "social_proof": (
            "case study", "case studies", "testimonial", "testimonials", "companies like",
            "businesses like", "teams like", "clients like", "agencies like", "helped",
            "we worked with", "trusted by", "similar companies", "other companies", "results for",
        ),
        "curiosity": (
            "curious", "wondering", "noticed", "did you know", "what if", "secret", "surprising",
            "most people", "ever wondered", "interesting", "counterintuitive",
        ),
        "fear_based": (
            "missing out", "miss out", "losing", "lose", "risk", "risks", "falling behind",
            "left behind", "mistake", "mistakes", "leaving money on the table", "wasting", "threat",
            "penalty", "before it is too late",
        ),
        "value_add": (
            "free", "guide", "checklist", "template", "resource", "resources", "playbook", "tips",
            "insights", "audit", "no cost", "complimentary", "ebook", "webinar", "report",
        ),
        "authority": (
            "expert", "experts", "years of experience", "award", "award winning", "certified",
            "industry leader", "leading", "featured in", "published", "specialist", "specialists",
            "research shows", "proven",
        ),
        "urgency": (
            "today", "this week", "limited", "deadline", "last chance", "asap", "urgent",
            "before friday", "end of month", "end of the month", "end of quarter", "only a few",
            "spots left", "closing soon", "expires", "act now", "right now",
        ),
    },
    ctas={
        "open to a quick chat": "soft_ask",
        "open to a chat": "soft_ask",
        "open to chatting": "soft_ask",
        "open to a conversation": "soft_ask",
        "open to learning more": "soft_ask",
        "would you be open to": "soft_ask",
        "would you be interested": "soft_ask",
        "worth a conversation": "soft_ask",
        "worth a chat": "soft_ask",
        "worth exploring": "soft_ask",
        "interested in learning more": "soft_ask",
        "worth 15 minutes": "time_specific",
        "worth 10 minutes": "time_specific",
        "15 minutes": "time_specific",
        "10 minutes": "time_specific",
        "20 minutes": "time_specific",
        "30 minutes": "time_specific",
        "15 minute call": "time_specific",
        "10 minute call": "time_specific",
        "15 min": "time_specific",
        "free this week": "time_specific",
        "free next week": "time_specific",
        "this week or next": "time_specific",
        "tuesday or thursday": "time_specific",
        "time this week": "time_specific",
        "time next week": "time_specific",
        "free audit": "value_offer",
        "free consultation": "value_offer",
        "free strategy session": "value_offer",
        "free trial": "value_offer",
        "free demo": "value_offer",
        "send you a": "value_offer",
        "send over": "value_offer",
        "want me to send": "value_offer",
        "share the case study": "value_offer",
        "book a time": "direct_ask",
        "book a call": "direct_ask",
        "book a meeting": "direct_ask",
        "book a demo": "direct_ask",
        "schedule a call": "direct_ask",
        "schedule a demo": "direct_ask",
        "schedule a meeting": "direct_ask",
        "schedule a time": "direct_ask",
        "grab a slot": "direct_ask",
        "grab a time": "direct_ask",
        "pick a time": "direct_ask",
        "set up a call": "direct_ask",
        "jump on a call": "direct_ask",
        "hop on a call": "direct_ask",
        "sign up": "direct_ask",
        "let me know": "passive",
        "feel free to": "passive",
        "happy to help": "passive",
        "happy to chat": "passive",
        "reach out": "passive",
        "get back to me": "passive",
        "looking forward to hearing": "passive",
        "thoughts?": "question",
        "any thoughts?": "question",
        "what do you think?": "question",
        "make sense?": "question",
        "does that make sense?": "question",
        "interested?": "question",
        "sound good?": "question",
        "is this a priority": "question",
        "are you the right person": "question",
        "coffee chat": "casual",
        "grab a coffee": "casual",
        "virtual coffee": "casual",
        "quick chat": "casual",
        "quick catch up": "casual",
        "catch up": "casual",
    },
    subject_patterns={
        "question_about": r"\bquestions? (?:about|regarding|on|re)\b",
        "quick_question": r"\bquick question\b",
        "reply_style": r"^\s*(?:re|fwd?)\s*:",
        # "Anna - an idea" or "{{first_name}} - an idea"; spaces around the dash.
        "name_dash": r"^\s*(?:\{+ *\w+ *\}+|[^\W\d_][.’'\w]*(?: [^\W\d_][.’'\w]*)?)\s+[-–—]+\s+\S",
        "idea_for": r"\bideas? for\b",
        "thought_about": r"\bthoughts? (?:about|on|regarding)\b|\b(?:thought|thinking) about\b",
        "ends_question": r"\?\s*$",
        "casual_greeting": r"^\s*(?:hi|hey|hello|hiya|howdy|g'day|gday)\b",
        "introduction": r"\b(?:intro|introduction|introducing|nice to meet)\b",
        "partnership": r"\b(?:partner|partners|partnership|partnering|collaborat(?:e|ion|ing))\b",
        "opportunity": r"\b(?:opportunity|opportunities)\b",
        "congratulatory": r"\b(?:congrats|congratulations|kudos|well done)\b",
    },
    recent_news=(
        "congrats on", "congratulations on", "recent news", "in the news", "recently announced",
        "your announcement", "just announced", "recent funding", "funding round", "series a",
        "series b", "series c", "just raised", "recently raised", "recent launch", "just launched",
        "recently launched", "your recent", "press release", "saw that you", "saw your post",
        "read your article", "new role", "recent acquisition", "acquired", "new office",
    ),
    mutual_connection=(
        "mutual connection", "mutual connections", "mutual friend", "mutual contact",
        "mutual acquaintance", "referred me", "referred by", "recommended i reach out",
        "suggested i reach out", "introduced me", "we both know", "common connection",
        "shared connection", "connected with", "pointed me",
    ),
    # "I will", "mark the date", "in may": only "Hi Will" is the person.
    ambiguous_first_names=(
        "art", "bill", "chance", "chase", "drew", "faith", "frank", "grace", "grant", "guy",
        "happy", "hope", "jack", "joy", "june", "mark", "may", "miles", "pat", "rich", "rob",
        "rose", "sky", "star", "sue", "summer", "the", "an", "so", "do", "my", "see", "true",
        "will", "win", "you",
    ),
    unmatchable_values=(
        "it", "other", "others", "general", "none", "unknown", "n a", "na", "null", "self", "us",
        "the", "we", "you", "your", "our", "and", "company", "private", "various", "misc",
        "services", "business",
    ),
)  # fmt: skip


def load_vocabulary(
    text: str, base: ContentVocabulary = DEFAULT_VOCABULARY, *, where: str = "vocabulary"
) -> ContentVocabulary:
    """Read a client's own vocabulary from YAML and lay it over a base.

    Keywords of a category that the base knows are added to it; new categories, calls to action and
    subject patterns are appended; a category with an empty list is removed.

    Args:
        text: YAML mapping with any of the fields of :class:`ContentVocabulary`.
        base: vocabulary to extend.
        where: name of the text in an error.

    Raises:
        InputError: the text is no YAML mapping, or a field or keyword of it is not usable.

    Example:
        >>> own = load_vocabulary("pain_points: {leads: [quote requests], permits: [permit]}")
        >>> own.pain_points["permits"], "quote requests" in own.pain_points["leads"]
        (('permit',), True)
    """
    try:
        own = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(own, dict):
        raise InputError(f"{where}: a mapping such as 'pain_points: {{leads: [...]}}' is expected")
    merged: dict[str, object] = base.model_dump()
    merged["version"] = f"{base.version}+own"
    for field, value in own.items():
        merged[field] = _laid_over(merged.get(field), value)
    try:
        return ContentVocabulary.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "file"
        raise InputError(f"{where}: {place}: {first['msg']}") from None


def load_vocabulary_file(
    path: Path, base: ContentVocabulary = DEFAULT_VOCABULARY
) -> ContentVocabulary:
    """Read a client's own vocabulary from a YAML file; see :func:`load_vocabulary`.

    Raises:
        InputError: the file cannot be read or used.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return load_vocabulary(text, base, where=str(path))


def _laid_over(base: object, own: object) -> object:
    """One field of a client's file over the same field of the base."""
    if isinstance(base, dict) and isinstance(own, dict):
        merged = {**base}
        for name, value in own.items():
            merged[name] = _laid_over(base.get(name), value)
            if value in ([], (), None, ""):
                del merged[name]
        return merged
    if isinstance(base, tuple) and isinstance(own, list | str):
        added = [own] if isinstance(own, str) else own
        return (*base, *(word for word in added if word not in base))
    return own
