"""All features of all clients from raw rows; the one door to this room."""

from dataclasses import dataclass, replace

import polars as pl

from conversion_assets.domain.content import DEFAULT_VOCABULARY, ContentVocabulary
from conversion_assets.domain.terms import LeadStatus
from conversion_assets.features.content import (
    PERSONAL_VALUES,
    compute_content,
    compute_personal_values,
)
from conversion_assets.features.frames import (
    ACTIVITY_COLUMNS,
    CLIENT_COLUMNS,
    LEAD_COLUMNS,
    NOTE_SCHEMA,
    select_canonical,
)
from conversion_assets.features.leads import compute_bookings, compute_lead_features
from conversion_assets.features.touches import compute_timing, touch_channel, touch_schema

FEATURE_CODE = "2"
"""Moves whenever the same rows would give other features; stored features are then recomputed."""


_TOUCH = ["client_id", "activity_id"]


def feature_version(vocabulary: ContentVocabulary = DEFAULT_VOCABULARY) -> str:
    """Version of the features: of this code and of the vocabulary."""
    return f"features-{FEATURE_CODE}-content-{vocabulary.fingerprint()}"


FEATURE_VERSION = feature_version()
"""Version of the features under the default vocabulary."""


@dataclass(frozen=True)
class Features:
    """Columns for the detectors.

    Attributes:
        leads: ``lead_features``, sorted by (client_id, lead_id).
        touches: ``touch_features``, sorted by (client_id, lead_id, occurred_at, activity_id).
        notes: client_id, reason, rows: what was left out or is doubtful.
    """

    leads: pl.DataFrame
    touches: pl.DataFrame
    notes: pl.DataFrame


@dataclass(frozen=True)
class BegunFeatures:
    """Features but for the content of some touches.

    Attributes:
        leads: ``lead_features``.
        touches: Touches with their times, and with what their content is computed from.
        content: Content of touches by client_id and activity_id, as far as it was computed.
        notes: As of :class:`Features`.
    """

    leads: pl.DataFrame
    touches: pl.DataFrame
    content: pl.DataFrame
    notes: list[pl.DataFrame]


def build_features(
    clients: pl.DataFrame | None,
    leads: pl.DataFrame,
    activities: pl.DataFrame,
    vocabulary: ContentVocabulary = DEFAULT_VOCABULARY,
    *,
    known_content: pl.DataFrame | None = None,
) -> Features:
    """Compute ``lead_features`` and ``touch_features`` of every client at once.

    Args:
        clients: raw client rows, or None when there are none: every lead's client then counts and
            has no zone of its own.
        leads: raw lead rows; optional columns may be missing.
        activities: raw activity rows; optional columns may be missing.
        vocabulary: content vocabulary.
        known_content: content columns by activity_id that were computed earlier from the same text,
            lead and vocabulary; those touches are not decoded again.

    Returns:
        Features; rows of deleted clients and leads are absent.

    Raises:
        InputError: a time has no zone or a column cannot be read as its type.

    Example:
        >>> leads = pl.DataFrame({"id": ["l"], "client_id": ["c"], "title": ["CEO"],
        ...                       "created_at": ["2024-01-01T00:00:00Z"]})
        >>> sent = pl.DataFrame({"id": ["a"], "client_id": ["c"], "lead_id": ["l"],
        ...                      "action": ["email_sent"], "occurred_at": ["2024-01-02T00:00:00Z"]})
        >>> build_features(None, leads, sent).touches["touch_number"].to_list()
        [1]
    """
    begun = begin_features(clients, leads, activities, vocabulary, without_content=known_content)
    return finish_features(begun, vocabulary, known_content)


def begin_features(
    clients: pl.DataFrame | None,
    leads: pl.DataFrame,
    activities: pl.DataFrame,
    vocabulary: ContentVocabulary,
    *,
    without_content: pl.DataFrame | None = None,
) -> BegunFeatures:
    """Compute whatever does not depend on content that may be known.

    Args:
        clients: See :func:`build_features`.
        leads: See there.
        activities: See there.
        vocabulary: Content vocabulary.
        without_content: client_id and activity_id of touches whose content is not computed now.
    """
    notes: list[pl.DataFrame] = []
    lead_rows = _usable_leads(clients, leads, notes)
    events = _usable_activities(activities, lead_rows, notes)
    lead_features = compute_lead_features(lead_rows, compute_bookings(events))
    touches = compute_timing(_touches(events, lead_rows, lead_features, vocabulary))
    read = touches
    if without_content is not None:
        read = touches.join(without_content, on=_TOUCH, how="anti")
    content = _compute_content(read, vocabulary, notes)
    return BegunFeatures(lead_features, touches, content, notes)


def add_content(
    begun: BegunFeatures, texts: pl.DataFrame, vocabulary: ContentVocabulary
) -> BegunFeatures:
    """Compute the content of some more touches.

    Args:
        begun: The features.
        texts: client_id, activity_id, content_snapshot and metadata of the touches.
        vocabulary: Content vocabulary.
    """
    notes = list(begun.notes)
    touches = begun.touches.drop("content_snapshot", "metadata").join(texts, on=_TOUCH)
    content = _compute_content(touches, vocabulary, notes)
    return replace(begun, content=pl.concat([begun.content, content]), notes=notes)


