"""Snapshots rebuilt from metadata: what they say, what is left out, and that features agree."""

import json
from datetime import timedelta
from math import ceil
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion_assets.domain.content import PERSONAL_TOUCHES
from conversion_assets.features import build_features
from conversion_assets.features.snapshots import SkipReason, rebuild_snapshots
from conversion_assets_tests.unit.features.reference import utc

START = utc(2024, 3, 30)
LEADS = pl.DataFrame(
    {
        "client_id": ["c", "c", "d", "d"],
        "id": ["l1", "l2", "l1", "l2"],
        "first_name": ["Anna", None, "Bo", "Will"],
        "company_name": ["Acme Inc.", "Nord", None, "Acme"],
        "industry": ["Retail", None, "Steel", " "],
        "created_at": [START] * 4,
    }
)
COLUMNS = {
    "client_id": pl.String(),
    "id": pl.String(),
    "lead_id": pl.String(),
    "channel": pl.String(),
    "action": pl.String(),
    "occurred_at": pl.Datetime("us", "UTC"),
    "sequence_id": pl.String(),
    "content_snapshot": pl.String(),
    "metadata": pl.String(),
}


def frame_of(*rows: dict[str, Any]) -> pl.DataFrame:
    usual = {
        "client_id": "c",
        "lead_id": "l1",
        "action": "email_sent",
        "channel": None,
        "sequence_id": None,
        "content_snapshot": None,
        "metadata": None,
    }
    filled = [
        {"id": f"a{place}", "occurred_at": START + timedelta(days=place), **usual, **row}
        for place, row in enumerate(rows)
    ]
    return pl.DataFrame(filled, schema=COLUMNS).with_columns(
        has_snapshot=pl.col("content_snapshot").is_not_null()
    )


def snapshots_of(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    rebuilt = rebuild_snapshots(frame_of(*rows), LEADS)
    return [json.loads(text) for text in rebuilt.rows["content_snapshot"]]


def said(metadata: object, **more: Any) -> dict[str, Any]:
    return {"metadata": json.dumps(metadata), **more}


def test_a_snapshot_has_every_field_of_the_reference() -> None:
    [snapshot] = snapshots_of(
        said(
            {
                "body": "Hi Anna, Acme could cut costs. Worth 15 minutes?",
                "subject": "Quick question",
                "template_id": "t-1",
                "touch_number": 9,
            },
            sequence_id="s-1",
        )
    )
    assert snapshot == {
        "subject": "Quick question",
        "body": "Hi Anna, Acme could cut costs. Worth 15 minutes?",
        "channel": "email",
        "template_id": "t-1",
        "sequence_id": "s-1",
        "word_count": 8 + 1,
        "subject_word_count": 2,
        "char_count": 48,
        "pain_points": ["cost"],
        "cta": "worth 15 minutes",
        "cta_type": "time_specific",
        "angles": ["roi_focused"],
        "subject_patterns": ["quick_question"],
        "company_mention": True,
        "first_name": True,
        "recent_news": False,
        "mutual_connection": False,
        "industry_specific": False,
        "touch_number": 1,
        "sent_at": "2024-03-30T00:00:00.000000Z",
        "reconstructed": True,
    }


def test_what_nobody_knows_is_left_out() -> None:
    subject_only, message = snapshots_of(said({"subject": "Hello"}), said({"message": "Hello"}))
    assert not {"body", "word_count", "char_count", "cta", "template_id"} & set(subject_only)
    assert message["body"] == "Hello"
    assert not {"subject", "subject_word_count", "segment_count"} & set(message)
    assert set(PERSONAL_TOUCHES) <= set(message)


def test_touch_numbers_are_ranks_among_all_touches_of_the_lead() -> None:
    rebuilt = snapshots_of(
        said({"body": "third"}, occurred_at=START + timedelta(days=9)),
        said({"body": "other lead"}, lead_id="l2"),
        said({"body": "other client"}, client_id="d"),
        said({"body": "read"}, action="email_opened", occurred_at=START),
        {"content_snapshot": '{"body": "first"}', "occurred_at": START},
        said({"body": "second by id"}, id="b", occurred_at=START),
    )
    assert {s["body"]: s["touch_number"] for s in rebuilt} == {
        "third": 3,
        "second by id": 2,
        "other lead": 1,
        "other client": 1,
    }


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, SkipReason.NO_METADATA),
        ("  ", SkipReason.NO_METADATA),
        ("null", SkipReason.NO_METADATA),
        ("[1]", SkipReason.MALFORMED_JSON),
        ('{"body": ', SkipReason.MALFORMED_JSON),
        ('"text"', SkipReason.MALFORMED_JSON),
        ("{}", SkipReason.NO_TEXT),
        ('{"body": " ", "subject": null}', SkipReason.NO_TEXT),
        ('{"template_id": "t"}', SkipReason.NO_TEXT),
    ],
)
def test_what_cannot_be_rebuilt_has_a_reason(metadata: str | None, reason: SkipReason) -> None:
    rebuilt = rebuild_snapshots(frame_of({"metadata": metadata}, said({"body": "ok"})), LEADS)
    assert rebuilt.skipped.rows() == [("c", "a0", reason.value)]
    assert rebuilt.rows["id"].to_list() == ["a1"]


