"""The independent generator does what its truth says; detectors are tested on it elsewhere."""

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