def finish_features(
    begun: BegunFeatures, vocabulary: ContentVocabulary, known_content: pl.DataFrame | None
) -> Features:
    """Put the content to the touches: what is known, and what was computed.

    Args:
        begun: The features.
        vocabulary: Content vocabulary.
        known_content: See :func:`build_features`; of no touch whose content was computed.
    """
    content = begun.content
    if known_content is not None:
        content = pl.concat([known_content.select(content.columns), content])
    order = touch_schema(vocabulary)
    touches = (
        begun.touches.drop("sequence_id")
        .join(content, on=_TOUCH, how="left", maintain_order="left")
        .select(pl.col(name).cast(dtype) for name, dtype in order.items())
    )
    unplaced = _note(touches.filter(pl.col("local_hour").is_null()), "touch without zone")
    contradicting = _note(
        touches.filter("booking_mismatch"), "led_to_booking contradicts the touch times"
    )
    return Features(begun.leads, touches, _collect([*begun.notes, unplaced, contradicting]))


def _usable_leads(
    clients: pl.DataFrame | None, leads: pl.DataFrame, notes: list[pl.DataFrame]
) -> pl.DataFrame:
    rows = select_canonical(leads, LEAD_COLUMNS, where="leads")
    rows = rows.filter(pl.col("deleted_at").is_null())
    if clients is None:
        rows = rows.with_columns(client_zone=pl.lit(None, dtype=pl.String))
    else:
        known = select_canonical(clients, CLIENT_COLUMNS, where="clients")
        known = known.filter(pl.col("deleted_at").is_null()).unique("id", keep="any")
        zones = known.select(client_id="id", client_zone="timezone")
        unknown = rows.join(known.select(client_id="id"), on="client_id", how="anti")
        notes.append(_note(unknown, "lead of an unknown or deleted client"))
        rows = rows.join(zones, on="client_id", how="inner")
    notes.append(_note(rows.filter(pl.col("created_at").is_null()), "lead without created_at"))
    rows = rows.drop_nulls(["id", "client_id", "created_at"])
    rows = _without_repeats(rows, ["client_id", "id"], "updated_at", "repeated lead id", notes)
    status = pl.col("status").str.strip_chars().str.to_lowercase() == LeadStatus.CONVERTED.value
    timeless = status & pl.col("converted_at").is_null()
    notes.append(_note(rows.filter(timeless), "converted lead without converted_at"))
    return rows


def _usable_activities(
    activities: pl.DataFrame, leads: pl.DataFrame, notes: list[pl.DataFrame]
) -> pl.DataFrame:
    rows = select_canonical(activities, ACTIVITY_COLUMNS, where="activities")
    keys = leads.select("client_id", lead_id="id")
    unknown = rows.join(keys, on=["client_id", "lead_id"], how="anti")
    notes.append(_note(unknown, "activity of an unknown or deleted lead"))
    rows = rows.join(keys, on=["client_id", "lead_id"], how="semi")
    notes.append(_note(rows.filter(pl.col("occurred_at").is_null()), "activity without time"))
    rows = rows.drop_nulls(["id", "occurred_at"])
    return _without_repeats(rows, ["client_id", "id"], "occurred_at", "repeated activity id", notes)


def _without_repeats(
    rows: pl.DataFrame, key: list[str], latest: str, reason: str, notes: list[pl.DataFrame]
) -> pl.DataFrame:
    """One row per key: the latest; of equals the same one in whatever order the rows came."""
    repeated = rows.select(pl.struct(key).is_duplicated()).to_series()
    if not repeated.any():
        return rows
    rest = [name for name in rows.columns if name not in {*key, latest}]
    twice = rows.filter(repeated).sort(
        [*key, latest, *rest], descending=[*[False] * len(key), True, *[False] * len(rest)]
    )
    kept = twice.unique(key, keep="first", maintain_order=True)
    dropped = (
        twice.group_by("client_id")
        .len("rows")
        .join(kept.group_by("client_id").len("kept"), on="client_id")
    )
    notes.append(
        dropped.select(
            "client_id",
            pl.lit(reason).alias("reason"),
            (pl.col("rows").cast(pl.Int64) - pl.col("kept").cast(pl.Int64)).alias("rows"),
        )
    )
    return pl.concat([rows.filter(~repeated), kept])


def _touches(
    events: pl.DataFrame,
    leads: pl.DataFrame,
    lead_features: pl.DataFrame,
    vocabulary: ContentVocabulary,
) -> pl.DataFrame:
    """Outbound activities with what they need of their lead."""
    sent = events.with_columns(channel=touch_channel()).drop_nulls("channel")
    raw = compute_personal_values(leads, vocabulary).select(
        "client_id", "client_zone", *PERSONAL_VALUES, lead_id="id", lead_zone="timezone"
    )
    outcome = lead_features.select(
        "client_id",
        "lead_id",
        "source",
        "tier",
        lead_created_at="created_at",
        lead_converted_at="converted_at",
        lead_scored_at="scored_at",
    )
    of_lead = raw.join(outcome, on=["client_id", "lead_id"])
    return sent.rename({"id": "activity_id"}).join(of_lead, on=["client_id", "lead_id"])


def _compute_content(
    touches: pl.DataFrame, vocabulary: ContentVocabulary, notes: list[pl.DataFrame]
) -> pl.DataFrame:
    """Content of touches by their key."""
    found = compute_content(touches, vocabulary)
    content = pl.concat([touches.select(_TOUCH), found], how="horizontal")
    notes.append(_note(content.filter("is_invalid_json"), "content is no JSON object"))
    return content.drop("is_invalid_json")


def _note(rows: pl.DataFrame, reason: str) -> pl.DataFrame:
    return rows.group_by("client_id").agg(
        pl.lit(reason).alias("reason"), pl.len().cast(pl.Int64).alias("rows")
    )


def _collect(notes: list[pl.DataFrame]) -> pl.DataFrame:
    """All notes in one frame, in a fixed order."""
    whole = [note.select(pl.col(n).cast(t) for n, t in NOTE_SCHEMA.items()) for note in notes]
    return pl.concat([pl.DataFrame(schema=NOTE_SCHEMA), *whole]).sort("client_id", "reason")
