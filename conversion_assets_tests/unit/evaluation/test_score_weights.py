from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.patterns import ScoreEvaluation, Weights
from conversion_assets.domain.terms import DEFAULT_WEIGHTS, SCORE_CAPS, SCORE_COMPONENTS
from conversion_assets.evaluation.score_weights import evaluate_score_weights, project_weights

CONFIG = LearningConfig()
START = datetime(2025, 1, 1, tzinfo=UTC)
CAPS = np.array([SCORE_CAPS[name] for name in SCORE_COMPONENTS])
DEFAULTS = np.array([DEFAULT_WEIGHTS[name] for name in SCORE_COMPONENTS])


def make_leads(clients, size, effects, rate=0.15, seed=0):
    """Leads whose log odds rise by `effects` over the range of each component."""
    rng = np.random.default_rng(seed)
    count = clients * size
    points = np.column_stack([rng.integers(0, cap + 1, count) for cap in CAPS]).astype(float)
    eta = (points / CAPS - 0.5) @ np.array(effects)
    low, high = -15.0, 15.0
    for _ in range(50):
        middle = (low + high) / 2
        is_below = (1 / (1 + np.exp(-middle - eta))).mean() < rate
        low, high = (middle, high) if is_below else (low, middle)
    seconds = rng.integers(0, 300 * 86_400, count)
    return pl.DataFrame(
        {
            "client_id": np.repeat([f"c{i:04}" for i in range(clients)], size),
            "lead_id": np.tile([f"l{i:06}" for i in range(size)], clients),
            "created_at": [START + timedelta(seconds=int(s)) for s in seconds],
            "converted": rng.random(count) < 1 / (1 + np.exp(-low - eta)),
            **{name: points[:, j] for j, name in enumerate(SCORE_COMPONENTS)},
        }
    )


def evaluate_one(frame, config=CONFIG):
    result = evaluate_score_weights(frame, config)
    assert result.height == 1
    row = result.row(0, named=True)
    evaluation = ScoreEvaluation(**{name: row[name] for name in ScoreEvaluation.model_fields})
    weights = Weights(**row["recommended_weights"])
    if not evaluation.recommended:
        assert weights.model_dump() == DEFAULT_WEIGHTS
        assert evaluation.reason.startswith("Default weights: ")
    assert sum(weights.model_dump().values()) == pytest.approx(0.85, abs=1e-12)
    return evaluation, row


def test_planted_authority_comes_first_and_is_recommended():
    result = evaluate_score_weights(make_leads(20, 10_000, [0.5, 2.0, 0.5, 0.5]), CONFIG)
    assert result["recommended"].mean() >= 0.95
    weights = result["recommended_weights"].struct.unnest()
    rest = weights.select(pl.max_horizontal("data_quality", "company_fit", "timing")).to_series()
    assert (weights["authority"] > rest).mean() >= 0.95
    assert result["calibration_slope"].mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("effects", [[0, 0, 0, 0], list(4 * DEFAULTS)])
def test_clients_whose_defaults_are_as_good_keep_them(effects):
    result = evaluate_score_weights(make_leads(200, 1_000, effects, seed=3), CONFIG)
    assert result["recommended"].mean() <= 0.07


