"""The lead score: every rule by its table, and all of them against a reference."""

import json
import math
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from conversion_assets.domain.errors import InputError
from conversion_assets.domain.ideal_profile import EmployeeRange, IdealProfile
from conversion_assets.domain.terms import DEFAULT_WEIGHTS, SCORE_CAPS
from conversion_assets.features.titles import AUTHORITIES
from conversion_assets.scoring.lead_score import (
    AUTHORITY_POINTS,
    COMPONENT_NAMES,
    SCORE_COLUMNS,
    SCORED_COLUMNS,
    compute_components,
    compute_lead_scores,
)
from conversion_assets_tests.unit.scoring import reference

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
NO_WEIGHTS = pl.DataFrame()
PROFILE = IdealProfile(
    industries=("SaaS", "Health & Care"),
    employees=EmployeeRange(lowest=6, highest=100),
    countries=("Australia", "Österreich"),
)


def frame(*leads):
    rows = [{"client_id": "a", "id": str(n), **lead} for n, lead in enumerate(leads)]
    return pl.DataFrame(rows, schema=SCORED_COLUMNS)


def points(component, *leads, profile=PROFILE, now=NOW):
    return compute_components(frame(*leads), {"a": profile}, now)[component].to_list()


# -- each rule ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lead", "expected"),
    [
        ({}, 0),
        ({"email": "x@y.example"}, 4),
        ({"email": "x@y.example", "email_verified": False}, 4),
        ({"email": "x@y.example", "email_verified": True}, 8),
        ({"email": None, "email_verified": True}, 0),
        ({"email": "n/a", "email_verified": True}, 0),
        ({"email": "  "}, 0),
        ({"email": " x@y.example "}, 4),
        ({"email": "x@gmail.com"}, 6),
        ({"email": "x@GMAIL.com "}, 6),
        ({"email": "x@notgmail.com"}, 4),
        ({"email": "x@gmail.com.example"}, 4),
        ({"email": "x@gmail.com", "personal_email": "x@gmx.de"}, 6),
        ({"personal_email": "me@home.example"}, 2),
        ({"personal_email": "none"}, 0),
        ({"phone": "+61 2 5550 1234"}, 3),
        ({"phone": "+61 2 5550 1234", "phone_verified": True}, 6),
        ({"phone": "unknown", "phone_verified": True}, 0),
        ({"phone": "12 34"}, 0),
        ({"linkedin_url": "https://www.linkedin.com/in/x"}, 4),
        ({"linkedin_url": "N/A"}, 0),
        (
            {"email": "x@gmail.com", "email_verified": True, "phone": "0255501234",
             "phone_verified": True, "linkedin_url": "in/x", "personal_email": "a@b.example"},
            20,
        ),
    ],
)  # fmt: skip
def test_data_quality(lead, expected):
    assert points("data_quality", lead) == [expected]


@pytest.mark.parametrize(("title", "expected"), reference.TITLES.items())
def test_authority(title, expected):
    assert points("authority", {"title": title}) == [expected]


def test_every_step_of_authority_has_points_and_they_fall():
    assert tuple(AUTHORITY_POINTS) == AUTHORITIES
    assert list(AUTHORITY_POINTS.values()) == sorted(AUTHORITY_POINTS.values(), reverse=True)


@pytest.mark.parametrize(
    ("lead", "expected"),
    [
        ({}, 3),
        ({"industry": "saas "}, 13),
        ({"industry": "health  and CARE"}, 13),
        ({"industry": "SaaS consulting"}, 3),
        ({"industry": ""}, 3),
        ({"employee_count": 5}, 3),
        ({"employee_count": 6}, 8),
        ({"employee_count": 100}, 8),
        ({"employee_count": 101}, 5),
        ({"employee_count": 400}, 5),
        ({"employee_count": 401}, 3),
        ({"employee_count": 2**31 - 1}, 3),
        ({"country": "Australia"}, 10),
        ({"country": "AU"}, 10),
        ({"country": "ÖSTERREICH"}, 10),
        ({"country": "U.S.A."}, 7),
        ({"country": "the United Kingdom"}, 7),
        ({"country": "nz"}, 7),
        ({"country": "Germany"}, 3),
        ({"country": " "}, 3),
        ({"industry": "SaaS", "employee_count": 50, "country": "au"}, 25),
    ],
)
def test_company_fit(lead, expected):
    assert points("company_fit", lead) == [expected]


