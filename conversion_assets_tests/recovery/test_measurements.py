"""The measurements of `make recovery` at sizes for CI: the same code, bounds that hold by chance.

What test_marks.py asks of the project's generator is asked here of the other one, and of the
baseline that stands beside ours.
"""

import itertools
import json
from collections import defaultdict
from datetime import timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from conversion_assets import learn_patterns
from conversion_assets.features import build_features
from conversion_assets.learning import detect_patterns, list_claims
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import generate_agency
from conversion_assets_tests.recovery import (
    __main__,
    marks,
    passengers,
    power,
    randomised,
    repetition,
    touch_hazards,
    worlds,
)
from conversion_assets_tests.recovery.experiment import ExperimentConfig, generate_experiment
from conversion_assets_tests.recovery.raw_rates import rank_by_raw_rates
from conversion_assets_tests.recovery.table import Row, write_json, write_line, write_markdown
from conversion_assets_tests.recovery.worlds import HAZARD, PROPENSITY, WORLDS

slow = pytest.mark.slow


@slow
def test_noise_of_the_other_mechanism_is_hardly_ever_an_act():
    """Acts on a null client against wins by raw rates, which every client hears."""
    share, per_client, *_ = marks.measure_null(24, 400, world=PROPENSITY)
    assert share.n >= 20
    assert marks.is_plausible(share), share
    assert share.baseline == 1.0
    assert per_client.baseline > 15 > 1 > per_client.value


@slow
@pytest.mark.parametrize("world", WORLDS)
def test_a_cadence_pays_for_no_other_act(world):
    share, at_once, due = marks.measure_cadence(6, 4000, world=world)
    assert marks.is_plausible(share), share
    assert share.value <= at_once.value
    assert due.value > 2
    assert share.baseline == 1.0


@slow
@pytest.mark.parametrize(("cause", "world"), [("source", HAZARD), ("month", PROPENSITY)])
def test_what_only_goes_with_a_cause_is_no_act(cause, world):
    """Raw rates call it in every client; without holding the cause fixed we would in many."""
    share, unheld, *source = passengers.measure_passengers(8, 6000, cause=cause, world=world)
    assert marks.is_plausible(share), share
    assert unheld.value > 0.3 > share.value
    assert share.baseline == 1.0
    assert [mark.value for mark in source] == ([1.0] if cause == "source" else [])


@slow
def test_false_discoveries_and_errors_in_the_other_mechanism():
    found = {mark.name: mark for mark in marks.measure_mixed(20, 1000, world=PROPENSITY)}
    false = found["false discoveries among acts"]
    assert false.n >= 20
    assert marks.is_plausible(false), false
    assert false.baseline > 0.5
    for size in ("n < 50", "n > 1,000"):
        mark = found[f"error of shrunk over raw rates, {size}"]
        assert mark.passed, mark
        assert mark.baseline > 1.2


@slow
@pytest.mark.parametrize("world", WORLDS)
def test_intervals_cover_where_every_cell_truly_differs(world):
    """No cell has a lift of exactly 1 here, so coverage tells of the interval alone.

    In full size 88 to 92 % is asked; cells of a client hang together, hence the wider bounds.
    """
    clients = 8 if world == PROPENSITY else 4
    lift, *_ = marks.measure_continuous(clients, 2000, world=world)
    assert lift.n > 1000
    assert 0.82 <= lift.value <= 0.96, lift


@slow
@pytest.mark.parametrize("world", WORLDS)
def test_hazard_by_touch_where_drop_out_depends_on_the_lead(world):
    leads = 40_000
    ours, of_all = touch_hazards.measure_touch_hazard(leads, world=world)
    assert ours.n >= 5
    # As many standard errors as 10 % are at full size.
    assert ours.value <= 0.10 * (200_000 / leads) ** 0.5, ours
    assert ours.baseline > 1
    assert of_all.value > 0.25


@slow
def test_the_best_hour_in_a_zone_of_quarter_hours_of_the_other_mechanism():
    (mark,) = marks.measure_best_hour(15_000, zones=["Asia/Kathmandu"], world=PROPENSITY)
    assert mark.passed, mark
    assert mark.baseline == 0.0


