"""Content snapshots of touches that were sent before snapshots were kept, from their metadata."""

from dataclasses import dataclass
from enum import StrEnum

import polars as pl

from conversion_assets.domain.content import (
    DEFAULT_VOCABULARY,
    PERSONAL_TOUCHES,
    ContentVocabulary,
)
from conversion_assets.domain.terms import Channel
from conversion_assets.features.content import (
    CHUNK_ROWS,
    PERSONAL_VALUES,
    compute_personal_values,
    describe_texts,
    read_texts,
)
from conversion_assets.features.touches import KEY, touch_channel

SNAPSHOT_CODE = "1"
"""Moves whenever the same metadata would give another snapshot."""

SENT_AT_FORMAT = "%Y-%m-%dT%H:%M:%S%.6fZ"

# GSM 03.38: one message, and a part of a longer one, in characters of 7 bits; the extension table
# takes two. Anything else is sent as UTF-16, with less room.
_GSM_BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM_EXTENDED = "\f^{}\\[~]|€"
_GSM_ROOM = (160, 153)
_UTF16_ROOM = (70, 67)


class SkipReason(StrEnum):
    """Why a snapshot could not be rebuilt."""

    NO_METADATA = "no metadata"
    MALFORMED_JSON = "malformed JSON"
    NO_TEXT = "no text"


@dataclass(frozen=True)
class Rebuilt:
    """Snapshots that could be rebuilt, and touches whose could not.

    Attributes:
        rows: client_id, id, content_snapshot (JSON text), sorted by the first two.
        skipped: client_id, id, reason (of :class:`SkipReason`), sorted likewise.
    """

    rows: pl.DataFrame
    skipped: pl.DataFrame


def rebuild_snapshots(
    activities: pl.DataFrame,
    leads: pl.DataFrame,
    vocabulary: ContentVocabulary = DEFAULT_VOCABULARY,
) -> Rebuilt:
    """Rebuild the content snapshots of outbound activities that have none.

    The features of a touch are the same from its metadata and from the snapshot rebuilt of it.

    Args:
        activities: all activities of some leads, in any order: client_id, id, lead_id, channel,
            action, occurred_at, sequence_id, metadata (JSON text; body or message, subject,
            template_id, sequence_id) and has_snapshot. Touch numbers are ranks, so that an
            incomplete lead gets wrong ones.
        leads: client_id, id, first_name, company_name, industry of those leads, for the personal
            touches.
        vocabulary: what to look for.

    Example:
        >>> from datetime import UTC, datetime
        >>> sent = pl.DataFrame({"client_id": "c", "id": ["a"], "lead_id": "l", "channel": "email",
        ...     "action": "email_sent", "occurred_at": datetime(2024, 1, 2, tzinfo=UTC),
        ...     "sequence_id": None, "metadata": '{"body": "Thoughts?"}', "has_snapshot": False},
        ...     schema_overrides={"sequence_id": pl.String})
        >>> lead = pl.DataFrame({"client_id": ["c"], "id": "l", "first_name": "Ann",
        ...     "company_name": "Acme", "industry": "Retail"})
        >>> import json
        >>> snapshot = json.loads(rebuild_snapshots(sent, lead).rows["content_snapshot"].item())
        >>> snapshot["cta_type"], snapshot["touch_number"], snapshot["reconstructed"]
        ('question', 1, True)
    """
    personal = compute_personal_values(leads, vocabulary).select(
        *PERSONAL_VALUES, client_id="client_id", lead_id="id"
    )
    touches = (
        activities.with_columns(channel=touch_channel())
        .drop_nulls("channel")
        .rename({"id": "activity_id"})
        .sort(KEY)
        .with_columns(touch_number=pl.int_range(1, pl.len() + 1).over("client_id", "lead_id"))
        .filter(~pl.col("has_snapshot"))
        .join(personal, on=["client_id", "lead_id"], how="left", maintain_order="left")
        .with_columns(content_snapshot=pl.lit(None, dtype=pl.String))
    )
    parts = [_rebuild(part, vocabulary) for part in touches.iter_slices(CHUNK_ROWS)]
    whole = pl.concat([pl.DataFrame(schema=_RESULT), *parts]).sort("client_id", "id")
    skipped = pl.col("reason").is_not_null()
    return Rebuilt(
        rows=whole.filter(~skipped).drop("reason"),
        skipped=whole.filter(skipped).drop("content_snapshot"),
    )