def test_company_fit_without_a_profile_is_what_the_rules_leave():
    leads = [
        {"industry": "SaaS", "employee_count": 50, "country": "Australia"},
        {"industry": "SaaS", "employee_count": 50, "country": "Germany"},
    ]
    assert points("company_fit", *leads, profile=IdealProfile()) == [7, 3]
    assert compute_components(frame(*leads), {}, NOW)["company_fit"].to_list() == [7, 3]


@pytest.mark.parametrize(
    ("lead", "expected"),
    [
        ({}, 0),
        ({"is_new_role": True}, 6),
        ({"is_new_role": False, "is_hiring": False, "recently_funded": False}, 0),
        ({"is_hiring": True}, 5),
        ({"recently_funded": True}, 4),
        ({"is_new_role": True, "is_hiring": True, "recently_funded": True}, 15),
        # 31 March less six months is 30 September, at noon.
        ({"role_started_at": datetime(2025, 9, 30, 12, 0, 1, tzinfo=UTC)}, 6),
        ({"role_started_at": datetime(2025, 9, 30, 12, tzinfo=UTC)}, 3),
        ({"role_started_at": datetime(2025, 3, 31, 12, 0, 1, tzinfo=UTC)}, 3),
        ({"role_started_at": datetime(2025, 3, 31, 12, tzinfo=UTC)}, 0),
        ({"role_started_at": NOW}, 6),
        ({"role_started_at": NOW + timedelta(microseconds=1)}, 0),
        ({"role_started_at": NOW + timedelta(days=9), "is_new_role": True}, 6),
        ({"role_started_at": datetime(2020, 1, 1, tzinfo=UTC), "is_new_role": True}, 0),
        ({"funded_at": datetime(2025, 3, 31, 12, tzinfo=UTC)}, 4),
        ({"funded_at": datetime(2025, 3, 31, 11, 59, 59, tzinfo=UTC)}, 2),
        ({"funded_at": datetime(2024, 3, 31, 12, tzinfo=UTC)}, 2),
        ({"funded_at": datetime(2024, 3, 31, 11, 59, 59, tzinfo=UTC)}, 0),
        ({"funded_at": NOW + timedelta(seconds=1), "recently_funded": True}, 4),
        ({"funded_at": datetime(2020, 1, 1, tzinfo=UTC), "recently_funded": True}, 0),
    ],
)
def test_timing(lead, expected):
    assert points("timing", lead) == [expected]


@pytest.mark.parametrize(
    ("lead", "expected"),
    [
        ({"title": "CEO"}, 15),
        ({"title": "Team Lead"}, 15),
        ({"title": "Analyst"}, 10),
        ({}, 10),
        ({"title": "CEO", "status": "bounced"}, 5),
        ({"status": "bounced"}, 0),
        ({"title": "CEO", "status": " BOUNCED "}, 5),
        ({"title": "CEO", "status": "unsubscribed"}, 0),
        ({"title": "CEO", "status": "not_interested"}, 15),
        ({"title": "CEO", "is_competitor": True}, 0),
        ({"title": "CEO", "is_competitor": False}, 15),
        ({"status": "unsubscribed", "is_competitor": True}, 0),
    ],
)
def test_risk(lead, expected):
    assert points("risk", lead) == [expected]


BEST = {
    "email": "x@gmail.com", "email_verified": True, "phone": "0255501234", "phone_verified": True,
    "linkedin_url": "in/x", "title": "CEO", "industry": "SaaS", "employee_count": 50,
    "country": "AU", "is_new_role": True, "is_hiring": True, "recently_funded": True,
}  # fmt: skip


def test_the_best_lead_has_every_cap_and_100_points():
    scores = compute_lead_scores(frame(BEST, {}), NO_WEIGHTS, {"a": PROFILE}, NOW)
    assert scores["als_score"].to_list() == [100.0, 13.0]
    assert scores["als_tier"].to_list() == ["hot", "dead"]
    assert json.loads(scores["als_components"][0]) == SCORE_CAPS
    assert json.loads(scores["als_weights_used"][0]) == {**DEFAULT_WEIGHTS, "risk": 0.15}
    assert scores["scored_at"].to_list() == [NOW, NOW]


@pytest.mark.parametrize(
    ("lead", "score", "tier"),
    [
        # 20 + 15 + 25 + 10 + 15: on the border, where floating sums come out as 84.99999999999999.
        ({"title": "Director", "is_new_role": False, "is_hiring": True}, 84.0, "warm"),
        ({"title": "Director", "is_new_role": True, "recently_funded": False}, 86.0, "hot"),
        ({"title": "Chief", "is_hiring": False, "recently_funded": False}, 88.0, "hot"),
    ],
)
def test_scores_by_hand(lead, score, tier):
    scores = compute_lead_scores(frame({**BEST, **lead}), NO_WEIGHTS, {"a": PROFILE}, NOW)
    assert scores.select("als_score", "als_tier").row(0) == (score, tier)


