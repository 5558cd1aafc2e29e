"""One row per lead: normalised attributes, conversion and score components."""

import polars as pl

from conversion_assets.domain.terms import (
    BOOKING_ACTION,
    FAILED_STATUSES,
    SCORE_COMPONENTS,
    SIZE_BUCKETS,
    LeadStatus,
)
from conversion_assets.features.content import decode_json
from conversion_assets.features.frames import UTC
from conversion_assets.features.titles import normalize_titles

LEAD_FEATURES: dict[str, pl.DataType] = {
    "client_id": pl.String(),
    "lead_id": pl.String(),
    "created_at": UTC,
    "converted_at": UTC,
    "failed_at": UTC,
    "seniority": pl.String(),
    "function": pl.String(),
    "title": pl.String(),
    "industry": pl.String(),
    "source": pl.String(),
    "country": pl.String(),
    "tier": pl.String(),
    "size_bucket": pl.String(),
    "is_new_role": pl.Boolean(),
    "is_hiring": pl.Boolean(),
    "recently_funded": pl.Boolean(),
    **dict.fromkeys(SCORE_COMPONENTS, pl.Float64()),
    "scored_at": UTC,
}
"""Columns of ``lead_features`` and their types, in order; the key is (client_id, lead_id)."""


def compute_bookings(activities: pl.DataFrame) -> pl.DataFrame:
    """First booked meeting of each lead: client_id, lead_id, booked_at."""
    return (
        activities.filter(pl.col("action") == BOOKING_ACTION)
        .group_by("client_id", "lead_id")
        .agg(pl.col("occurred_at").min().alias("booked_at"))
    )


def compute_lead_features(leads: pl.DataFrame, bookings: pl.DataFrame) -> pl.DataFrame:
    """Attributes and outcome of each lead.

    Args:
        leads: canonical lead rows, already free of deleted leads and duplicates.
        bookings: result of :func:`compute_bookings`.

    Returns:
        Frame with the columns of :data:`LEAD_FEATURES`, sorted by its key.
    """
    ordered = leads.sort("client_id", "id").join(
        bookings,
        left_on=["client_id", "id"],
        right_on=["client_id", "lead_id"],
        how="left",
        maintain_order="left",
    )
    status = pl.col("status").str.strip_chars().str.to_lowercase()
    converted = pl.when(status == LeadStatus.CONVERTED.value).then(pl.col("converted_at"))
    known_at = pl.coalesce("updated_at", "created_at")
    components, _ = decode_json(
        ordered["als_components"],
        pl.Struct(dict.fromkeys(SCORE_COMPONENTS, pl.Float64())),
    )
    features = ordered.with_columns(
        normalize_titles(ordered["title"]), components=components
    ).select(
        "client_id",
        pl.col("id").alias("lead_id"),
        "created_at",
        pl.min_horizontal(converted, "booked_at").alias("converted_at"),
        pl.when(status.is_in([failed.value for failed in FAILED_STATUSES]))
        .then(known_at)
        .alias("failed_at"),
        "seniority",
        "function",
        "title",
        *(_trimmed(name) for name in ("industry", "source", "country")),
        _trimmed("als_tier").alias("tier"),
        _size_bucket(),
        "is_new_role",
        "is_hiring",
        "recently_funded",
        *(_finite(pl.col("components").struct.field(name)) for name in SCORE_COMPONENTS),
        "scored_at",
    )
    return features.select(pl.col(name).cast(dtype) for name, dtype in LEAD_FEATURES.items())


def _trimmed(name: str) -> pl.Expr:
    text = pl.col(name).str.strip_chars()
    return pl.when(text != "").then(text).alias(name)


def _size_bucket() -> pl.Expr:
    count = pl.col("employee_count")
    label: pl.Expr = pl.lit(None, dtype=pl.String)
    for name, highest in reversed(SIZE_BUCKETS):
        label = pl.when(count <= highest).then(pl.lit(name)).otherwise(label)
    return pl.when(count >= 1).then(label).alias("size_bucket")


def _finite(points: pl.Expr) -> pl.Expr:
    return pl.when(points.is_finite()).then(points)