def test_figures_equal_an_obvious_computation():
    frame = make_leads(1, 3_000, [0.3, 2.0, 0.3, 1.0], seed=4)
    evaluation, row = evaluate_one(frame)
    ordered = frame.sort("created_at", "lead_id")
    x = ordered.select(SCORE_COMPONENTS).to_numpy() / CAPS
    y = ordered["converted"].to_numpy()
    train, test = slice(0, evaluation.n_train), slice(evaluation.n_train, None)
    assert evaluation.n_train + evaluation.n_test == 3_000
    weights = np.array([row["learned_weights"][name] for name in SCORE_COMPONENTS])
    learned, default = np.round(100 * x @ weights, 9), np.round(100 * x @ DEFAULTS, 9)
    assert evaluation.auc_learned == pytest.approx(roc_auc_score(y[test], learned[test]))
    assert evaluation.auc_default == pytest.approx(roc_auc_score(y[test], default[test]))
    assert evaluation.difference == evaluation.auc_learned - evaluation.auc_default

    def loss(theta, score, label):
        return np.logaddexp(0, theta[0] + theta[1] * score).sum() - (
            (theta[0] + theta[1] * score)[label].sum()
        )

    a, b = minimize(loss, np.zeros(2), (learned[train] / 100, y[train])).x
    logit = a + b * learned[test] / 100
    brier = np.mean((1 / (1 + np.exp(-logit)) - y[test]) ** 2)
    assert evaluation.brier == pytest.approx(brier, abs=1e-6)
    slope = minimize(loss, np.zeros(2), (logit, y[test])).x[1]
    assert evaluation.calibration_slope == pytest.approx(slope, abs=1e-3)
    cut = np.sort(learned[test])[-evaluation.n_test // 5 :][0]
    near = y[test][learned[test] >= cut].sum() / y[test].sum()
    assert evaluation.top_20_share == pytest.approx(near, abs=0.01)


def test_evidence_pulls_the_weights_away_from_the_defaults():
    distance = []
    for size in (300, 3_000, 30_000):
        _, row = evaluate_one(make_leads(1, size, [0.2, 3.0, 0.2, 0.2], seed=5))
        distance.append(row["learned_weights"]["authority"] - DEFAULT_WEIGHTS["authority"])
    assert 0 < distance[0] < distance[1] < distance[2] < 0.25


def test_learning_sees_no_later_lead():
    frame = make_leads(1, 1_000, [1, 1, 1, 1], seed=6).sort("created_at")
    _, row = evaluate_one(frame)
    later = pl.int_range(pl.len()) >= row["n_train"]
    changed = frame.with_columns(pl.col("converted") ^ later, authority=pl.col("authority") * 1.0)
    _, again = evaluate_one(changed)
    assert again["learned_weights"] == row["learned_weights"]


def test_leads_of_one_moment_stay_together():
    frame = make_leads(1, 1_000, [1, 1, 1, 1], seed=7)
    days = frame.with_columns(pl.col("created_at").dt.truncate("30d")).sort("created_at")
    evaluation, _ = evaluate_one(days)
    moments = days["created_at"].to_list()
    assert moments[evaluation.n_train - 1] < moments[evaluation.n_train]
    assert abs(evaluation.n_train - 500) <= days["created_at"].value_counts()["count"].max()


def _one_lead(frame):
    return frame.head(1)


def _one_moment(frame):
    return frame.with_columns(created_at=pl.lit(START))


def _nobody(frame):
    return frame.with_columns(converted=pl.lit(value=False))


def _everybody(frame):
    return frame.with_columns(converted=pl.lit(value=True))


def _null_column(frame):
    return frame.with_columns(timing=pl.lit(None, dtype=pl.Float64))


def _constant(frame):
    return frame.with_columns(**{name: pl.lit(5.0) for name in SCORE_COMPONENTS})


def _backwards(frame):
    flipped = (1.0 + pl.col("converted").cast(pl.Float64)) * -2.0 + 5.0
    return frame.with_columns(**dict.fromkeys(SCORE_COMPONENTS, flipped))


def _few_later(frame):
    ordered = frame.sort("created_at")
    is_early = pl.int_range(pl.len()) < 500
    return ordered.with_columns(
        converted=pl.col("converted") & is_early | (pl.int_range(pl.len()) == 900)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_one_lead, "of one moment"),
        (_one_moment, "of one moment"),
        (_nobody, "none of the earlier leads converted"),
        (_everybody, "all of the earlier leads converted"),
        (_null_column, "no lead has all four"),
        (_constant, "are the same for all"),
        (_backwards, "no component goes with more conversions"),
        (_few_later, "1 of 500 later leads converted"),
        (lambda frame: frame.head(400), "100 are needed"),
    ],
)
def test_every_case_keeps_the_defaults_and_says_why(change, words):
    frame = make_leads(1, 1_000, [1, 1, 1, 1], rate=0.24, seed=8)
    evaluation, _ = evaluate_one(change(frame))
    assert not evaluation.recommended
    assert words in evaluation.reason


