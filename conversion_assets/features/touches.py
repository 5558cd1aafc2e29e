"""One row per outbound touch: order, gaps, channels, local time, conversion and content."""

from collections.abc import Iterable

import polars as pl

from conversion_assets.domain.content import ContentVocabulary
from conversion_assets.domain.terms import OUTBOUND_ACTIONS
from conversion_assets.features.content import content_schema
from conversion_assets.features.frames import UTC

KEY = ("client_id", "lead_id", "occurred_at", "activity_id")
MICROSECONDS_PER_DAY = 86_400_000_000

_KNOWN_CHANNELS = sorted({channel.value for channel in OUTBOUND_ACTIONS.values()})

_TIMING: dict[str, pl.DataType] = {
    "client_id": pl.String(),
    "lead_id": pl.String(),
    "activity_id": pl.String(),
    "occurred_at": UTC,
    "channel": pl.String(),
    "touch_number": pl.Int32(),
    "gap_days": pl.Float64(),
    "previous_channel": pl.String(),
    "channel_count": pl.Int32(),
    "adds_channel": pl.Boolean(),
    "local_weekday": pl.Int8(),
    "local_hour": pl.Int8(),
    "is_converting": pl.Boolean(),
    "is_after_conversion": pl.Boolean(),
    "booking_mismatch": pl.Boolean(),
    "lead_created_at": UTC,
    "lead_converted_at": UTC,
    "lead_scored_at": UTC,
    "source": pl.String(),
    "tier": pl.String(),
}


def touch_schema(vocabulary: ContentVocabulary) -> dict[str, pl.DataType]:
    """Columns of ``touch_features`` and their types, in order; sorted by :data:`KEY`."""
    return {**_TIMING, **content_schema(vocabulary)}


def touch_channel() -> pl.Expr:
    """Channel of an activity that is a touch, else null.

    The action decides. A channel nobody has seen yet counts when the action is sent on it
    ("whatsapp_sent" on "whatsapp"), or when it stands beside one of the known outbound actions.
    """
    action = pl.col("action").str.strip_chars().str.to_lowercase()
    channel = pl.col("channel").str.strip_chars().str.to_lowercase()
    named = {name: channel.value for name, channel in OUTBOUND_ACTIONS.items()}
    usual = action.replace_strict(named, default=None, return_dtype=pl.String)
    unseen = (channel != "") & ~channel.is_in(_KNOWN_CHANNELS)
    return (
        pl.when(usual.is_not_null() & unseen)
        .then(channel)
        .when(usual.is_not_null())
        .then(usual)
        .when(unseen & (action == channel + "_sent"))
        .then(channel)
    )


def compute_timing(touches: pl.DataFrame) -> pl.DataFrame:
    """Order, gaps, channels and conversion of touches.

    Args:
        touches: client_id, lead_id, activity_id, occurred_at, channel, led_to_booking,
            lead_zone, client_zone, lead_created_at, lead_converted_at, lead_scored_at, source,
            tier, in any order; further columns are kept.

    Returns:
        The frame sorted by :data:`KEY`, with the timing columns added.
    """
    ordered = touches.sort(KEY)
    lead = pl.col("lead_run")
    same_lead = lead == lead.shift(1)
    next_is_due = (lead == lead.shift(-1)) & (
        pl.col("occurred_at").shift(-1) <= pl.col("lead_converted_at")
    )
    before = pl.col("occurred_at") <= pl.col("lead_converted_at")
    timed = (
        ordered.with_row_index("at")
        .with_columns(pl.struct("client_id", "lead_id").rle_id().alias("lead_run"))
        .with_columns(
            (pl.col("at") - pl.col("at").min().over("lead_run") + 1).alias("touch_number"),
            pl.when(same_lead)
            .then(
                pl.col("occurred_at").diff().dt.total_microseconds() / float(MICROSECONDS_PER_DAY)
            )
            .alias("gap_days"),
            pl.when(same_lead).then(pl.col("channel").shift(1)).alias("previous_channel"),
            pl.struct("lead_run", "channel").is_first_distinct().alias("adds_channel"),
            (before & ~next_is_due.fill_null(False)).fill_null(False).alias("is_converting"),
            (~before).fill_null(False).alias("is_after_conversion"),
        )
        .with_columns(
            pl.col("adds_channel").cast(pl.Int32).cum_sum().over("lead_run").alias("channel_count"),
            (pl.col("led_to_booking") != pl.col("is_converting"))
            .fill_null(False)
            .alias("booking_mismatch"),
        )
    )
    return add_local_time(timed.drop("lead_run", "at"))


def add_local_time(touches: pl.DataFrame) -> pl.DataFrame:
    """Weekday and hour in the lead's zone, else the client's, else null.

    One conversion per distinct zone; offsets, also those of half an hour and of summer time, are
    the zone's at that moment.
    """
    zones = touches.select("lead_zone", "client_zone")
    known = _known_zones(
        pl.concat([zones["lead_zone"], zones["client_zone"].alias("lead_zone")])
        .drop_nulls()
        .unique()
        .to_list()
    )
    found = pl.coalesce(
        pl.when(_zone(name).is_in(known)).then(_zone(name)) for name in ("lead_zone", "client_zone")
    )
    numbered = touches.select("occurred_at", found.alias("zone")).with_row_index("at")
    parts = [
        part.select(
            "at",
            pl.col("occurred_at").dt.convert_time_zone(zone).dt.weekday().alias("local_weekday"),
            pl.col("occurred_at").dt.convert_time_zone(zone).dt.hour().alias("local_hour"),
        )
        for (zone,), part in numbered.drop_nulls("zone").partition_by("zone", as_dict=True).items()
    ]
    empty = pl.DataFrame(schema={"at": pl.UInt32, "local_weekday": pl.Int8, "local_hour": pl.Int8})
    local = pl.concat([empty, *parts])
    return (
        touches.with_row_index("at")
        .join(local, on="at", how="left", maintain_order="left")
        .drop("at")
    )


def _zone(name: str) -> pl.Expr:
    return pl.col(name).str.strip_chars()


def _known_zones(names: Iterable[str]) -> list[str]:
    return sorted(name for name in {name.strip() for name in names} if name and _is_zone(name))


def _is_zone(name: str) -> bool:
    """Whether the engine that converts times knows the zone."""
    try:
        pl.Series([None], dtype=UTC).dt.convert_time_zone(name)
    except pl.exceptions.PolarsError:
        return False
    return True
