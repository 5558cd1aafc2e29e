"""Features against a slow reference that goes row by row, and what must not change them."""

import json
from datetime import timedelta
from typing import Any

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversion_assets.domain.content import DEFAULT_VOCABULARY
from conversion_assets.features import Features, build_features
from conversion_assets.features import content as content_module
from conversion_assets.features.frames import ACTIVITY_COLUMNS, CLIENT_COLUMNS, LEAD_COLUMNS
from conversion_assets_tests.unit.features import reference
from conversion_assets_tests.unit.features.reference import utc

ZONES = [
    None, "", "Asia/Kolkata", "Asia/Kathmandu", "Europe/Berlin", "America/New_York",
    "Australia/Lord_Howe", "Mars/Olympus", "UTC",
]  # fmt: skip
CLIENTS = ["c1", "c2"]
LEADS = ["l1", "l2", "l3"]
WORDS = [
    "leads", "sales", "salesforce", "Sales-driven", "worth", "15", "minutes", "thoughts?", "hi",
    "Will", "Anna", "anna's", "ACME", "Acme", "it", "IT", "retail", "free", "audit", "open", "to",
    "a", "quick", "chat", "question", "about", "Re:", "—", "-", "idea", "for", "congrats", "on",
    "?", "\n", "ﬁrst", "é", "İ", "straße", "don't", "series_a", "O'Reilly", ".*", "$", "\\",
    "let", "me", "know",
]  # fmt: skip
# Control characters are left out: Python calls U+001F a space and Unicode does not.
characters = st.characters(exclude_categories=("Cs", "Cc", "Cn"))
texts = st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join) | st.text(
    characters, max_size=20
)
labels = st.none() | st.lists(
    st.sampled_from(["leads", "time", "roi_focused", "quick_question", "unheard_of"]), max_size=2
)
snapshots = st.fixed_dictionaries(
    {},
    optional={
        "subject": st.none() | texts,
        "body": st.none() | texts,
        "message": st.none() | texts,
        "template_id": st.sampled_from([None, "t1", ""]),
        "sequence_id": st.sampled_from([None, "s1"]),
        "cta": st.sampled_from([None, "Book a time", "unknown words"]),
        "cta_type": st.sampled_from([None, "passive"]),
        "word_count": st.none() | st.integers(0, 500),
        "subject_word_count": st.none() | st.integers(0, 12),
        "char_count": st.none() | st.integers(0, 5000),
        "pain_points": labels,
        "angles": labels,
        "subject_patterns": labels,
        "first_name": st.none() | st.booleans(),
        "company_mention": st.none() | st.booleans(),
        "extra": st.just({"deep": [1, {"x": None}]}),
    },
)
json_texts = st.one_of(
    st.none(),
    snapshots.map(json.dumps),
    st.sampled_from(["", "{", "[1]", "null", '"x"', "{} {}", '{"subject": {"a": 1}}', "3", "nul"]),
)
# Within a few days of both clock changes of two hemispheres, to the second.
moments = st.builds(
    lambda start, seconds: start + timedelta(seconds=seconds),
    st.sampled_from([utc(2024, 3, 30), utc(2024, 10, 26), utc(2024, 3, 9), utc(2024, 4, 6, 14)]),
    st.integers(0, 4 * 86_400),
)
names = st.sampled_from([None, "Anna", "Will", "J", "O'Reilly", " ", "é", ".*", "İ"])
companies = st.sampled_from(
    [None, "Acme", "Acme Inc.", "ACME Pty Ltd", "Co", "IT", ".*", "O'Reilly", "N/A", "The"]
)


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[dict[str, Any]], ...]:
    clients = [
        {
            "id": client_id,
            "timezone": draw(st.sampled_from(ZONES)),
            "deleted_at": draw(st.sampled_from([None, None, None, utc(2024, 1, 1)])),
        }
        for client_id in CLIENTS
    ]
    leads = [
        {
            "id": lead_id,
            "client_id": client_id,
            "first_name": draw(names),
            "title": draw(st.sampled_from([None, "CEO", "VP Sales", "  ", "Head of Growth"])),
            "company_name": draw(companies),
            "industry": draw(st.sampled_from([None, "IT", "Retail", " retail ", "", "Health é"])),
            "employee_count": draw(st.sampled_from([None, -1, 0, 1, 5, 6, 500, 501, 10**6])),
            "country": draw(st.sampled_from([None, " AU ", ""])),
            "timezone": draw(st.sampled_from(ZONES)),
            "source": draw(st.sampled_from([None, "web"])),
            "is_new_role": draw(st.sampled_from([None, True, False])),
            "is_hiring": None,
            "recently_funded": draw(st.sampled_from([None, True])),
            "status": draw(st.sampled_from(["new", "converted", "dead", "bounced", "strange"])),
            "als_tier": draw(st.sampled_from([None, "hot"])),
            "als_components": draw(
                st.sampled_from([None, '{"authority": 25, "timing": 3.5}', "{", '{"timing": null}'])
            ),
            "created_at": draw(moments),
            "converted_at": draw(st.none() | moments),
            "updated_at": draw(st.none() | moments),
            "deleted_at": draw(st.sampled_from([None, None, None, utc(2024, 1, 1)])),
        }
        for client_id in CLIENTS
        for lead_id in LEADS
    ]
    count = draw(st.integers(0, 14))
    times = draw(st.lists(moments, min_size=1, max_size=5))
    activities = [
        {
            "id": f"a{position}",
            "client_id": draw(st.sampled_from([*CLIENTS, "nobody"])),
            "lead_id": draw(st.sampled_from([*LEADS, "nobody"])),
            "channel": draw(st.sampled_from([None, "email", "sms", "whatsapp", "Fax "])),
            "action": draw(
                st.sampled_from(
                    [
                        "email_sent",
                        "sms_sent",
                        "voice_completed",
                        "whatsapp_sent",
                        "email_opened",
                        "meeting_booked",
                        "mail_sent",
                        "linkedin_sent",
                    ],
                )
            ),
            "sequence_id": draw(st.sampled_from([None, "s9", ""])),
            "content_snapshot": draw(json_texts),
            "metadata": draw(json_texts),
            "led_to_booking": draw(st.sampled_from([None, True, False])),
            "occurred_at": draw(st.sampled_from(times) | moments),
        }
        for position in range(count)
    ]
    return clients, leads, activities


