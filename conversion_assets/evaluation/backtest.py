"""The live loop on moments of the past: learn, forecast, grade, and see how the claims did.

Week after week the replay knows only what was known then, its own earlier forecasts and grades
among it. What is due at the end is graded with what is known at the end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

import numpy as np
import polars as pl

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.forecasts import FORECASTS, KEY
from conversion_assets.evaluation.forward import (
    build_record,
    forget_later,
    grade_forecasts,
    make_forecasts,
    put_grades,
)
from conversion_assets.stats.predictive import compute_beta_binomial_tails

WEEK = timedelta(days=7)


class Replayed(Protocol):
    """What a refresh gives: its claims, and whatever the next refresh wants to know of it."""

    @property
    def claims(self) -> pl.DataFrame:
        """Columns of `domain.forecasts.CLAIMS`."""


Detect = Callable[[datetime, pl.DataFrame], Replayed]
"""Learn at a moment, from the forecasts known then; called for one moment after another."""


@dataclass(frozen=True)
class Backtest:
    """Result of a replay.

    Attributes:
        forecasts: All that were made, columns of `FORECASTS`; open ones are not graded.
        record: What they add up to, as `build_record` gives it.
        summary: One row per client, and one of all (client_id null); see `summarize_forecasts`.
    """

    forecasts: pl.DataFrame
    record: pl.DataFrame
    summary: pl.DataFrame


def run_backtest(
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    *,
    as_of: datetime,
    weeks: int,
    detect: Detect,
    config: LearningConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Backtest:
    """Replay the refreshes of the last `weeks` weeks before `as_of`, oldest first.

    Args:
        leads: `lead_features` of the clients that `detect` claims about.
        touches: `touch_features` of the same clients.
        as_of: Nothing later is known, at the end of the replay either.
        weeks: Refreshes to replay, one a week; the last is a week before `as_of`.
        detect: How to learn at a moment.
        config: Thresholds.
        progress: Told the refreshes done and their number.
    """
    written = pl.DataFrame(schema=FORECASTS)
    for done, back in enumerate(range(weeks, 0, -1)):
        then = as_of - back * WEEK
        written = put_grades(written, _grade(written, leads, touches, then, config))
        claims = detect(then, forget_later(written, then)).claims
        written = pl.concat([written, make_forecasts(claims, written, then)])
        if progress:
            progress(done + 1, weeks)
    written = put_grades(written, _grade(written, leads, touches, as_of, config))
    known = forget_later(written, as_of).sort(*KEY, "made_as_of")
    return Backtest(known, build_record(known, as_of, config), summarize_forecasts(known))


def _grade(
    written: pl.DataFrame,
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    moment: datetime,
    config: LearningConfig,
) -> pl.DataFrame:
    return grade_forecasts(
        forget_later(written, moment), leads, touches, as_of=moment, config=config
    )


def summarize_forecasts(forecasts: pl.DataFrame) -> pl.DataFrame:
    """How forecasts did, per client and over all.

    Args:
        forecasts: Columns of `FORECASTS`.

    Returns:
        client_id (null: all), claims (forecasts made), graded, judged (enough expected to say
        something), inside (share of the judged whose count lies in the predictive interval),
        kept (share of the judged whose lift is on the claimed side), observed (conversions in all
        graded windows), predicted (those the forecast rates say), calibration (their ratio),
        uniformity (p-value of the judged forecasts' places in their predictive distributions
        being uniform), brier, brier_base (mean per lead or touch). Shares are null without any.
        The row of all first, then by client.

    Source:
        Places in the predictive distribution: Dawid 1984, Czado, Gneiting & Held 2009 (counts).
    """
    placed = forecasts.with_columns(
        place=_place(forecasts),
        is_kept=(pl.col("k") > pl.col("expected")) == (pl.col("lift") >= 1.0),
        predicted=pl.col("n") * pl.col("rate"),
    )
    judged = pl.col("is_judged").fill_null(value=False)
    weight = pl.col("n") / pl.col("n").sum()
    columns = {
        "claims": pl.len().cast(pl.Int64),
        "graded": pl.col("graded_as_of").is_not_null().sum().cast(pl.Int64),
        "judged": judged.sum().cast(pl.Int64),
        "inside": pl.col("is_inside").filter(judged).mean(),
        "kept": pl.col("is_kept").filter(judged).mean(),
        "observed": pl.col("k").sum().cast(pl.Int64),
        "predicted": pl.col("predicted").sum(),
        "places": pl.col("place").filter(judged),
        "brier": pl.when(pl.col("n").sum() > 0).then((pl.col("brier") * weight).sum()),
        "brier_base": pl.when(pl.col("n").sum() > 0).then((pl.col("brier_base") * weight).sum()),
    }
    total = placed.select(client_id=pl.lit(None, pl.String), **_listed(columns))
    each = placed.group_by("client_id").agg(**columns).sort("client_id")
    both = pl.concat([total, each.select(total.columns)])
    uniformity = [_test_uniform(np.asarray(places)) for places in both["places"]]
    return both.with_columns(
        calibration=pl.when(pl.col("predicted") > 0).then(pl.col("observed") / pl.col("predicted")),
        uniformity=pl.Series(uniformity, dtype=pl.Float64),
    ).drop("places")


def _listed(columns: Mapping[str, pl.Expr]) -> dict[str, pl.Expr]:
    return {k: e.implode() if k == "places" else e for k, e in columns.items()}


def _place(forecasts: pl.DataFrame) -> pl.Series:
    """Mid-distribution place of each count in its forecast's predictive distribution."""
    k, n, mean, strength = (
        forecasts[name].fill_null(0).to_numpy().astype(np.float64)
        for name in ("k", "n", "rate", "strength")
    )
    upper, lower = compute_beta_binomial_tails(k, n, mean * strength, (1 - mean) * strength)
    return pl.Series((lower + 1.0 - upper) / 2.0)


def _test_uniform(places: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    """p-value of the mean place being a half; the mean is what a biased forecast moves."""
    if places.size < 5:
        return None
    from scipy.special import ndtr  # noqa: PLC0415

    z = (places.mean() - 0.5) * np.sqrt(12.0 * places.size)
    return float(2.0 * ndtr(-abs(z)))