# -- all rules at once -------------------------------------------------------------------------

emails = st.sampled_from(
    [None, "", "n/a", "x@y.example", " x@gmail.com", "x@gmail.com.au", "a@b@c"]
)
flags = st.sampled_from([None, True, False])
moments = st.one_of(
    st.none(),
    st.integers(-1500, 300).map(lambda days: NOW + timedelta(days=days, seconds=days)),
    st.sampled_from([6, 12, 24]).map(lambda months: reference.months_before(NOW, months)),
    st.just(NOW),
)
names = st.sampled_from([None, " ", "SaaS", "saas  ", "Health & Care", "STRASSE", "straße", "金融"])
countries = st.sampled_from([None, "", "AU", "australia", "US", "UK", "Österreich", "Germany"])
lead_rows = st.fixed_dictionaries(
    {
        "email": emails,
        "email_verified": flags,
        "personal_email": emails,
        "phone": st.sampled_from([None, "", "1234", "1-2-3-4-5", "+61 2 5550 1234", "none"]),
        "phone_verified": flags,
        "linkedin_url": st.sampled_from([None, " ", "NULL", "in/x"]),
        "title": st.sampled_from(list(reference.TITLES)),
        "industry": names,
        "employee_count": st.one_of(st.none(), st.integers(0, 2000), st.just(2**31 - 1)),
        "country": countries,
        "is_new_role": flags,
        "role_started_at": moments,
        "is_hiring": flags,
        "recently_funded": flags,
        "funded_at": moments,
        "is_competitor": flags,
        "status": st.sampled_from(["new", "bounced", "unsubscribed", "dead", "converted", None]),
    }
)
profiles = st.fixed_dictionaries(
    {
        "industries": st.lists(names.filter(lambda n: n is not None and bool(n.strip()))),
        "employees": st.one_of(
            st.none(), st.tuples(st.integers(0, 500), st.integers(1, 500)).map(sorted).map(tuple)
        ),
        "countries": st.lists(countries.filter(bool)),
    }
)  # fmt: skip
weight_sets = st.sampled_from(
    [
        DEFAULT_WEIGHTS,
        {"data_quality": 0.05, "authority": 0.5, "company_fit": 0.25, "timing": 0.05},
        {"data_quality": 0.2125, "authority": 0.2125, "company_fit": 0.2125, "timing": 0.2125},
        {"data_quality": 0.1, "authority": 0.3, "company_fit": 0.3, "timing": 0.15},
    ]
)


def to_profile(plain):
    employees = plain["employees"]
    return IdealProfile(
        industries=tuple(plain["industries"]),
        employees=employees and EmployeeRange(lowest=employees[0], highest=employees[1]),
        countries=tuple(plain["countries"]),
    )


agencies = st.dictionaries(
    st.sampled_from(["a", "b", "ü"]),
    st.tuples(profiles, weight_sets, st.lists(lead_rows, max_size=6)),
    min_size=1,
)


@pytest.mark.slow
@settings(max_examples=150)
@given(agencies, st.integers(1, 5))
def test_scores_are_those_of_the_reference(agency, part):
    rows = [
        {"client_id": client, "id": str(n), **lead}
        for client, (_, _, leads) in agency.items()
        for n, lead in enumerate(leads)
    ]
    leads = pl.DataFrame(rows, schema=SCORED_COLUMNS)
    weights = pl.DataFrame([{"client_id": c, **w} for c, (_, w, _) in agency.items()])
    chosen = {client: to_profile(profile) for client, (profile, _, _) in agency.items()}
    scores = compute_lead_scores(leads, weights, chosen, NOW)
    assert scores.schema == {"client_id": pl.String(), "id": pl.String(), **SCORE_COLUMNS}
    for row, scored in zip(rows, scores.iter_rows(named=True), strict=True):
        profile, used, _ = agency[row["client_id"]]
        components = reference.score_components(row, profile, NOW)
        total, tier = reference.score(components, used)
        assert (row["client_id"], row["id"]) == (scored["client_id"], scored["id"])
        assert json.loads(scored["als_components"]) == components
        assert json.loads(scored["als_weights_used"]) == {**used, "risk": 0.15}
        assert scored["als_score"] == pytest.approx(float(total), abs=1e-6)
        assert scored["als_tier"] == tier
    # Cutting the leads into parts changes nothing, byte for byte; nor does another tenant.
    parts = [compute_lead_scores(p, weights, chosen, NOW) for p in leads.iter_slices(part)]
    assert_frame_equal(pl.concat([scores.clear(), *parts]), scores, check_exact=True)
    alone = leads.filter(pl.col("client_id") == "a")
    own = {client: profile for client, profile in chosen.items() if client == "a"}
    assert_frame_equal(
        compute_lead_scores(alone, weights.filter(pl.col("client_id") == "a"), own, NOW),
        scores.filter(pl.col("client_id") == "a"),
        check_exact=True,
    )


