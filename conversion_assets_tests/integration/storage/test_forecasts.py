from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sqlalchemy import insert, text

from conversion_assets.domain.errors import InputError
from conversion_assets.domain.forecasts import FORECASTS, GRADES
from conversion_assets.storage.database import reported_connection_errors, write_transaction
from conversion_assets.storage.forecasts import ForecastChanges, read_forecasts, store_forecasts
from conversion_assets.storage.tables import clients

MADE = datetime(2026, 1, 4, 2, 0, 0, 123456, tzinfo=UTC)
SORTED = ["client_id", "pattern_type", "dimension", "value", "made_as_of"]


def forecast(client="c1", value="web", made=MADE, **given):
    row = {
        "client_id": client, "pattern_type": "who", "dimension": "source_rankings", "value": value,
        "unit": "lead", "rate": 0.1 / 3, "rate_low": 0.01, "rate_high": 0.12, "strength": 1e3 / 7,
        "lift": 1.5, "lift_low": 1.1, "lift_high": 2.0, "base_rate": 0.06, "delay_days": 9.5,
        "made_as_of": made, "horizon_days": 28, "due_as_of": made + timedelta(days=37.5), **given,
    }  # fmt: skip
    return pl.DataFrame([row], schema=FORECASTS)


def grade(frame, k=3, later=timedelta(days=40)):
    return frame.with_columns(
        graded_as_of=(pl.col("made_as_of") + later), n=pl.lit(40), k=pl.lit(k),
        expected=pl.lit(10 / 3), variance=pl.lit(2.9), base_k=pl.lit(31),
        is_judged=pl.lit(value=True), is_inside=pl.lit(value=k == 3), brier=pl.lit(0.07),
        brier_base=pl.lit(0.08),
    ).cast(FORECASTS)  # fmt: skip


@pytest.fixture
def home(engine):
    with write_transaction(engine) as connection:
        connection.execute(
            insert(clients), [{"id": c, "created_at": MADE} for c in ("c1", "c2", "c3")]
        )
    return engine


def store(engine, **changes):
    with write_transaction(engine) as connection:
        store_forecasts(connection, [ForecastChanges(**changes)], code_version="1", run_id="r")


def test_forecasts_come_back_as_they_were_written(home):
    long = "x" * 10_000
    made = pl.concat(
        [forecast(), forecast("c2", "email\x1fsms"), forecast(value=long), forecast(value="ü'\"%")]
    )
    store(home, made=made)
    assert_frame_equal(read_forecasts(home, ["c1", "c2"]), made.sort(SORTED))
    assert_frame_equal(read_forecasts(home, ["c2"]), made.filter(pl.col("client_id") == "c2"))
    assert read_forecasts(home, ["c3"]).is_empty()
    assert read_forecasts(home, []).is_empty()
    assert read_forecasts(home, ["c1"], made_after=MADE).is_empty()


def test_what_was_said_stays_said(home):
    store(home, made=forecast())
    store(home, made=forecast(lift=9.0))
    assert_frame_equal(read_forecasts(home, ["c1"]), forecast())


def test_a_grade_is_given_once(home):
    store(home, made=pl.concat([forecast(), forecast(value="other")]))
    store(home, graded=grade(forecast()))
    store(home, graded=grade(forecast(), k=30))
    both = read_forecasts(home, ["c1"])
    assert_frame_equal(both.filter(pl.col("value") == "web"), grade(forecast()))
    other = both.filter(pl.col("value") == "other")
    assert other.select(GRADES.keys()).null_count().row(0) == (1,) * len(GRADES)


def test_a_grade_before_its_time_is_refused(home):
    store(home, made=forecast())
    with pytest.raises(InputError, match="graded_when_due"), reported_connection_errors(home):
        store(home, graded=grade(forecast(), later=timedelta(days=30)))
    assert read_forecasts(home, ["c1"])["graded_as_of"].null_count() == 1


def test_a_forecast_of_nobody_is_refused(home):
    with pytest.raises(InputError), reported_connection_errors(home):
        store(home, made=forecast("nobody"))
    with home.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM pattern_forecasts")).scalar() == 0
