"""Content: words, labels, personal touches, and JSON of every kind of wrong."""

import json
from typing import Any

import polars as pl
import pytest

from conversion_assets.domain.content import DEFAULT_VOCABULARY, load_vocabulary
from conversion_assets.domain.errors import InputError
from conversion_assets.features.content import (
    MAXIMUM_JSON_BYTES,
    compute_content,
    compute_personal_values,
    decode_json,
)

LEAD = {"company_name": "Acme Inc.", "first_name": "Anna", "industry": "Retail"}


def features_of(
    snapshot: object, *, lead: dict[str, str | None] = LEAD, metadata: object = None
) -> dict[str, Any]:
    def text(value: object) -> str | None:
        return value if value is None or isinstance(value, str) else json.dumps(value)

    row = {**lead, "content_snapshot": text(snapshot), "metadata": text(metadata)}
    frame = pl.DataFrame(
        {**row, "sequence_id": None},
        schema=dict.fromkeys([*row, "sequence_id"], pl.String),
    )
    personal = compute_personal_values(frame, DEFAULT_VOCABULARY)
    return compute_content(personal, DEFAULT_VOCABULARY).row(0, named=True)


def found(row: dict[str, Any], prefix: str) -> set[str]:
    return {
        name.removeprefix(prefix)
        for name, value in row.items()
        if name.startswith(prefix) and value
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("our salesforce", set()),
        ("our sales force", {"revenue"}),
        ("SALES!", {"revenue"}),
        ("sales-driven", {"revenue"}),
        ("(margins)", {"revenue", "cost"}),
        ("mar gins", set()),
        ("top\nof   funnel", {"leads"}),
        ("clientele", set()),
        ("your client’s", {"clients"}),
    ],
)
def test_keywords_are_whole_words(body: str, expected: set[str]) -> None:
    assert found(features_of({"body": body}), "pain__") == expected


@pytest.mark.parametrize(
    ("phrase", "kind"),
    [
        ("Open to a quick chat", "soft_ask"),
        ("Is it worth 15 minutes", "time_specific"),
        ("a free audit", "value_offer"),
        ("Book a time", "direct_ask"),
        ("Let me know.", "passive"),
        ("Thoughts?", "question"),
        ("coffee chat", "casual"),
        ("thoughts on this", None),
    ],
)
def test_the_calls_to_action_of_the_reference(phrase: str, kind: str | None) -> None:
    assert features_of({"body": f"Hello. {phrase}"})["cta_type"] == kind


def test_the_first_and_longest_call_to_action_counts() -> None:
    assert features_of({"body": "Any thoughts? Book a time"})["cta"] == "any thoughts?"
    assert (
        features_of({"body": "open to a quick chat over coffee"})["cta"] == "open to a quick chat"
    )


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("Question about Acme", {"question_about"}),
        ("quick question", {"quick_question"}),
        ("RE: our call", {"reply_style"}),
        ("Anna - an idea for you", {"name_dash", "idea_for"}),
        ("follow-up", set()),
        ("A thought about churn", {"thought_about"}),
        ("Free on Tuesday? ", {"ends_question"}),
        ("Hey Anna", {"casual_greeting"}),
        ("Introduction", {"introduction"}),
        ("Partnership opportunity", {"partnership", "opportunity"}),
        ("Congrats!", {"congratulatory"}),
    ],
)
def test_subject_patterns(subject: str, expected: set[str]) -> None:
    assert found(features_of({"subject": subject}), "subject__") == expected


@pytest.mark.parametrize(
    ("count", "label"), [(1, "short"), (3, "short"), (4, "medium"), (6, "medium"), (7, "long")]
)
def test_subject_length(count: int, label: str) -> None:
    assert features_of({"subject": " ".join(["word"] * count)})["subject_length"] == label


