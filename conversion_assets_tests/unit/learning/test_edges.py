"""Clients at the edges: a document or a stated outcome, never a crash."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from conversion_assets import learn_patterns, survey
from conversion_assets.domain.errors import InputError
from conversion_assets.domain.terms import NoteKind, OutcomeKind, PatternType
from conversion_assets.features import build_features
from conversion_assets.learning import CODE_VERSION, detect_patterns

START = datetime(2025, 1, 1, tzinfo=UTC)
AS_OF = datetime(2025, 12, 1, tzinfo=UTC)


def make_leads(count: int, converted: int, client: str = "c", **columns: object) -> pl.DataFrame:
    ids = [f"{client}-{i:05d}" for i in range(count)]
    created = [START + timedelta(hours=i % 2000) for i in range(count)]
    return pl.DataFrame(
        {
            "id": ids,
            "client_id": [client] * count,
            "status": ["converted" if i < converted else "dead" for i in range(count)],
            "created_at": created,
            "updated_at": [t + timedelta(days=3) for t in created],
            "converted_at": [
                t + timedelta(days=3) if i < converted else None for i, t in enumerate(created)
            ],
            "timezone": ["Europe/Berlin"] * count,
            **columns,
        },
        schema_overrides={
            "converted_at": pl.Datetime("us", "UTC"),
            "created_at": pl.Datetime("us", "UTC"),
            "updated_at": pl.Datetime("us", "UTC"),
            "id": pl.String,
            "client_id": pl.String,
            "status": pl.String,
            "timezone": pl.String,
        },
    )


def make_touches(leads: pl.DataFrame, channel: str = "email", per_lead: int = 2) -> pl.DataFrame:
    parts = [
        leads.select(
            id=pl.format("{}-{}", "id", pl.lit(number)),
            client_id="client_id",
            lead_id="id",
            channel=pl.lit(channel),
            action=pl.lit("email_sent"),
            occurred_at=pl.col("created_at") + timedelta(days=1 + number),
            metadata=pl.lit('{"subject": "Quick question", "body": "Worth 15 minutes?"}'),
        )
        for number in range(per_lead)
    ]
    return pl.concat(parts)


def outcomes(learned) -> dict[str, str]:
    return {f"{o.client_id}/{o.pattern_type}": o.outcome for o in learned.outcomes}


@pytest.mark.parametrize(
    ("count", "converted", "reason"),
    [
        (0, 0, "0 resolved leads"),
        (1, 0, "1 resolved leads"),
        (1, 1, "1 resolved leads"),
        (200, 0, "0 conversions"),
        (200, 200, "confidence 0.00"),
        (200, 4, "4 conversions"),
    ],
)
def test_too_little_is_stated_with_its_figures(count, converted, reason):
    leads = make_leads(count, converted)
    clients = pl.DataFrame({"id": ["c"]})
    learned = learn_patterns(leads, make_touches(leads), clients, as_of=AS_OF)
    assert set(outcomes(learned)) == {f"c/{kind}" for kind in PatternType}
    assert set(outcomes(learned).values()) == {OutcomeKind.NOT_ENOUGH_DATA}
    assert all(reason in o.reason for o in learned.outcomes)
    assert learned["c"] == {}


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"title": [None] * 300, "industry": [None] * 300, "als_components": [None] * 300},
        {"title": ["CEO"] * 300, "source": ["x"] * 300, "country": ["y"] * 300},
        {"industry": [f"only-{i}" for i in range(300)]},
        {"als_components": ["not json"] * 300},
        {"is_new_role": [True, None, False] * 100},
    ],
)
def test_odd_columns_still_give_all_documents(columns):
    leads = make_leads(300, 60, **columns)
    learned = learn_patterns(leads, make_touches(leads), as_of=AS_OF)
    assert OutcomeKind.FAILED not in outcomes(learned).values(), learned.outcomes
    assert set(learned["c"]) == set(PatternType)


def test_no_touches_leaves_who_and_states_why_the_others_are_missing():
    leads = make_leads(300, 60)
    learned = learn_patterns(leads, make_touches(leads).clear(), as_of=AS_OF)
    assert set(learned["c"]) == {PatternType.WHO}
    assert {o.reason for o in learned.outcomes if o.pattern_type == PatternType.HOW} == {
        "0 converting touches, 5 are needed"
    }


def test_an_unseen_channel_is_a_channel():
    leads = make_leads(300, 60)
    learned = learn_patterns(leads, make_touches(leads, channel="pigeon"), as_of=AS_OF)
    document = learned["c"][PatternType.HOW]
    assert [e.value for e in document.first_touch] == ["pigeon"]
    assert document.booking_channel_distribution.rows[0].share == 1.0


@pytest.mark.slow
def test_a_million_touches_of_one_client_give_all_documents():
    leads = make_leads(100_000, 12_000)
    learned = learn_patterns(leads, make_touches(leads, per_lead=10), as_of=AS_OF)
    assert set(learned["c"]) == set(PatternType)
    hazards = learned["c"][PatternType.WHEN].touch_hazard
    # Conversion comes after three days, so a converted lead is at risk for its first three touches.
    assert (
        sum(e.n for e in hazards)
        + sum(
            note.rows
            for note in learned["c"][PatternType.WHEN].data_notes
            if note.kind in (NoteKind.TOUCH_AFTER_CONVERSION, NoteKind.YOUNG_TOUCH)
        )
        == 1_000_000
    )


def test_a_client_whose_rows_break_detection_fails_alone(monkeypatch):
    """The culprit is found by halving; the others' documents are those of a run without it."""
    parts = [make_leads(300, 60, client=name) for name in ("a", "b", "poison", "z")]
    leads = pl.concat(parts)
    features = build_features(None, leads, make_touches(leads))
    names = pl.DataFrame({"client_id": ["a", "b", "poison", "z"], "pool_opt_in": [False] * 4})
    real = survey.select_population

    def select(leads, touches, client_ids, as_of, config):
        if "poison" in client_ids:
            raise ValueError("rows of poison\ncannot be read")
        return real(leads, touches, client_ids, as_of, config)

    monkeypatch.setattr(survey, "select_population", select)
    found = detect_patterns(features.leads, features.touches, names, as_of=AS_OF)
    failed = found.failures
    assert {o.client_id for o in failed} == {"poison"}
    assert len(failed) == 4
    assert failed[0].error == "ValueError: rows of poison cannot be read"
    monkeypatch.undo()
    alone = detect_patterns(
        features.leads, features.touches, names.filter(pl.col("client_id") != "poison"), as_of=AS_OF
    )
    assert found.documents == alone.documents


def test_a_naive_as_of_is_refused_with_one_line():
    leads = make_leads(1, 0)
    with pytest.raises(InputError, match="no time zone"):
        learn_patterns(leads, make_touches(leads), as_of=datetime(2025, 1, 1))  # noqa: DTZ001


@pytest.mark.parametrize("missing", ["id", "client_id", "created_at"])
def test_a_missing_column_is_named(missing):
    leads = make_leads(1, 0)
    with pytest.raises(InputError, match=missing):
        learn_patterns(leads.drop(missing), make_touches(leads), as_of=AS_OF)


def test_the_code_version_names_its_three_parts():
    assert len(CODE_VERSION.split("/")) == 3