texts = st.text(max_size=30)


@given(
    st.lists(
        st.fixed_dictionaries({n: texts for n, t in SCORED_COLUMNS.items() if t == pl.String()})
    )
)
def test_any_text_scores_between_0_and_100(rows):
    leads = pl.DataFrame(rows, schema={n: t for n, t in SCORED_COLUMNS.items() if t == pl.String()})
    scores = compute_lead_scores(leads, NO_WEIGHTS, {}, NOW)
    assert scores.height == leads.height
    assert scores["als_score"].is_between(0, 100).all()
    parts = [json.loads(text) for text in scores["als_components"]]
    assert all(0 <= part[name] <= SCORE_CAPS[name] for part in parts for name in COMPONENT_NAMES)


# -- edges -------------------------------------------------------------------------------------


def test_columns_may_be_missing_and_null():
    bare = pl.DataFrame({"client_id": ["a"], "id": ["1"]})
    nulls = frame({})
    assert_frame_equal(
        compute_lead_scores(bare, NO_WEIGHTS, {}, NOW).drop("id"),
        compute_lead_scores(nulls, NO_WEIGHTS, {}, NOW).drop("id"),
    )
    untyped = bare.with_columns(
        pl.lit(None).alias(name) for name in SCORED_COLUMNS if name not in bare.columns
    )
    assert compute_lead_scores(untyped, NO_WEIGHTS, {}, NOW)["als_score"].to_list() == [13.0]


def test_no_leads_give_no_scores():
    scores = compute_lead_scores(frame(), NO_WEIGHTS, {}, NOW)
    assert scores.schema == {"client_id": pl.String(), "id": pl.String(), **SCORE_COLUMNS}
    assert scores.is_empty()


def test_each_lead_may_have_a_time_of_its_own():
    started = {"role_started_at": datetime(2025, 9, 1, tzinfo=UTC)}
    now = pl.Series([NOW, NOW - timedelta(days=90)]).dt.convert_time_zone("Asia/Kathmandu")
    scores = compute_lead_scores(frame(started, started), NO_WEIGHTS, {}, now)
    assert [json.loads(c)["timing"] for c in scores["als_components"]] == [3, 6]
    assert scores["scored_at"].to_list() == now.to_list()


def test_a_time_without_zone_is_refused():
    naive = datetime(2026, 3, 1)  # noqa: DTZ001 - that is the point
    with pytest.raises(InputError, match="has no zone"):
        compute_lead_scores(frame({}), NO_WEIGHTS, {}, naive)
    with pytest.raises(InputError, match="no zone"):
        compute_lead_scores(frame({}), NO_WEIGHTS, {}, pl.Series([naive]))


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        ({"timing": 0.04}, "timing is 0.04, outside of"),
        ({"timing": None}, "timing is missing"),
        ({"timing": math.nan}, "timing is nan"),
        ({"timing": 0.3}, "they sum to 1, not to 0.85"),
    ],
)
def test_unusable_weights_are_refused_with_the_client(weights, fault):
    given_ = pl.DataFrame([{"client_id": "a", **DEFAULT_WEIGHTS, **weights}])
    with pytest.raises(InputError, match=f"score weights of client 'a' cannot be used: {fault}"):
        compute_lead_scores(frame({}), given_, {}, NOW)
    # Weights of a client without leads here are nobody's business.
    other = given_.with_columns(client_id=pl.lit("b"))
    assert compute_lead_scores(frame({}), other, {}, NOW).height == 1


def test_weights_that_stand_twice_are_refused():
    twice = pl.DataFrame([{"client_id": "a", **DEFAULT_WEIGHTS}] * 2)
    with pytest.raises(InputError, match="they stand twice"):
        compute_lead_scores(frame({}), twice, {}, NOW)


def test_a_huge_text_and_a_million_titles_of_one_length_do_no_harm():
    leads = frame({"title": "CEO " + "x" * 2_000_000, "email": "x" * 1_000_000 + "@gmail.com"})
    assert compute_components(leads, {}, NOW).select("authority", "data_quality").row(0) == (25, 6)
