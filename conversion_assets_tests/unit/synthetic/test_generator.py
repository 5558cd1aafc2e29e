import json
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
from polars.testing import assert_frame_equal
from scipy import stats

from conversion_assets.domain.contracts import CONTRACTS
from conversion_assets.domain.errors import InputError
from conversion_assets.domain.ideal_profile import read_profile
from conversion_assets.domain.terms import FAILED_STATUSES
from conversion_assets.scoring.lead_score import compute_lead_scores
from conversion_assets.synthetic import frames
from conversion_assets.synthetic.config import COMPONENT_DIMENSION, Effect, SyntheticConfig
from conversion_assets.synthetic.generator import Agency, generate_agency, known_at

SMALL = SyntheticConfig(clients=3, leads=300, seed=11)
EARLIER = datetime(2025, 9, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def planted() -> Agency:
    """20,000 leads of one client, everything that will ever happen to them."""
    return generate_agency(
        SyntheticConfig(
            clients=1, leads=20_000, seed=5, base_conversion=0.15, with_text=False,
            include_future=True,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def nothing() -> Agency:
    return generate_agency(
        SyntheticConfig(
            clients=1, leads=20_000, seed=6, null=True, with_text=False, include_future=True
        )
    )


def same(one: Agency, other: Agency) -> None:
    for name in ("clients", "leads", "activities", "latent_leads", "latent_touches"):
        assert_frame_equal(getattr(one, name), getattr(other, name))


def outcomes(agency: Agency) -> pl.DataFrame:
    events = agency.latent_touches.group_by("lead_id").agg(pl.col("is_event").any())
    components = pl.Struct({name: pl.Int64 for name in ("data_quality", "authority")})
    return (
        agency.leads.join(events, left_on="id", right_on="lead_id", how="left")
        .with_columns(pl.col("als_components").str.json_decode(components).alias("points"))
        .unnest("points")
    )


def odds_ratios(y: pl.Series, *columns: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    design = np.column_stack([np.ones(len(y)), *(c.fill_null(0).to_numpy() for c in columns)])
    fitted = sm.Logit(y.to_numpy().astype(float), design.astype(float)).fit(disp=0)
    return fitted.params[1:], fitted.bse[1:]


def hazard_ratios(touches: pl.DataFrame, *columns: pl.Expr) -> tuple[np.ndarray, np.ndarray]:
    dummies = [pl.col("touch_number") == k for k in range(2, touches["touch_number"].max() + 1)]
    table = touches.select(
        pl.lit(1.0).alias("one"),
        *(c.fill_null(value=False).cast(float).alias(f"x{i}") for i, c in enumerate(columns)),
        *(c.cast(float).alias(f"t{i}") for i, c in enumerate(dummies)),
    )
    family = sm.families.Poisson()
    fitted = sm.GLM(
        touches["is_event"].to_numpy().astype(float), table.to_numpy(), family=family
    ).fit()
    return fitted.params[1 : 1 + len(columns)], fitted.bse[1 : 1 + len(columns)]


def test_frames_have_the_canonical_columns_and_types():
    agency = generate_agency(SMALL)
    for table, frame in (
        ("clients", agency.clients),
        ("leads", agency.leads),
        ("activities", agency.activities),
    ):
        contract = CONTRACTS[table]
        rows = pl.concat([contract.create_empty(), frame], how="diagonal")
        assert rows.schema == contract.create_empty().schema
        filled = (
            rows.with_columns(conversion_sample_count=pl.lit(0, pl.Int64))
            if table == "clients"
            else rows
        )
        _, refused = contract.filter(filled)
        assert refused.counts() == {}
    assert agency.leads.height == 900
    assert agency.clients["id"].is_unique().all()
    assert agency.leads["id"].is_unique().all()
    assert agency.activities["id"].is_unique().all()
    assert agency.activities["lead_id"].is_in(agency.leads["id"].implode()).all()
    assert agency.leads["timezone"].drop_nulls().n_unique() >= 12
    assert {"Asia/Kolkata", "Asia/Kathmandu"} <= set(agency.leads["timezone"])
    assert_frame_equal(
        agency.activities,
        agency.activities.sort("client_id", "lead_id", "occurred_at", "id"),
    )


def test_truth_is_plain_json_and_names_every_effect():
    truth = generate_agency(SMALL).truth
    again = json.loads(json.dumps(truth, allow_nan=False))
    assert again == truth
    first = [e for e in truth["effects"] if e["client_id"] == "client-0001"]
    assert {(e["pattern"], e["dimension"]) for e in first} >= {
        ("who", "title_rankings.title"),
        ("what", "subject_patterns"),
        ("when", "best_days"),
        ("how", "winning_sequences"),
    }
    for entry in truth["clients"]:
        assert set(entry["affected_dimensions"]) <= set(truth["dimensions"])
        assert "industry_rankings" not in entry["affected_dimensions"]
        assert "country_rankings" not in entry["affected_dimensions"]


def test_same_config_same_rows_and_other_seed_other_rows():
    same(generate_agency(SMALL), generate_agency(SMALL))
    other = generate_agency(SMALL.model_copy(update={"seed": 12}))
    assert not other.leads["title"].equals(generate_agency(SMALL).leads["title"])


@pytest.mark.parametrize("change", [{}, {"mixed": True, "size_spread": 0.5, "base_spread": 0.4}])
def test_a_client_does_not_depend_on_the_others(change):
    config = SMALL.model_copy(update={"leads": 60, **change})
    many = generate_agency(config.model_copy(update={"clients": 7}))
    alone = generate_agency(config.model_copy(update={"clients": 1, "first_client": 4}))
    assert alone.truth["clients"] == many.truth["clients"][4:5]
    for name in ("leads", "activities", "latent_touches"):
        expected = getattr(many, name).filter(client_id="client-0005")
        assert_frame_equal(getattr(alone, name), expected)


def test_batches_do_not_show(monkeypatch):
    whole = generate_agency(SMALL)
    monkeypatch.setattr("conversion_assets.synthetic.generator._BATCH_TOUCHES", 100)
    same(whole, generate_agency(SMALL))


def test_contents_do_not_change_outcomes():
    plain = generate_agency(SMALL.model_copy(update={"with_text": False}))
    full = generate_agency(SMALL)
    assert_frame_equal(plain.activities.drop("content_snapshot"),
                       full.activities.drop("content_snapshot"))  # fmt: skip
    assert plain.activities["content_snapshot"].null_count() == plain.activities.height


def test_an_effect_changes_outcomes_and_not_who_the_leads_are():
    weak = generate_agency(SMALL.without("best_days"))
    full = generate_agency(SMALL)
    who = ["id", "title", "source", "country", "industry", "created_at", "als_components"]
    assert_frame_equal(weak.leads.select(who), full.leads.select(who))


def test_nothing_is_later_than_as_of():
    agency = generate_agency(SMALL)
    as_of = SMALL.as_of
    assert agency.activities["occurred_at"].max() <= as_of
    assert agency.activities["created_at"].max() <= as_of
    for name in ("created_at", "updated_at", "converted_at", "scored_at"):
        assert agency.leads[name].max() <= as_of
    future = generate_agency(SMALL.model_copy(update={"include_future": True}))
    assert future.activities["occurred_at"].max() > as_of
    assert future.activities.height > agency.activities.height


def test_knowing_later_changes_nothing_that_was_known_before():
    future = generate_agency(SMALL.model_copy(update={"include_future": True}))
    then = known_at(future, EARLIER)
    same(then, known_at(known_at(future, SMALL.as_of), EARLIER))
    same(known_at(future, SMALL.as_of), generate_agency(SMALL))
    assert then.leads["created_at"].max() <= EARLIER
    assert then.leads["updated_at"].max() <= EARLIER
    later = future.leads.filter(pl.col("converted_at") > EARLIER)
    undone = then.leads.filter(pl.col("id").is_in(later["id"].implode()))
    assert undone.height
    assert undone["converted_at"].null_count() == undone.height
    assert set(undone["status"]) <= {"in_sequence", "scored", "new"}
    told = then.activities.filter(pl.col("led_to_booking"))
    ended = then.leads.filter(pl.col("converted_at").is_not_null())["id"].to_list()
    ended += then.activities.filter(action="meeting_booked")["lead_id"].to_list()
    assert set(told["lead_id"]) == set(ended)


def test_conversion_follows_its_touch_and_ends_the_sequence(planted):
    touches = planted.latent_touches
    last = touches.group_by("lead_id").agg(
        pl.col("touch_number").max().alias("last"),
        pl.col("touch_number").filter("is_event").first().alias("converting"),
    )
    assert last.filter(pl.col("converting") != pl.col("last")).is_empty()
    sent = planted.activities.filter(pl.col("touch_number").is_not_null())
    latest = sent.group_by("lead_id").agg(pl.col("occurred_at").max().alias("last_at"))
    joined = planted.leads.join(latest, left_on="id", right_on="lead_id")
    wait = joined.select((pl.col("converted_at") - pl.col("last_at")).alias("wait"))["wait"]
    assert wait.min() >= timedelta(minutes=5)
    assert wait.max() <= timedelta(days=3, hours=2)


def test_shares_are_as_configured(planted):
    leads = outcomes(planted)
    assert leads["is_event"].mean() == pytest.approx(0.15, abs=0.008)
    assert planted.truth["clients"][0]["expected_conversion"] == pytest.approx(0.15, abs=0.002)
    ended = leads.filter(~pl.col("is_event"))
    touches = planted.latent_touches
    kept = touches.filter(~pl.col("is_event"))
    gone = ended.filter(pl.col("status").is_in(["unsubscribed", "bounced", "not_interested"]))
    # 85 % of the lost have one of these statuses.
    assert gone.height / kept.height == pytest.approx(0.04 * 0.85, rel=0.06)
    exhausted = ended.height - gone.height / 0.85
    assert ended.filter(status="in_sequence").height / exhausted == pytest.approx(0.25, rel=0.06)
    assert set(leads["status"]) == {"converted", "in_sequence", *map(str, FAILED_STATUSES)}
    booked = planted.activities.filter(action="meeting_booked")
    assert booked.height / leads["is_event"].sum() == pytest.approx(0.4, abs=0.04)


def test_an_oracle_recovers_planted_odds_ratios(planted):
    leads = outcomes(planted)
    director = (
        leads["title"].str.to_lowercase().is_in(["marketing director", "director of marketing"])
    )
    estimates, errors = odds_ratios(
        leads["is_event"],
        director,
        leads["source"] == "referral",
        leads["authority"] / 25,
        leads["data_quality"] / 20,
        leads["is_hiring"],
        leads["country"] == "India",
        leads["industry"] == "Legal",
    )
    truth = np.log([2.0, 1.6, 6.0, 1.5, 1.0, 1.0, 1.0])
    assert np.abs((estimates - truth) / errors).max() < 3
    assert errors.max() < 0.15


@pytest.mark.slow
def test_an_oracle_recovers_planted_hazard_ratios(planted):
    touches = planted.latent_touches.sort("lead_id", "touch_number")
    prefix = touches.group_by("lead_id").agg(pl.col("channel").cast(pl.String).head(3))
    touches = touches.join(prefix.rename({"channel": "prefix"}), on="lead_id")
    carries = pl.col("prefix").list.join(">") == "email>linkedin>voice"
    estimates, errors = hazard_ratios(
        touches,
        pl.col("local_weekday") == 2,
        pl.col("local_hour") == 10,
        pl.col("subject") == "quick_question",
        pl.col("pain") == "revenue",
        pl.col("cta").cast(pl.String).is_in(["worth 15 minutes", "tuesday or thursday"]),
        carries & (pl.col("touch_number") >= 3),
        pl.col("local_weekday") == 5,
        pl.col("local_hour") == 15,
        pl.col("angle") == "urgency",
        pl.col("first_name"),
    )
    truth = np.log([1.6, 1.6, 1.6, 1.6, 1.5, 2.0, 1.0, 1.0, 1.0, 1.0])
    assert np.abs((estimates - truth) / errors).max() < 3
    assert errors.max() < 0.12
    share = (
        prefix.filter(pl.col("channel").list.join(">") == "email>linkedin>voice").height / 20_000
    )
    assert 0.04 < share < 0.07


def test_hazard_by_touch_is_the_one_in_the_truth(planted):
    truth = planted.truth["clients"][0]["touch_hazard"]
    seen = planted.latent_touches.group_by("touch_number").agg(
        pl.col("is_event").sum().alias("k"), pl.len().alias("n")
    )
    for number, k, n in seen.sort("touch_number").iter_rows():
        expected = truth[number - 1] * n
        assert abs(k - expected) < 4 * np.sqrt(expected)
    assert max(truth) == truth[3]


def test_no_attribute_matters_without_effects(nothing):
    leads = outcomes(nothing)
    values = []
    for name in ("title", "industry", "source", "country", "als_tier", "is_hiring", "is_new_role"):
        table = leads.drop_nulls(name).group_by(name).agg(pl.col("is_event").sum(), pl.len())
        large = table.filter(pl.col("len") >= 100)
        events = large["is_event"].to_numpy()
        rest = large["len"].to_numpy() - events
        values.append(stats.chi2_contingency([events, rest]).pvalue)
    touches = nothing.latent_touches
    for name in ("channel", "local_weekday", "touch_number", "pain", "cta", "subject", "template"):
        table = touches.drop_nulls(name).group_by(name).agg(pl.col("is_event").sum(), pl.len())
        events = table["is_event"].to_numpy()
        values.append(stats.chi2_contingency([events, table["len"].to_numpy() - events]).pvalue)
    assert min(values) > 0.05 / len(values)
    assert nothing.truth["effects"] == []
    assert nothing.truth["clients"][0]["affected_dimensions"] == []
    assert touches["hazard"].std() == pytest.approx(0, abs=1e-12)


def test_frailty_depletes_in_null_data():
    config = SyntheticConfig(clients=1, leads=2000, null=True, frailty=1.5, with_text=False)
    truth = generate_agency(config).truth["clients"][0]
    assert truth["touch_hazard"][0] > 1.3 * truth["touch_hazard"][-1]
    assert truth["affected_dimensions"] == ["touch_hazard"]


def test_reversal_by_source_is_visible():
    config = SyntheticConfig(
        clients=1, leads=10_000, effects=(), simpson=frozenset({"source"}), with_text=False,
        include_future=True,
    )  # fmt: skip
    agency = generate_agency(config)
    leads = outcomes(agency).drop_nulls("is_hiring")
    rates = dict(leads.group_by("is_hiring").agg(pl.col("is_event").mean()).iter_rows())
    assert rates[True] < 0.85 * rates[False]
    low = leads["source"].is_in(["linkedin", "cold_list", "paid_ads", "apollo"])
    estimates, errors = odds_ratios(leads["is_event"], leads["is_hiring"], low)
    assert estimates[0] - 2 * errors[0] > 0
    assert estimates[0] == pytest.approx(np.log(1.5), abs=3 * errors[0])
    entry = agency.truth["effects"][0]
    assert (entry["kind"], entry["direction"], entry["naive_direction"]) == (
        "simpson",
        "up",
        "down",
    )


def test_reversal_by_channel_is_visible():
    config = SyntheticConfig(
        clients=1, leads=10_000, effects=(), simpson=frozenset({"channel"}), with_text=False,
        include_future=True,
    )  # fmt: skip
    touches = generate_agency(config).latent_touches
    direct = pl.col("cta").cast(pl.String).is_in(["book a call", "schedule a call"])
    rates = dict(
        touches.group_by(direct.fill_null(value=False)).agg(pl.col("is_event").mean()).iter_rows()
    )
    assert rates[True] < 0.85 * rates[False]
    estimates, errors = hazard_ratios(touches, direct, pl.col("channel") != "email")
    assert estimates[0] == pytest.approx(np.log(1.5), abs=3 * errors[0])


def test_mixed_clients_have_effects_of_their_own():
    config = SyntheticConfig(clients=40, leads=5, mixed=True, with_text=False)
    truth = generate_agency(config).truth
    sources = [e["value"] for e in truth["effects"] if e["dimension"] == "source_rankings"]
    assert 8 <= len(sources) <= 32
    assert len(set(sources)) >= 4
    profiles = [
        sum(
            e["dimension"] == "touch_hazard"
            for e in truth["effects"]
            if e["client_id"] == c["client_id"]
        )
        for c in truth["clients"]
    ]
    assert set(profiles) == {0, 12}


def test_sizes_and_rates_spread_over_clients():
    config = SyntheticConfig(
        clients=40, leads=200, size_spread=0.8, base_spread=0.5, with_text=False
    )
    clients = generate_agency(config).truth["clients"]
    sizes = [client["leads"] for client in clients]
    assert min(sizes) < 100 < 400 < max(sizes)
    rates = [client["expected_conversion"] for client in clients]
    assert min(rates) < 0.09 < 0.16 < max(rates)


@pytest.mark.parametrize("clients", [0, 1, 3])
@pytest.mark.parametrize("leads", [0, 1])
def test_hardly_any_rows(clients, leads):
    agency = generate_agency(SyntheticConfig(clients=clients, leads=leads))
    assert agency.clients.height == clients
    assert agency.leads.height == clients * leads
    assert dict(agency.activities.schema) == frames.ACTIVITY_COLUMNS
    json.dumps(agency.truth, allow_nan=False)


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 1)])
def test_none_and_all_convert(rate, expected):
    config = SMALL.model_copy(update={"base_conversion": rate, "include_future": True})
    leads = outcomes(generate_agency(config))
    assert leads["is_event"].mean() == expected


def test_a_rate_that_losses_put_out_of_reach_is_still_reached():
    config = SyntheticConfig(
        clients=1, leads=2000, base_conversion=0.9, dropout=0.5, with_text=False,
        include_future=True,
    )  # fmt: skip
    assert outcomes(generate_agency(config))["is_event"].mean() == pytest.approx(0.9, abs=0.03)


def test_an_unseen_channel_is_sent_under_its_own_name():
    config = SyntheticConfig(clients=1, leads=50, channels={"email": 1, "pigeon": 1}, effects=())
    sent = generate_agency(config).activities.filter(pl.col("touch_number").is_not_null())
    assert set(sent["channel"]) == {"email", "pigeon"}
    assert set(sent.filter(channel="pigeon")["action"]) == {"pigeon_sent"}


def test_zones_of_ones_own_and_an_unknown_one():
    config = SyntheticConfig(clients=1, leads=50, zones=("Australia/Lord_Howe", "UTC"))
    leads = generate_agency(config).leads
    assert set(leads["timezone"].drop_nulls()) == {"Australia/Lord_Howe", "UTC"}
    assert leads["country"].null_count() == 50
    with pytest.raises(InputError, match="Mars/Olympus"):
        generate_agency(SyntheticConfig(zones=("Mars/Olympus",)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"dimension": "moods", "value": "x", "ratio": 2}, "is none of"),
        ({"dimension": "best_days", "value": "Someday", "ratio": 2}, "has no value 'Someday'"),
        ({"dimension": COMPONENT_DIMENSION, "value": "risk", "ratio": 2}, "has no value"),
        ({"dimension": "touch_hazard", "value": "first", "ratio": 2}, "whole number"),
        ({"dimension": "winning_sequences", "value": "email", "ratio": 2}, "list of channels"),
        ({"dimension": "best_hours", "value": 10, "ratio": 0}, "greater than 0"),
    ],
)
def test_effects_that_cannot_be_planted(bad, message):
    with pytest.raises(ValueError, match=message):
        Effect(**bad)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"touches": (0, 3)}, "touches"),
        ({"touches": (5, 3)}, "touches"),
        ({"channels": {}}, "channels"),
        ({"channels": {"sms": 1.0}}, "unknown channel"),
        ({"as_of": datetime(2026, 1, 4)}, "timezone"),  # noqa: DTZ001
    ],
)
def test_configs_that_cannot_be_generated(bad, message):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**bad)


def test_generated_scores_are_those_of_the_scorer():
    """The generator draws points before texts; the scorer reads them off the texts again."""
    config = SyntheticConfig(clients=6, leads=400, seed=11, missing=0.1)
    agency = generate_agency(config)
    profiles = {}
    for client, text in agency.clients.select("id", "ideal_profile").iter_rows():
        profiles[client], fault = read_profile(text)
        assert fault is None
    # Status as it was when the lead was scored.
    leads = agency.leads.with_columns(status=pl.lit("scored"))
    scores = compute_lead_scores(leads, pl.DataFrame(), profiles, leads["scored_at"])
    assert scores["scored_at"].equals(leads["scored_at"])
    for name in ("als_components", "als_tier"):
        given, computed = leads[name].to_list(), scores[name].to_list()
        if name == "als_components":
            given, computed = map(json.loads, given), map(json.loads, computed)
        assert list(given) == list(computed)
    assert (leads["als_score"] - scores["als_score"]).abs().max() < 1e-6