def test_learning_windows_cross_the_clock_changes_they_name():
    """Mark 5 asks for both changes of the year; zones without any have none."""
    for zone in marks.TWELVE_ZONES:
        has_changes = zone not in ("Asia/Kolkata", "Asia/Kathmandu", "Asia/Tokyo")
        for season, (as_of, days) in marks.SEASONS.items():
            start = as_of - timedelta(days=days)
            expected = (2 if season == "the year" else 1) if has_changes else 0
            assert marks.count_clock_changes(zone, start, as_of) == expected, (zone, season)
            offsets = [
                (start + timedelta(days=day)).astimezone(ZoneInfo(zone)).utcoffset()
                for day in range(days + 1)
            ]
            assert sum(a != b for a, b in itertools.pairwise(offsets)) == expected


@slow
def test_reversals_of_the_other_mechanism_are_flagged():
    found = marks.measure_reversals(1, 10_000, world=PROPENSITY)
    assert [mark.n for mark in found[:2]] == [1, 1]
    assert all(mark.passed for mark in found), found
    # By raw rates what wins in every stratum is a loser.
    assert [mark.detail["baseline: losers"] for mark in found[:2]] == ["1", "1"]


@slow
def test_planted_effects_of_the_other_mechanism_are_found():
    found = marks.measure_planted(2, 10_000, world=PROPENSITY)
    assert all(marks.is_plausible(mark) for mark in found), found
    assert len({mark.name for mark in found}) == 8


@slow
@pytest.mark.parametrize("world", WORLDS)
def test_the_oracle_knows_more_than_we_do(world):
    ledger, weighted, learner, alone = power.measure_power(10, 1000, world=world)
    assert ledger.n == weighted.n == learner.n == alone.n == 10 * len(worlds.MARK_7)
    # Of what the oracle calls in the ledger we may miss; a named hypothesis is called more easily.
    assert alone.value <= ledger.value
    # What other clients say we know and the plain ledger's oracle does not; in our own weighted
    # ledger it knows all that we do. On so few clients we may be lucky.
    assert weighted.value <= min(ledger.value, 1.5)
    assert learner.value > 0.0
    assert alone.value <= 1.0


def test_the_oracles_question_is_answered_by_simulation():
    """Its tail is that of a sum of coins of unequal chances."""
    rng = np.random.default_rng(1)
    p = rng.uniform(0.001, 0.2, 300)
    counts = (rng.random((20_000, 300)) < p).sum(axis=1)
    moments = [np.array([x.sum()]) for x in (p, p * (1 - p), p * (1 - p) * (1 - 2 * p))]
    for k in np.quantile(counts, [0.3, 0.9, 0.99]):
        upper, _ = power.compute_tail_probabilities(np.array([k]), *moments)
        assert upper[0] == pytest.approx((counts >= k).mean(), abs=0.01)


def test_raw_rates_are_counted_as_described():
    """Against a loop over rows that follows the description word by word."""
    agency = generate_agency(
        SyntheticConfig(clients=2, leads=300, base_conversion=0.2, with_text=False, seed=3)
    )
    features = build_features(agency.clients, agency.leads, agency.activities)
    found = rank_by_raw_rates(features.leads, features.touches)
    by_lead = {row["lead_id"]: row for row in features.leads.iter_rows(named=True)}
    for client in agency.clients["id"]:
        leads = [r for r in by_lead.values() if r["client_id"] == client]
        judged = [r for r in leads if r["converted_at"] or r["failed_at"]]
        _compare(found, client, "industry_rankings", judged, "industry", "converted_at", least=5)
        touches = sorted(
            (r for r in features.touches.iter_rows(named=True) if r["client_id"] == client),
            key=lambda r: r["occurred_at"],
        )
        booked = [r for r in touches if r["is_converting"]]
        failed = [
            r for r in touches
            if by_lead[r["lead_id"]]["failed_at"] and not by_lead[r["lead_id"]]["converted_at"]
        ]  # fmt: skip
        rows = [
            {"hour": str(r["occurred_at"].hour), "won": r["is_converting"]}
            for r in [*booked, *failed[:500]]
        ]
        _compare(found, client, "best_hours", rows, "hour", "won", least=3)


def _compare(found, client, dimension, rows, column, won, *, least):
    counts = defaultdict(lambda: [0, 0])
    for row in rows:
        if row[column] is not None:
            counts[row[column]][0] += 1
            counts[row[column]][1] += bool(row[won])
    mean = sum(bool(row[won]) for row in rows) / len(rows)
    expected = {
        value: (n, k, pytest.approx(k / n / mean)) for value, (n, k) in counts.items() if n >= least
    }
    shown = found.filter(client_id=client, dimension=dimension)
    assert {v: (n, k, x) for v, n, k, x in shown.select("value", "n", "k", "lift").rows()} == (
        expected
    )
    assert expected


