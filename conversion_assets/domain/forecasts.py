"""Frames of the forward record: claims, and the forecasts that they are.

A claim is an estimate that the ledger calls an act. Written down with a date it is a forecast; its
last columns are null until the window has matured and it is graded.
"""

import polars as pl

HORIZON_DAYS = 28
"""Days of new leads and touches that a forecast is for: whole weeks, so that every weekday counts
alike; four of them, because the usual client has too few conversions in less, and a longer horizon
would only delay the answer: windows follow one another and are added up."""

_TIME = pl.Datetime("us", "UTC")
KEY = ("client_id", "pattern_type", "dimension", "value")
CLAIMS: dict[str, pl.DataType] = {
    "client_id": pl.String(),
    "pattern_type": pl.String(),
    "dimension": pl.String(),
    "value": pl.String(),
    "unit": pl.String(),
    "rate": pl.Float64(),
    "rate_low": pl.Float64(),
    "rate_high": pl.Float64(),
    "strength": pl.Float64(),
    "lift": pl.Float64(),
    "lift_low": pl.Float64(),
    "lift_high": pl.Float64(),
    "base_rate": pl.Float64(),
    "delay_days": pl.Float64(),
}
"""A claim: its cell; posterior mean, interval and strength (a + b) of the rate; lift with interval;
rate without effect; days until the outcome of its unit is known."""
GRADES: dict[str, pl.DataType] = {
    "graded_as_of": _TIME,
    "n": pl.Int64(),
    "k": pl.Int64(),
    "expected": pl.Float64(),
    "variance": pl.Float64(),
    "base_k": pl.Int64(),
    "is_judged": pl.Boolean(),
    "is_inside": pl.Boolean(),
    "brier": pl.Float64(),
    "brier_base": pl.Float64(),
}
"""A grade: what was known when it was given, counts of the window, and what they say."""
FORECASTS: dict[str, pl.DataType] = {
    **CLAIMS,
    "made_as_of": _TIME,
    "horizon_days": pl.Int64(),
    "due_as_of": _TIME,
    **GRADES,
}