_RESULT = dict.fromkeys(("client_id", "id", "content_snapshot", "reason"), pl.String())


def _rebuild(touches: pl.DataFrame, vocabulary: ContentVocabulary) -> pl.DataFrame:
    texts = read_texts(touches)
    given = pl.col("metadata").str.strip_chars()
    key = touches.select("client_id", pl.col("activity_id").alias("id"), *_FACTS).with_columns(
        reason=pl.when(given.is_null() | given.is_in(["", "null"]))
        .then(pl.lit(SkipReason.NO_METADATA.value))
        .when(texts["is_invalid_json"])
        .then(pl.lit(SkipReason.MALFORMED_JSON.value))
        .when(texts["body"].is_null() & texts["subject"].is_null())
        .then(pl.lit(SkipReason.NO_TEXT.value))
    )
    said = describe_texts(texts, vocabulary).drop("is_invalid_json")
    whole = pl.concat([key, texts.select("subject", "body"), said], how="horizontal")
    return whole.select(
        "client_id",
        "id",
        pl.when(pl.col("reason").is_null()).then(_encode(vocabulary)).alias("content_snapshot"),
        "reason",
    )


_FACTS = ("channel", "touch_number", "occurred_at", "metadata")


def _encode(vocabulary: ContentVocabulary) -> pl.Expr:
    """The snapshot as JSON text; members without a value are left out, as imports do."""
    optional = [
        pl.col("subject"),
        pl.col("body"),
        pl.col("template_id"),
        pl.col("sequence_id"),
        pl.col("word_count"),
        pl.col("subject").str.count_matches(r"\S+").alias("subject_word_count"),
        pl.col("char_count"),
        _count_segments().alias("segment_count"),
        pl.col("cta"),
        pl.col("cta_type"),
    ]
    always = pl.struct(
        pl.col("channel"),
        *(
            _named(prefix, names).alias(field)
            for field, prefix, names in (
                ("pain_points", "pain__", vocabulary.pain_points),
                ("angles", "angle__", vocabulary.angles),
                ("subject_patterns", "subject__", vocabulary.subject_patterns),
            )
        ),
        *(pl.col(f"personal__{name}").alias(name) for name in PERSONAL_TOUCHES),
        pl.col("touch_number"),
        pl.col("occurred_at").dt.to_string(SENT_AT_FORMAT).alias("sent_at"),
        pl.lit(value=True).alias("reconstructed"),
    )
    members = [
        *(pl.when(part.is_not_null()).then(_members(pl.struct(part))) for part in optional),
        _members(always),
    ]
    return pl.concat_str(
        pl.lit("{"), pl.concat_str(members, separator=",", ignore_nulls=True), pl.lit("}")
    )


def _members(record: pl.Expr) -> pl.Expr:
    """The members of a record's JSON object, without its braces."""
    text = record.struct.json_encode()
    return text.str.slice(1).str.head(-1)


def _named(prefix: str, names: object) -> pl.Expr:
    """List of the names whose column is true, in the vocabulary's order."""
    chosen = [
        pl.when(pl.col(f"{prefix}{name}")).then(pl.lit(name))
        for name in names  # type: ignore[attr-defined]
    ]
    if not chosen:
        return pl.lit([], dtype=pl.List(pl.String()))
    return pl.concat_list(chosen).list.drop_nulls()


def _count_segments() -> pl.Expr:
    """Parts a text message is sent in (3GPP TS 23.038 and 23.040); null for other channels."""
    body = pl.col("body")
    basic = _character_class(_GSM_BASIC)
    extended = _character_class(_GSM_EXTENDED)
    is_gsm = body.str.count_matches(f"[^{basic}{extended}]") == 0
    septets = body.str.len_chars() + body.str.count_matches(f"[{extended}]")
    # Characters beyond the basic plane are the ones of four bytes, and take two units.
    units = body.str.len_chars() + body.str.count_matches(r"[\x{10000}-\x{10FFFF}]")
    parts = pl.when(is_gsm).then(_parts(septets, *_GSM_ROOM)).otherwise(_parts(units, *_UTF16_ROOM))
    return pl.when(pl.col("channel") == Channel.SMS.value).then(parts)


def _parts(length: pl.Expr, alone: int, each: int) -> pl.Expr:
    return pl.when(length <= alone).then(1).otherwise((length + each - 1) // each)


def _character_class(characters: str) -> str:
    return "".join(rf"\x{{{ord(character):x}}}" for character in characters)