@slow
def test_an_experiment_through_files_database_and_dagster_is_what_the_notebook_says(tmp_path):
    config = ExperimentConfig(subjects=9000, base_rate=0.05)
    (document,) = randomised.learn_files([config], tmp_path)
    experiment = generate_experiment(config)
    learned = learn_patterns(experiment.leads, experiment.activities, as_of=config.as_of)
    expected = learned["experiment"]["what"].templates.model_dump(mode="json")
    assert json.loads(json.dumps(document["templates"])) == expected


@pytest.mark.parametrize(("world", "seed", "client"), [(HAZARD, 53, 8), (PROPENSITY, 52, 1)])
def test_weekly_looks_are_refreshes_that_remember(world, seed, client):
    """Counting a week once and judging it twice against refreshing it twice.

    The first client hears the same act in both weeks, the second one that only the memory spares.
    """
    looks = list(repetition.replay(world, 1, 500, 2, seed=seed, first_client=client))
    days = repetition.BEFORE_DAYS + 14
    agency = worlds.generate_null(world, 1, 500, seed, days=days, first_client=client)
    features = build_features(agency.clients, agency.leads, agency.activities)
    members = agency.clients.select(client_id="id", pool_opt_in=pl.lit(value=False))
    affected = agency.truth["clients"][0]["affected_dimensions"]

    def refresh(week, earlier):
        as_of = worlds.YEAR_END - timedelta(weeks=1 - week)
        found = detect_patterns(
            features.leads, features.touches, members, as_of=as_of, earlier=earlier
        )
        claims = {members["client_id"][0]: list_claims(found.documents.values())}
        false = {
            (one, claim.dimension, claim.value)
            for one, of_client in claims.items()
            for _, claim in of_client
            if claim.dimension not in affected
        }
        return claims, false

    first, false = refresh(0, None)
    assert looks[0].alone == looks[0].remembered == false
    assert looks[1].alone == refresh(1, None)[1]
    assert looks[1].remembered == refresh(1, first)[1]
    assert looks[1].alone
    assert bool(looks[1].remembered) == (world == HAZARD)


def test_the_tests_of_marks_9_and_10_exist():
    for file in (*repetition.INVARIANCE, repetition.EDGES, repetition.EDGES_OF_WORLDS):
        assert "def test_" in (repetition.ROOT / file).read_text()


ROWS = [
    Row("one", marks.Mark(1, "share", 0.05, high=0.1, n=40, baseline=1.0), 3.0),
    Row("one", marks.Mark(2, "cover", 0.99, 0.88, 0.92, 9, {"days": "1.0 of 9"}), 3.0),
    Row("two", marks.Mark(7, "only shown", 2.5, n=3, world=PROPENSITY), 1.0),
]


def test_the_table_says_what_is_not_met_and_why():
    lines = [write_line(row) for row in ROWS]
    assert "NOT MET days 1.0 of 9" in lines[1]
    assert [("NOT MET" in line) for line in lines] == [False, True, False]
    assert "at most 0.1" in lines[0]
    table = write_markdown(ROWS).splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + len(ROWS)
    described = json.loads(write_json(ROWS))
    assert [row["met"] for row in described] == [True, False, None]
    assert described[0]["baseline"] == 1.0


def test_the_command_writes_files_and_ends_with_1_when_a_mark_is_missed(
    tmp_path, monkeypatch, capsys
):
    made = {
        "null": lambda: [ROWS[0].mark],
        "mixed": lambda: [ROWS[1].mark],
    }
    monkeypatch.setattr(__main__, "SMALL", made)
    files = [tmp_path / "marks.md", tmp_path / "marks.json"]
    options = [part for file in files for part in ("--out", str(file))]
    assert __main__.main(["--only", "null", *options]) == 0
    assert __main__.main(options) == 1
    assert "NOT MET" in capsys.readouterr().out
    assert "NOT MET" in files[0].read_text()
    assert [row["measurement"] for row in json.loads(files[1].read_text())] == ["null", "mixed"]


def test_every_measurement_of_the_small_run_is_in_the_full_one():
    reshaped = {"power", "power-no-pool", "power-propensity"}
    assert set(__main__.SMALL) - reshaped <= set(__main__.FULL)


def test_a_figure_without_bounds_is_never_missed():
    mark = ROWS[2].mark
    assert mark.passed
    assert not mark.is_asked
    assert pl.Series([mark.value]).is_finite().all()
