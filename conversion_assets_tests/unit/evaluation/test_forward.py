from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from conversion_assets.domain.forecasts import CLAIMS, FORECASTS, GRADES, HORIZON_DAYS, KEY
from conversion_assets.domain.patterns import Estimate
from conversion_assets.domain.terms import PatternType, Verdict
from conversion_assets.evaluation.explain import tabulate_cells
from conversion_assets.evaluation.forward import (
    build_record,
    decide_status,
    forget_later,
    grade_forecasts,
    make_forecasts,
    put_grades,
)
from conversion_assets_tests.unit.evaluation.forward_agency import (
    AS_OF,
    MADE,
    SETTINGS,
    detect,
    first,
    frames,
)

NONE = pl.DataFrame(schema=FORECASTS)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def made():
    return make_forecasts(first().claims, NONE, MADE)


@pytest.fixture(scope="module")
def graded(made):
    leads, touches, _ = frames()
    return grade_forecasts(made, leads, touches, as_of=AS_OF, config=SETTINGS)


def test_every_act_becomes_one_forecast(made):
    acts = {
        (client, kind.value, row["dimension"], row["value"])
        for (client, kind), document in first().documents.items()
        for row in tabulate_cells([document]).iter_rows(named=True)
        if row["verdict"] == "act"
    }
    said = {
        (client, kind, dimension, value.replace("\x1f", " > "))
        for client, kind, dimension, value in made.select(KEY).iter_rows()
    }
    assert acts
    assert said == acts
    assert made["graded_as_of"].null_count() == made.height
    assert ((made["due_as_of"] - MADE) >= timedelta(days=HORIZON_DAYS)).all()


@pytest.mark.parametrize(
    ("days", "is_blocked"),
    [(-40, False), (-28, False), (-27, True), (0, True), (27, True), (28, False)],
)
def test_windows_of_one_cell_never_overlap(made, days, is_blocked):
    again = make_forecasts(first().claims, made, MADE + days * DAY)
    assert again.height == (0 if is_blocked else made.height)


def count_slowly(row):
    """One lead-level cell of one window by a loop over leads."""
    column = {"title_rankings.seniority": "seniority", "title_rankings.function": "function",
              "title_rankings.title": "title", "industry_rankings": "industry",
              "source_rankings": "source", "country_rankings": "country",
              "size_analysis": "size_bucket"}[row["dimension"]]  # fmt: skip
    leads = frames()[0].filter(pl.col("client_id") == row["client_id"]).to_dicts()
    start, end = row["made_as_of"], row["made_as_of"] + timedelta(days=row["horizon_days"])

    def converted(lead):
        return lead["converted_at"] is not None and lead["converted_at"] <= AS_OF

    learned = [x for x in leads if AS_OF - 365 * DAY < x["created_at"] <= AS_OF]
    delays = sorted(x["converted_at"] - x["created_at"] for x in learned if converted(x))
    # The quantile that takes the higher of two neighbours.
    delay = max(delays[int(np.ceil(0.9 * (len(delays) - 1)))], timedelta(0))
    window = [
        x for x in leads if start < x["created_at"] <= end and AS_OF - x["created_at"] >= delay
    ]
    cell = [x for x in window if x[column] == row["value"]]
    base_k = sum(map(converted, window))
    return len(cell), sum(map(converted, cell)), base_k, len(cell) * base_k / max(len(window), 1)


def test_a_grade_is_what_a_loop_counts(graded):
    plain = graded.filter(
        pl.col("pattern_type") == "who", ~pl.col("dimension").str.starts_with("timing")
    )
    assert plain.height
    for row in plain.iter_rows(named=True):
        n, k, base_k, expected = count_slowly(row)
        assert (row["n"], row["k"]) == (n, k)
        if n:
            assert row["base_k"] == base_k
            assert row["expected"] == pytest.approx(expected)
            p, q = row["rate"], row["base_rate"]
            assert row["brier"] == pytest.approx((k * (1 - p) ** 2 + (n - k) * p**2) / n)
            assert row["brier_base"] == pytest.approx((k * (1 - q) ** 2 + (n - k) * q**2) / n)


