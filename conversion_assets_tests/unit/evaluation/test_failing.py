"""A record that fails as a whole: found when most claims are false, and only then."""

from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.forecasts import FORECASTS
from conversion_assets.evaluation.failing import BETS, MISS_RATE, judge_records
from conversion_assets_tests.unit.evaluation.forward_agency import AS_OF

CONFIG = LearningConfig()


def forecast(claim, window, *, expected=20.0, k=36, inside=True, lift=1.8, client="c"):
    """One graded window of a claim that a value converts 1.8 times as often."""
    made = AS_OF - timedelta(days=28 * (window + 2))
    row = {
        "client_id": client, "pattern_type": "who", "dimension": "source_rankings", "value": claim,
        "unit": "lead", "rate": 0.3, "rate_low": 0.25, "rate_high": 0.35, "strength": 400.0,
        "lift": lift, "lift_low": 1.4, "lift_high": 2.3, "base_rate": 0.2, "delay_days": 5.0,
        "made_as_of": made, "horizon_days": 28, "due_as_of": made + timedelta(days=33),
        "graded_as_of": made + timedelta(days=40), "n": 100, "k": k, "expected": expected,
        "variance": expected * 0.8, "base_k": 60, "is_judged": True, "is_inside": inside,
        "brier": 0.2, "brier_base": 0.2,
    }  # fmt: skip
    return row


def judge(rows, config=CONFIG):
    found = judge_records(pl.DataFrame(rows, schema=FORECASTS), AS_OF, config)
    return found.to_dicts()


def test_true_claims_give_no_evidence():
    (told,) = judge([forecast(f"v{c}", w) for c in range(4) for w in range(5)])
    assert (told["claims"], told["lost"]) == (4, 0)
    assert told["lift_evidence"] < 1
    assert told["coverage_evidence"] < 1


def test_claims_without_effect_give_evidence():
    (told,) = judge([forecast(f"v{c}", w, k=20) for c in range(4) for w in range(8)])
    assert told["lost"] == 4
    assert told["lift_evidence"] > 100


def test_counts_outside_of_their_intervals_give_evidence_after_three_windows():
    rows = [forecast(f"v{c}", w, inside=False) for c in range(3) for w in range(3)]
    assert judge(rows)[0]["coverage_evidence"] > 100
    few = [row for row in rows if row["made_as_of"] > AS_OF - timedelta(days=28 * 3.5)]
    assert judge(few)[0]["coverage_evidence"] < 100


@pytest.mark.parametrize(("false", "does_fail"), [(0, False), (1, False), (2, False), (3, True)])
def test_more_than_half_of_four_claims_must_fail(false, does_fail):
    rows = [forecast(f"v{c}", w, k=20 if c < false else 36) for c in range(4) for w in range(8)]
    assert (judge(rows)[0]["lift_evidence"] >= 100) == does_fail


def test_small_windows_and_other_times_say_nothing():
    assert judge([forecast("v", 0, expected=0.5)]) == []
    assert judge([forecast("v", 20, k=0)]) == []  # before the learning window
    later = forecast("v", 0) | {"graded_as_of": AS_OF + timedelta(days=1)}
    assert judge([later]) == []
    assert judge([]) == []


def test_clients_are_judged_apart():
    bad = [forecast(f"v{c}", w, k=20, client="bad") for c in range(3) for w in range(6)]
    good = [forecast(f"v{c}", w, client="good") for c in range(3) for w in range(6)]
    assert judge(bad + good) == judge(bad) + judge(good)


def test_the_bet_gains_nothing_while_intervals_hold():
    """Exact mean over all ways in which ten windows can miss; at the stated rate it is 1."""
    missed = np.arange(11)
    ways = np.array([np.prod([(10 - i) / (i + 1) for i in range(m)]) for m in missed])
    for rate in (MISS_RATE, 0.05):
        chance = ways * rate**missed * (1 - rate) ** (10 - missed)
        bets = [(b / MISS_RATE) ** missed * ((1 - b) / (1 - MISS_RATE)) ** (10 - missed)
                for b in BETS]  # fmt: skip
        assert (chance * np.mean(bets, axis=0)).sum() <= 1 + 1e-12


def test_false_alarms_stay_below_their_bound_whatever_hangs_together():
    """Claims of a client that all miss together, or each by itself: at most 1 % ever reach 100."""
    rng = np.random.default_rng(7)
    for together in (True, False):
        rows = []
        for client in range(600):
            for window in range(11):
                drawn = np.full(3, rng.random()) if together else rng.random(3)
                rows += [
                    forecast(
                        f"v{c}", window, inside=bool(drawn[c] >= MISS_RATE), client=f"{client}"
                    )
                    for c in range(3)
                ]
        alarms = sum(told["coverage_evidence"] >= 100 for told in judge(rows))
        assert alarms <= 6 + 3 * np.sqrt(6)
