"""The method that the system was first described with, as a baseline: raw rates and a minimum.

A value is a win when it was seen often enough and its rate is above the mean. As described, not as
one would mend it:

- Leads that converted are compared with leads that failed; open ones are left out. At least 10
  conversions and 30 leads in all, 5 leads for a value.
- Touches that led to a booking are compared with the first 500 touches of leads that failed. At
  least 5 bookings and 20 touches in all, 3 touches for a value.
- Hours and weekdays are those of UTC.
- No window, no maturity, no adjustment, no test, no interval.
- Confidence grows with the sample alone: a logistic curve around 100 leads (scale 30), and around
  50 booked touches (scale 15).
"""

import polars as pl
from scipy.special import expit

from conversion_assets.detectors.cells import Dimension
from conversion_assets.detectors.dimensions import list_dimensions

LEAST_LEADS, LEAST_CONVERSIONS, LEAST_OF_A_VALUE = 30, 10, 5
LEAST_TOUCHES, LEAST_BOOKINGS, LEAST_TOUCHES_OF_A_VALUE = 20, 5, 3
MOST_OTHER_TOUCHES = 500
RANKED = (
    "title_rankings.title", "industry_rankings", "size_analysis", "timing_signals.new_role",
    "timing_signals.hiring", "timing_signals.funded", "subject_patterns", "pain_points",
    "ctas.effective", "ctas.by_type", "angles", "personalization_lift", "best_days", "best_hours",
    "first_touch", "multi_channel", "channel_by_tier", "winning_sequences",
)  # fmt: skip
"""What it ranks, under our names: no grid of the week, no gaps, no hazard by touch."""
LONGEST_SEQUENCE = 6


def rank_by_raw_rates(leads: pl.DataFrame, touches: pl.DataFrame) -> pl.DataFrame:
    """Rates, lifts and wins of every value of every client.

    Args:
        leads: `lead_features`.
        touches: `touch_features`.

    Returns:
        client_id, dimension, value, n, k, rate, lift, is_win, confidence; only values that are
        seen often enough, of clients that have enough.
    """
    judged = leads.with_columns(won=pl.col("converted_at").is_not_null()).filter(
        pl.col("won") | pl.col("failed_at").is_not_null()
    )
    outcomes = judged.select("client_id", "lead_id", "won")
    sent = touches.join(outcomes, on=["client_id", "lead_id"])
    rows = {
        "leads": judged.join(
            sent.filter(touch_number=1).select("client_id", "lead_id", "channel"),
            on=["client_id", "lead_id"],
            how="left",
        ),
        "touches": _compare_touches(sent),
        "sequences": _list_sequences(sent),
    }
    chosen = [d for d in list_dimensions(touches.columns) if d.name in RANKED]
    return pl.concat([_rank(rows[d.rows], d) for d in chosen])


def _compare_touches(sent: pl.DataFrame) -> pl.DataFrame:
    booked = sent.filter("is_converting")
    others = (
        sent.filter(~pl.col("won"))
        .sort("client_id", "occurred_at")
        .group_by("client_id", maintain_order=True)
        .head(MOST_OTHER_TOUCHES)
        .select(booked.columns)
    )
    return pl.concat([booked, others]).with_columns(
        won=pl.col("is_converting"),
        local_weekday=pl.col("occurred_at").dt.weekday(),
        local_hour=pl.col("occurred_at").dt.hour(),
    )


def _list_sequences(sent: pl.DataFrame) -> pl.DataFrame:
    paths = (
        sent.sort("touch_number")
        .group_by("client_id", "lead_id", "won")
        .agg(path=pl.col("channel").head(LONGEST_SEQUENCE))
        .filter(pl.col("path").list.len() >= 2)
    )
    return paths.with_columns(prefix=pl.col("path").list.join("\x1f"), is_candidate=True)


def _rank(rows: pl.DataFrame, dimension: Dimension) -> pl.DataFrame:
    rows = rows.with_columns(**getattr(dimension, "bins", {}))
    values = (
        [dimension.value]
        if dimension.value is not None
        else [pl.when(c).then(pl.lit(label)) for label, c in dimension.flags.items()]
    )
    is_lead = dimension.rows != "touches"
    least = (LEAST_LEADS, LEAST_CONVERSIONS) if is_lead else (LEAST_TOUCHES, LEAST_BOOKINGS)
    least_of_a_value = LEAST_OF_A_VALUE if dimension.rows == "leads" else LEAST_TOUCHES_OF_A_VALUE
    all_k, all_n = pl.col("won").sum(), pl.len()
    base = rows.group_by("client_id").agg(all_k=all_k, all_n=all_n)
    counted = [
        rows.select("client_id", "won", value=value.cast(pl.String))
        .drop_nulls("value")
        .group_by("client_id", "value")
        .agg(n=pl.len().cast(pl.Int64), k=pl.col("won").sum().cast(pl.Int64))
        for value in values
    ]
    confidence = (
        expit((base["all_n"].to_numpy().astype(float) - 100) / 30)
        if is_lead
        else expit((base["all_k"].to_numpy().astype(float) - 50) / 15)
    )
    return (
        pl.concat(counted)
        .join(base.with_columns(confidence=pl.Series(confidence)), on="client_id")
        .filter(
            pl.col("all_n") >= least[0],
            pl.col("all_k") >= least[1],
            pl.col("n") >= least_of_a_value,
        )
        .with_columns(rate=pl.col("k") / pl.col("n"))
        .with_columns(lift=pl.col("rate") / (pl.col("all_k") / pl.col("all_n")))
        .select(
            "client_id", "value", "n", "k", "rate", "lift", "confidence",
            dimension=pl.lit(dimension.name), is_win=pl.col("lift") > 1,
        )
    )  # fmt: skip