def test_forecasts_of_many_moments_are_graded_as_if_alone(made, graded):
    leads, touches, _ = frames()
    other = make_forecasts(first().claims, NONE, MADE - 14 * DAY)
    both = grade_forecasts(pl.concat([other, made]), leads, touches, as_of=AS_OF, config=SETTINGS)
    assert_frame_equal(both.filter(pl.col("made_as_of") == MADE), graded)
    for client in made["client_id"].unique():
        alone = grade_forecasts(
            made.filter(pl.col("client_id") == client), leads, touches, as_of=AS_OF, config=SETTINGS
        )
        assert_frame_equal(alone, graded.filter(pl.col("client_id") == client))


def test_nothing_is_graded_before_it_is_due(made):
    leads, touches, _ = frames()
    early = MADE + timedelta(days=HORIZON_DAYS) - DAY
    assert grade_forecasts(made, leads, touches, as_of=early, config=SETTINGS).is_empty()


def test_a_grade_knows_nothing_of_later(made):
    """Shift every fact after the moment of grading, and take away what came after."""
    leads, touches, _ = frames()
    moment = AS_OF - 20 * DAY
    honest = grade_forecasts(made, leads, touches, as_of=moment, config=SETTINGS)

    def shift(frame, *columns):
        for name in columns:
            later = pl.col(name) > moment
            moved = pl.col(name) + pl.duration(days=900)
            frame = frame.with_columns(pl.when(later).then(moved).otherwise(name).alias(name))
        return frame

    shifted = grade_forecasts(
        made,
        shift(leads, "created_at", "converted_at", "failed_at"),
        shift(touches, "occurred_at", "lead_created_at", "lead_converted_at"),
        as_of=moment,
        config=SETTINGS,
    )
    assert honest.height
    assert_frame_equal(honest, shifted)


def test_a_replay_forgets_what_was_learned_later(made, graded):
    written = put_grades(made, graded)
    assert forget_later(written, MADE).is_empty()
    before = forget_later(written, AS_OF - DAY)
    assert before.select(GRADES.keys()).null_count().row(0) == (made.height,) * len(GRADES)
    assert_frame_equal(forget_later(written, AS_OF), written)
    assert build_record(before, AS_OF - DAY, SETTINGS).is_empty()


def test_grading_again_changes_nothing(made, graded):
    leads, touches, _ = frames()
    written = put_grades(made, graded)
    again = grade_forecasts(written, leads, touches, as_of=AS_OF, config=SETTINGS)
    assert again.filter(pl.col("graded_as_of").is_not_null()).is_empty()


def fake(*, lift, k, expected, windows=1):
    """A record of one cell, hand made."""
    row = {
        "client_id": "c", "pattern_type": "who", "dimension": "source_rankings", "value": "web",
        "unit": "lead", "rate": 0.1, "rate_low": 0.08, "rate_high": 0.12, "strength": 900.0,
        "lift": lift, "lift_low": lift * 0.8, "lift_high": lift * 1.2, "base_rate": 0.06,
        "delay_days": 9.0, "horizon_days": 28, "graded_as_of": AS_OF, "n": 100, "k": k,
        "expected": expected, "variance": expected * 0.8, "base_k": 10 * max(int(expected), 1),
        "is_judged": expected >= 3, "is_inside": True, "brier": 0.1, "brier_base": 0.11,
    }  # fmt: skip
    moments = [AS_OF - (40 + 28 * i) * DAY for i in range(windows)]
    rows = [{**row, "made_as_of": m, "due_as_of": m + 37 * DAY} for m in moments]
    return pl.DataFrame(rows, schema=FORECASTS)