@pytest.mark.parametrize(
    ("lead", "body", "expected"),
    [
        (
            LEAD,
            "Hi ANNA, Acme's retail team",
            {"first_name", "company_mention", "industry_specific"},
        ),
        (LEAD, "Hannah at Acmeology, retailers", set()),
        ({**LEAD, "first_name": "Will"}, "I will call", set()),
        ({**LEAD, "first_name": "Will"}, "Hi Will, quick one", {"first_name"}),
        ({**LEAD, "industry": "IT"}, "it is", set()),
        ({**LEAD, "company_name": ".*"}, "anything", set()),
        ({**LEAD, "company_name": "A+B (C)"}, "about a+b (c) today", {"company_mention"}),
        (dict.fromkeys(LEAD), "Hi Anna", set()),
        (LEAD, "saw that you raised; a mutual connection", {"recent_news", "mutual_connection"}),
    ],
)
def test_personal_touches_are_the_leads_own(
    lead: dict[str, str | None], body: str, expected: set[str]
) -> None:
    assert found(features_of({"body": body}, lead=lead), "personal__") == expected


def test_labels_stand_in_for_missing_text() -> None:
    labels = {
        "pain_points": ["time"],
        "angles": ["urgency"],
        "cta": "Book a time",
        "first_name": True,
        "subject_patterns": ["quick_question"],
        "word_count": 80,
    }
    row = features_of(labels)
    assert (row["has_content"], row["has_subject"], row["word_count"]) == (True, True, 80)
    assert (row["cta"], row["cta_type"]) == ("book a time", "direct_ask")
    assert found(row, "pain__") | found(row, "angle__") == {"time", "urgency"}
    assert found(row, "personal__") == {"first_name"}
    with_text = features_of({**labels, "subject": "x", "body": "nothing here at all"})
    assert with_text["word_count"] == 4
    assert not found(with_text, "pain__") | found(with_text, "personal__")


def test_metadata_stands_in_for_the_snapshot() -> None:
    row = features_of(None, metadata={"message": "more leads", "subject": "hey"})
    assert found(row, "pain__") == {"leads"}
    assert row["has_subject"]
    assert not features_of({"channel": "email", "word_count": 7})["has_content"]


@pytest.mark.parametrize(
    "text",
    ["{bad", "[1, 2]", '"text"', "3", "{} {}", '{"a": 1} {"body": "leads"}', "[" * 100_000,
     "[" * 100_000 + "]" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000,
     '{"body": "' + "x" * MAXIMUM_JSON_BYTES + '"}'],
)  # fmt: skip
def test_text_that_is_no_object_is_no_content_and_counted(text: str) -> None:
    row = features_of(text)
    assert row["has_content"] is False
    assert row["is_invalid_json"] is True or text.startswith('{"a":')


def test_wrong_types_within_an_object_do_not_lose_the_rest() -> None:
    row = features_of(
        {"subject": {"a": 1}, "body": "leads", "angles": "urgency", "word_count": "7"}
    )
    assert found(row, "pain__") == {"leads"}
    assert row["is_invalid_json"] is False


def test_one_bad_row_does_not_move_the_others() -> None:
    good = [json.dumps({"body": str(number)}) for number in range(500)]
    texts = [*good[:100], "{bad}", "", None, '{"body": 1} {"body": 2}', *good[100:]]
    values, invalid = decode_json(pl.Series(texts), pl.Struct({"body": pl.String()}))
    bodies = [value["body"] if value else None for value in values.to_list()]
    assert bodies == [*map(str, range(100)), None, None, None, None, *map(str, range(100, 500))]
    assert invalid.arg_true().to_list() == [100, 103]


def test_a_huge_body_is_bounded_and_counted() -> None:
    row = features_of({"body": "word " * 100_000 + "leads"})
    assert row["word_count"] == 100_001
    assert not found(row, "pain__")


def test_a_clients_own_words() -> None:
    own = load_vocabulary(
        "pain_points: {permits: [building permit], cost: []}\nctas: {ring me: casual}"
    )
    assert "pain__permits" in own.feature_columns()
    assert "pain__cost" not in own.feature_columns()
    assert own.fingerprint() != DEFAULT_VOCABULARY.fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "mapping"),
        ("a: [", "not readable"),
        ("pain_pints: {}", "pain_pints"),
        ("pain_points: {Bad Name: [x]}", "pain_points"),
        ("pain_points: {x: ['--']}", "can never match"),
        ("ctas: {call: shouting}", "ctas.call"),
        ("subject_patterns: {x: '(?=a)'}", "not a valid regex"),
    ],
)
def test_an_unusable_vocabulary_is_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_vocabulary(text, where="own.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("own.yaml")