def test_inbound_and_existing_snapshots_are_neither_rebuilt_nor_counted() -> None:
    rebuilt = rebuild_snapshots(
        frame_of(
            said({"body": "x"}, action="email_opened"),
            {"action": "meeting_booked"},
            said({"body": "x"}, content_snapshot="{}"),
        ),
        LEADS,
    )
    assert rebuilt.rows.is_empty()
    assert rebuilt.skipped.is_empty()
    nothing = rebuild_snapshots(frame_of(), LEADS.clear())
    assert nothing.rows.is_empty()


GSM = set(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
EXTENDED = set("\f^{}\\[~]|€")


def count_segments(body: str) -> int:
    if set(body) <= GSM | EXTENDED:
        length, alone, each = sum(1 + (c in EXTENDED) for c in body), 160, 153
    else:
        length, alone, each = len(body.encode("utf-16-le")) // 2, 70, 67
    return 1 if length <= alone else ceil(length / each)


@given(st.lists(st.sampled_from(["a", "€", "[", "é", "ё", "😀", "\n"]), min_size=1, max_size=5))
def test_text_messages_are_counted_in_parts(letters: list[str]) -> None:
    bodies = ["x" + "".join(letters) * times + "x" for times in (1, 13, 16, 31, 32, 60)]
    rebuilt = snapshots_of(*(said({"body": body}, action="sms_sent") for body in bodies))
    assert [s["segment_count"] for s in rebuilt] == [count_segments(body) for body in bodies]


texts = st.sampled_from(
    [
        None,
        "",
        "Hi Anna, more leads for Acme. Thoughts?",
        'He said "x,\\"subject\\":null" \u2028 😀\n\t',
        "Re: congrats",
        "we serve Retail and Steel; free audit",
        "Hi Will",
        3,
        ["a"],
    ]
)
metadata = st.one_of(
    st.sampled_from([None, "{", "[]", "null"]),
    st.fixed_dictionaries(
        {},
        optional={
            "body": texts,
            "message": texts,
            "subject": texts,
            "template_id": texts,
            "sequence_id": texts,
            "cta": texts,
            "word_count": st.integers(),
        },
    ).map(json.dumps),
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "client_id": st.sampled_from(["c", "d"]),
            "lead_id": st.sampled_from(["l1", "l2"]),
            "metadata": metadata,
            "occurred_at": st.integers(0, 3).map(lambda days: START + timedelta(days=days)),
        },
        optional={
            "action": st.sampled_from(["sms_sent", "voice_completed", "email_opened", "fax_sent"]),
            "channel": st.sampled_from(["fax", "email", " "]),
            "sequence_id": st.sampled_from(["s", " "]),
            "content_snapshot": st.sampled_from(["{}", '{"body": "there already"}']),
        },
    ),
    max_size=12,
)


@pytest.mark.slow
@given(rows)
def test_features_are_the_same_before_and_after(given_rows: list[dict[str, Any]]) -> None:
    before = frame_of(*given_rows)
    rebuilt = rebuild_snapshots(before, LEADS)
    after = before.join(
        rebuilt.rows, on=["client_id", "id"], how="left", suffix="_new"
    ).with_columns(content_snapshot=pl.coalesce("content_snapshot", "content_snapshot_new"))
    was, now = (build_features(None, LEADS, rows).touches for rows in (before, after))
    assert now.equals(was)
    # Every touch without a snapshot is either rebuilt or has a reason, and a second pass finds
    # nothing more; shuffled rows give the same.
    left = after.with_columns(has_snapshot=pl.col("content_snapshot").is_not_null())
    assert rebuild_snapshots(left, LEADS).rows.is_empty()
    assert rebuild_snapshots(left, LEADS).skipped.equals(rebuilt.skipped)
    key = {"left_on": ["client_id", "activity_id"], "right_on": ["client_id", "id"]}
    missing = was.join(before.filter(~pl.col("has_snapshot")), **key, how="semi")
    assert missing.height == rebuilt.rows.height + rebuilt.skipped.height
    assert rebuild_snapshots(before.reverse(), LEADS.reverse()).rows.equals(rebuilt.rows)
    for one in rebuilt.rows["content_snapshot"]:
        assert None not in json.loads(one).values()
