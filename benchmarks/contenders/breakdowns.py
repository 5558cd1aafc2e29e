"""The 22 breakdowns that every contender counts: a value, its sample and its conversions.

Each contender returns the same frame: one row per client, breakdown and value with n and k, sorted
by these three; values are text. `conversion_assets_tests` holds them against each other.
"""

import polars as pl

LEAD_COLUMNS = (
    "seniority", "function", "title", "industry", "source", "country", "size_bucket",
    "is_new_role", "is_hiring", "recently_funded",
)  # fmt: skip
TOUCH_COLUMNS = (
    "channel", "touch_number", "channel_count", "local_weekday", "local_hour", "subject_length",
    "cta_type", "template_id",
)  # fmt: skip
FLAG_FAMILIES = ("subject", "pain", "angle", "personal")
"""Boolean columns `family__name` of the touches: one breakdown each, whose values overlap."""

SCHEMA = {
    "client_id": pl.String(),
    "breakdown": pl.String(),
    "value": pl.String(),
    "n": pl.Int64(),
    "k": pl.Int64(),
}


def list_flags(columns: list[str]) -> dict[str, list[str]]:
    """Flag columns by family."""
    return {
        family: [column for column in columns if column.startswith(f"{family}__")]
        for family in FLAG_FAMILIES
    }


def settle(counts: pl.DataFrame) -> pl.DataFrame:
    """The common form: named columns, text values, no empty cells, sorted."""
    return (
        counts.select(pl.col(name).cast(dtype) for name, dtype in SCHEMA.items())
        .filter(pl.col("n") > 0, pl.col("value").is_not_null())
        .sort("client_id", "breakdown", "value")
    )
