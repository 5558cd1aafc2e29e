from datetime import timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from conversion_assets.domain.forecasts import FORECASTS
from conversion_assets.evaluation.backtest import run_backtest, summarize_forecasts
from conversion_assets.evaluation.forward import (
    forget_later,
    grade_forecasts,
    make_forecasts,
    put_grades,
)
from conversion_assets_tests.unit.evaluation.forward_agency import AS_OF, SETTINGS, detect, frames

pytestmark = pytest.mark.slow  # about fifty refreshes

WEEKS = 13


def replay(moments, leads, touches):
    def learn(moment, known):
        moments.append(moment)
        assert known.is_empty() or known["made_as_of"].max() < moment
        grades = known["graded_as_of"].drop_nulls()
        assert grades.is_empty() or grades.max() <= moment
        return detect(moment, known, leads=leads, touches=touches)

    return run_backtest(leads, touches, as_of=AS_OF, weeks=WEEKS, detect=learn, config=SETTINGS)


@pytest.fixture(scope="module")
def backtest():
    moments = []
    found = replay(moments, *frames()[:2])
    assert moments == [AS_OF - timedelta(days=7 * w) for w in range(WEEKS, 0, -1)]
    return found


def test_a_replay_is_the_live_loop(backtest):
    """The same refreshes one by one, storing and reading as a home does."""
    leads, touches, _ = frames()
    written = pl.DataFrame(schema=FORECASTS)
    for week in range(WEEKS, -1, -1):
        now = AS_OF - timedelta(days=7 * week)
        known = forget_later(written, now)
        graded = grade_forecasts(known, leads, touches, as_of=now, config=SETTINGS)
        known = put_grades(known, graded)
        written = put_grades(written, graded)
        if week:
            claims = detect(now, known).claims
            written = pl.concat([written, make_forecasts(claims, written, now)])
    key = ["client_id", "pattern_type", "dimension", "value", "made_as_of"]
    assert_frame_equal(backtest.forecasts, written.sort(key))


def test_a_replay_never_looks_ahead(backtest):
    """Facts later than the end of the replay are as if they were not."""
    leads, touches, _ = frames()
    end = AS_OF - timedelta(days=28)
    cut = (
        leads.filter(pl.col("created_at") <= end).with_columns(
            pl.when(pl.col("converted_at") <= end).then("converted_at").alias("converted_at")
        ),
        touches.filter(pl.col("occurred_at") <= end).with_columns(
            pl.when(pl.col("lead_converted_at") <= end)
            .then("lead_converted_at")
            .alias("lead_converted_at")
        ),
    )

    def run(leads, touches):
        return run_backtest(
            leads, touches, as_of=end, weeks=WEEKS - 4, config=SETTINGS,
            detect=lambda moment, known: detect(moment, known, leads=leads, touches=touches),
        )  # fmt: skip

    assert_frame_equal(run(leads, touches).forecasts, run(*cut).forecasts)


def test_windows_of_a_cell_are_disjoint(backtest):
    key = ["client_id", "pattern_type", "dimension", "value"]
    gaps = backtest.forecasts.sort(*key, "made_as_of").select(
        (pl.col("made_as_of") - pl.col("made_as_of").shift(1)).over(key).alias("gap")
    )
    assert (gaps["gap"].drop_nulls() >= timedelta(days=28)).all()


def test_planted_effects_keep_their_record(backtest):
    """At a fifth of leads converting, claims are mostly true: few are lost."""
    total = backtest.summary.row(0, named=True)
    assert total["judged"] >= 20
    assert total["inside"] >= 0.8
    assert total["kept"] >= 0.7
    assert 0.85 <= total["calibration"] <= 1.15
    assert total["brier"] < total["brier_base"]
    assert (backtest.record["status"] == "lost").mean() <= 0.1


def test_summary_of_nothing():
    total = summarize_forecasts(pl.DataFrame(schema=FORECASTS)).row(0, named=True)
    assert (total["claims"], total["graded"], total["judged"]) == (0, 0, 0)
    assert total["inside"] is None
    assert total["brier"] is None
    assert total["calibration"] is None
