"""The independent generator does what its truth says; detectors are tested on it elsewhere."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
from polars.testing import assert_frame_equal

from conversion_assets.features.build import build_features
from conversion_assets_tests.recovery.propensity_generator import (
    PropensityConfig,
    generate_propensity_agency,
)

CONFIG = PropensityConfig(leads=20_000, seed=9)


@pytest.fixture(scope="module")
def agency():
    return generate_propensity_agency(CONFIG)


@pytest.fixture(scope="module")
def features(agency):
    return build_features(agency.clients, agency.leads, agency.activities)


def test_same_seed_same_rows_and_clients_stand_alone():
    small = PropensityConfig(clients=2, leads=100)
    one, two = generate_propensity_agency(small), generate_propensity_agency(small)
    assert_frame_equal(one.activities, two.activities)
    alone = generate_propensity_agency(PropensityConfig(clients=1, leads=100))
    assert_frame_equal(alone.leads, one.leads.filter(client_id="agency-0"))


def test_nothing_is_later_than_as_of(agency):
    assert agency.activities["occurred_at"].max() <= CONFIG.as_of
    assert agency.leads["updated_at"].max() <= CONFIG.as_of


def test_planted_odds_are_recovered_among_leads_old_enough(agency, features):
    first = features.touches.filter(touch_number=1).select("lead_id", "channel")
    old = features.leads.join(first, on="lead_id").filter(
        pl.col("created_at") < pl.lit(CONFIG.as_of).dt.offset_by("-90d")
    )
    y = old["converted_at"].is_not_null().cast(float).to_numpy()
    assert y.mean() == pytest.approx(CONFIG.rate, abs=0.01)
    design = sm.add_constant(
        old.select(
            (pl.col("seniority") == "director").cast(float),
            (pl.col("source") == "bought_list").cast(float),
            (pl.col("channel") == "linkedin").cast(float),
            (pl.col("country") == "Kenya").cast(float),
        ).to_numpy()
    )
    fitted = sm.Logit(y, design).fit(disp=0)
    truth = np.log([2.0, 0.5, 1.6, 1.0])
    assert np.abs((fitted.params[1:] - truth) / fitted.bse[1:]).max() < 3


def test_every_conversion_has_a_touch_before_and_none_after(features):
    touches = features.touches
    converted = features.leads.filter(pl.col("converted_at").is_not_null())
    assert touches["is_converting"].sum() == converted.height
    assert not touches["is_after_conversion"].any()


def test_no_hour_and_no_content_goes_with_conversion(features):
    # A touch early in a long gap converts more often, but that gap lies after it.
    for name in ("local_hour", "local_weekday", "cta", "channel"):
        table = (
            features.touches.filter(pl.col("touch_number") > 1)
            .group_by(name)
            .agg(pl.col("is_converting").sum().alias("k"), pl.len().alias("n"))
        )
        k, n = table["k"].to_numpy(), table["n"].to_numpy()
        expected = n * k.sum() / n.sum()
        statistic = float((((k - expected) ** 2) / (expected * (1 - k.sum() / n.sum()))).sum())
        assert statistic < len(k) - 1 + 4 * np.sqrt(2 * (len(k) - 1))


@pytest.mark.parametrize("leads", [0, 1])
def test_hardly_any_leads(leads):
    agency = generate_propensity_agency(PropensityConfig(clients=2, leads=leads))
    assert agency.leads.height == 2 * leads


ANSWERS = {
    ("best_days", "Tuesday"): 1.6,
    ("best_hours", 10): 1.6,
    ("subject_patterns", "quick_question"): 1.6,
}


@pytest.mark.parametrize(
    "config",
    [
        PropensityConfig(leads=10_000, seed=3),
        PropensityConfig(leads=10_000, seed=3, odds={}, answers=ANSWERS),
        PropensityConfig(leads=10_000, seed=3, cell_spread=0.3),
        PropensityConfig(leads=10_000, seed=3, simpson=frozenset({"source", "channel"})),
    ],
)
def test_stated_probabilities_are_those_of_what_happens(config):
    """Conversions of leads and of touches, by what is known of them, against their sums."""
    agency = generate_propensity_agency(config)
    features = build_features(agency.clients, agency.leads, agency.activities)
    touches = features.touches.join(agency.latent_touches, on="activity_id").select(
        p="hazard", y=pl.col("is_converting").cast(float), by=pl.col("touch_number").clip(1, 12)
    )
    leads = features.leads.join(agency.latent_leads, on="lead_id").select(
        p="chance", y=pl.col("converted_at").is_not_null().cast(float), by=pl.col("source")
    )
    assert touches.height == agency.activities.height
    assert leads.height == agency.leads.height
    deciles = pl.col("p").rank("ordinal") * 10 // (pl.len() + 1)
    for rows, by in (
        (touches, pl.col("by")), (leads, pl.col("by")), (touches, deciles), (leads, deciles)
    ):  # fmt: skip
        found = (
            rows.with_columns(group=by)
            .group_by("group")
            .agg(
                z=(pl.col("y") - pl.col("p")).sum() / (pl.col("p") * (1 - pl.col("p"))).sum().sqrt()
            )
        )
        assert found["z"].abs().max() < 4, found


def test_answers_are_drawn_in_the_proportions_planted():
    agency = generate_propensity_agency(PropensityConfig(leads=20_000, seed=4, answers=ANSWERS))
    touches = build_features(agency.clients, agency.leads, agency.activities).touches
    # A day on which clocks change is an hour longer or shorter.
    assert touches["local_hour"].is_between(7, 20).mean() > 0.999
    for column, value, ratio in (("local_weekday", 2, 1.6), ("local_hour", 10, 1.6)):
        table = touches.group_by(pl.col(column) == value).agg(
            rate=pl.col("is_converting").mean(), k=pl.col("is_converting").sum()
        )
        (yes,), (no,) = (table.filter(pl.col(column) == flag)["rate"] for flag in (True, False))
        error = (1 / table["k"]).sum() ** 0.5
        # Touches of one lead compete: a good one takes from the others, a little.
        assert np.log(yes / no) == pytest.approx(np.log(ratio), abs=4 * error + 0.03)


def test_an_effect_taken_out_leaves_all_else():
    config = PropensityConfig(leads=500, seed=5, answers=ANSWERS)
    less = replace(config, without=frozenset({("best_days", "Tuesday")}))
    whole, left = generate_propensity_agency(config), generate_propensity_agency(less)
    joined = whole.latent_touches.join(left.latent_touches, on="activity_id", suffix="_left")
    assert joined.height == whole.latent_touches.height == left.latent_touches.height
    assert not joined["hazard"].equals(joined["hazard_left"])
    assert whole.latent_leads["probability"].equals(left.latent_leads["probability"])


def test_sequences_are_carried_by_their_share():
    sequence = ("email", "linkedin", "voice")
    config = PropensityConfig(leads=20_000, seed=6, odds={("winning_sequences", sequence): 2.0})
    agency = generate_propensity_agency(config)
    first = (
        agency.activities.filter(pl.col("touch_number") <= 3)
        .sort("touch_number")
        .group_by("lead_id")
        .agg("channel")
        .filter(pl.col("channel").list.len() == 3)
    )
    share = (first["channel"].list.join(">") == ">".join(sequence)).mean()
    # One in twenty by plan, and one in 64 of the rest by chance.
    assert share == pytest.approx(0.05 + 0.95 / 64, abs=0.006)