def test_no_improvement_says_so_with_figures():
    evaluation, _ = evaluate_one(make_leads(1, 2_000, list(6 * DEFAULTS), seed=1))
    assert "do not surely rank better" in evaluation.reason
    assert str(round(evaluation.auc_learned, 3)) in evaluation.reason
    assert evaluation.difference_interval is not None


def test_separated_outcomes_are_learned_without_a_crash():
    frame = make_leads(1, 1_000, [1, 1, 1, 1], seed=9)
    evaluation, row = evaluate_one(frame.with_columns(converted=pl.col("authority") > 20))
    assert evaluation.auc_learned > 0.85
    assert max(row["learned_weights"].values()) <= 0.50


def test_constant_component_keeps_its_default_weight():
    frame = make_leads(1, 5_000, [0.2, 3.0, 0.2, 0.2], seed=2).with_columns(timing=pl.lit(0.0))
    evaluation, row = evaluate_one(frame)
    assert row["learned_weights"]["timing"] == pytest.approx(0.15)
    assert evaluation.recommended


def test_leads_that_cannot_be_used_are_left_out_and_counted():
    frame = make_leads(1, 1_000, [0.5, 2, 0.5, 0.5], seed=3)
    broken = frame.with_columns(
        authority=pl.when(pl.int_range(pl.len()) < 100).then(None).otherwise("authority"),
        timing=pl.when(pl.int_range(pl.len()) == 500).then(float("nan")).otherwise("timing"),
        converted=pl.when(pl.int_range(pl.len()) == 501).then(None).otherwise("converted"),
    )
    usable = frame.filter(~(pl.int_range(pl.len()).is_in([*range(100), 500, 501])))
    (evaluation, row), (expected, _) = evaluate_one(broken), evaluate_one(usable)
    assert row["n_left_out"] == 102
    assert evaluation == expected


def test_no_leads_no_rows():
    empty = make_leads(1, 1, [0, 0, 0, 0]).clear()
    result = evaluate_score_weights(empty, CONFIG)
    assert result.height == 0
    assert result.schema == evaluate_score_weights(make_leads(2, 50, [1] * 4), CONFIG).schema


def test_order_of_rows_and_other_clients_change_nothing():
    frame = make_leads(6, 700, [0.5, 2, 0.5, 0.5], seed=10).filter(
        ~((pl.col("client_id") == "c0002") & (pl.col("lead_id") > "l000100"))
    )
    together = evaluate_score_weights(frame, CONFIG)
    shuffled = evaluate_score_weights(frame.sample(fraction=1, shuffle=True, seed=1), CONFIG)
    assert shuffled.equals(together, null_equal=True)
    for row in together.iter_rows(named=True):
        alone = evaluate_score_weights(frame.filter(client_id=row["client_id"]), CONFIG)
        assert alone.row(0, named=True) == row


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e3)), min_size=4, max_size=4),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_projection_is_allowed_and_keeps_proportions(coefficients, varies):
    c, free = np.array([coefficients]), np.array([varies])
    weights = project_weights(np.where(free, c, 0.0), free)[0]
    assert weights.sum() == pytest.approx(0.85, abs=1e-12)
    assert (weights >= 0.05).all()
    assert (weights <= 0.50).all()
    np.testing.assert_allclose(weights[~free[0]], DEFAULTS[~free[0]], rtol=1e-9)
    inside = free[0] & (weights > 0.05 + 1e-9) & (weights < 0.5 - 1e-9) & (c[0] > 1e-3 * c.max())
    ratio = weights[inside] / c[0][inside]
    if inside.sum() > 1:
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-2)


def test_projection_is_the_nearest_allowed_point_in_divergence():
    rng = np.random.default_rng(1)
    for _ in range(20):
        c = rng.gamma(0.5, size=4) + 0.01
        weights = project_weights(c[None], np.ones((1, 4), bool))[0]
        other = minimize(
            lambda w, c=c: (w * np.log(w / c)).sum(),
            DEFAULTS,
            method="SLSQP",
            bounds=[(0.05, 0.50)] * 4,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 0.85},
            options={"ftol": 1e-14},
        ).x
        np.testing.assert_allclose(weights, other, atol=1e-4)