def frames(world: tuple[list[dict[str, Any]], ...]) -> list[pl.DataFrame]:
    schemas = (CLIENT_COLUMNS, LEAD_COLUMNS, ACTIVITY_COLUMNS)
    return [pl.DataFrame(rows, schema=schema) for rows, schema in zip(world, schemas, strict=True)]


def same(left: Features, right: Features) -> None:
    assert left.leads.equals(right.leads)
    assert left.touches.equals(right.touches)
    assert left.notes.equals(right.notes)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=worlds())
def test_columns_agree_with_the_row_by_row_reference(
    world: tuple[list[dict[str, Any]], ...],
) -> None:
    found = build_features(*frames(world))
    expected = reference.lead_features(*world)
    assert found.leads.to_dicts() == expected
    touches = reference.touch_features(*world, DEFAULT_VOCABULARY)
    for row, wanted in zip(found.touches.to_dicts(), touches, strict=True):
        # The engine multiplies by the reciprocal of a constant: one unit in the last place.
        for side in (row, wanted):
            side["gap_days"] = side["gap_days"] and round(side["gap_days"], 11)
        assert row == wanted


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=worlds(), seed=st.integers(0, 1000), chunk=st.integers(1, 5))
def test_order_chunks_and_other_clients_change_nothing(
    world: tuple[list[dict[str, Any]], ...], seed: int, chunk: int
) -> None:
    clients, leads, activities = frames(world)
    whole = build_features(clients, leads, activities)
    shuffled = [
        frame.sample(fraction=1, shuffle=True, seed=seed) for frame in (clients, leads, activities)
    ]
    usual = content_module.CHUNK_ROWS
    content_module.CHUNK_ROWS = chunk
    try:
        same(build_features(*shuffled), whole)
    finally:
        content_module.CHUNK_ROWS = usual
    one = [
        clients.filter(pl.col("id") == "c1"),
        leads.filter(pl.col("client_id") == "c1"),
        activities.filter(pl.col("client_id") == "c1"),
    ]
    of_one = pl.col("client_id") == "c1"
    alone = build_features(*one)
    assert alone.leads.equals(whole.leads.filter(of_one))
    assert alone.touches.equals(whole.touches.filter(of_one))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=worlds(), share=st.floats(0, 1))
def test_known_content_is_taken_as_it_is(
    world: tuple[list[dict[str, Any]], ...], share: float
) -> None:
    clients, leads, activities = frames(world)
    whole = build_features(clients, leads, activities)
    known = whole.touches.head(int(whole.touches.height * share))
    keys = pl.concat_str("client_id", pl.lit("/"), "activity_id")
    is_known = pl.concat_str("client_id", pl.lit("/"), "id").is_in(
        known.select(keys).to_series().implode()
    )
    blind = activities.with_columns(
        pl.when(~is_known).then(pl.col(name)).alias(name)
        for name in ("content_snapshot", "metadata")
    )
    again = build_features(clients, leads, blind, known_content=known)
    assert again.touches.equals(whole.touches)
    assert again.leads.equals(whole.leads)