def test_windows_add_up():
    record = build_record(fake(lift=1.5, k=12, expected=8.0, windows=3), AS_OF, SETTINGS)
    row = record.row(0, named=True)
    assert (row["windows"], row["judged"], row["n"], row["k"]) == (3, 3, 300, 36)
    assert row["lift"] == pytest.approx(1.5)
    assert row["lift_low"] > 1.0
    assert row["status"] == "holds"
    assert row["brier"] == pytest.approx(0.1)


def test_windows_older_than_the_learning_window_are_forgotten():
    assert build_record(fake(lift=1.5, k=9, expected=8.0), AS_OF + 400 * DAY, SETTINGS).is_empty()


@pytest.mark.parametrize(
    ("expected", "on_side", "against", "status"),
    [
        (1.0, 0.4, 0.0, "too_few"),
        (9.0, 0.4, 0.0, "fades"),
        (9.0, 0.6, 0.0, "holds"),
        (9.0, 0.4, 2.4, "lost"),
        (9.0, 0.95, 2.4, "holds"),  # weaker than claimed, but there
        (2.0, 0.1, 2.4, "lost"),
        (0.0, np.nan, 0.0, "too_few"),
    ],
)
def test_status(expected, on_side, against, status):
    values = (np.array([x]) for x in (expected, on_side, against))
    assert decide_status(*values).tolist() == [status]


def test_a_lost_record_turns_an_act_into_a_watch_and_recovers(made):
    claim = made.filter(pl.col("pattern_type") == "who").head(1)
    row = claim.row(0, named=True)
    wrong = 0 if row["lift"] > 1.0 else 20
    bad = fake(lift=row["lift"], k=wrong, expected=10.0).with_columns(
        pl.lit(row[name]).alias(name) for name in KEY
    )
    bad = bad.with_columns(
        graded_as_of=pl.lit(MADE - DAY).cast(FORECASTS["graded_as_of"]),
        made_as_of=pl.lit(MADE - 60 * DAY).cast(FORECASTS["made_as_of"]),
    )
    after = detect(MADE, bad)
    found = after.documents[row["client_id"], PatternType.WHO]
    plain = first().documents[row["client_id"], PatternType.WHO]

    def pick(document) -> Estimate:
        cells = tabulate_cells([document])
        return cells.filter(
            pl.col("dimension") == row["dimension"], pl.col("value") == row["value"]
        ).row(0, named=True)

    assert pick(plain)["verdict"] == "act"
    assert pick(found)["verdict"] == "watch"
    assert pick(found)["forward"] == "lost"
    assert len(found.claims) == len(plain.claims) - 1
    # It is still watched: without new forecasts it could never recover.
    assert_frame_equal(after.claims, first().claims)
    for name in ("seniority", "function", "title"):
        ranks = [list(Verdict).index(e.verdict) for e in getattr(found.title_rankings, name)]
        assert ranks == sorted(ranks)
    # The other side of the same cell has no record.
    turned = bad.with_columns(lift=1.0 / pl.col("lift"))
    assert (
        pick(detect(MADE, turned).documents[row["client_id"], PatternType.WHO])["forward"] is None
    )


def test_no_claims_no_forecasts():
    nothing = pl.DataFrame(schema=CLAIMS)
    leads, touches, _ = frames()
    assert make_forecasts(nothing, NONE, MADE).is_empty()
    graded = grade_forecasts(NONE, leads, touches, as_of=AS_OF, config=SETTINGS)
    assert graded.schema == FORECASTS
    assert build_record(NONE, AS_OF, SETTINGS).is_empty()


def test_a_client_that_lost_all_its_rows_is_graded_as_too_few(made):
    leads, touches, _ = frames()
    gone = grade_forecasts(made, leads.clear(), touches.clear(), as_of=AS_OF, config=SETTINGS)
    assert gone.height == made.height
    assert gone["n"].to_list() == [0] * made.height
    assert set(build_record(gone, AS_OF, SETTINGS)["status"]) == {"too_few"}
