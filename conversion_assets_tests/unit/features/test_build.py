"""Touches, local time and the frames' contract."""

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from conversion_assets.domain.errors import InputError
from conversion_assets.features import build_features
from conversion_assets.features.frames import UTC
from conversion_assets_tests.unit.features.reference import utc

CREATED = utc(2024, 1, 1)
LEADS = pl.DataFrame({"id": ["l"], "client_id": ["c"], "created_at": [CREATED]})


def sent(*moments: object, **columns: object) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": [f"a{number}" for number in range(len(moments))],
            "client_id": "c",
            "lead_id": "l",
            "action": "email_sent",
            "occurred_at": list(moments),
            **columns,
        }
    )


@pytest.mark.parametrize(
    ("zone", "moment", "weekday", "hour"),
    [
        ("Europe/Berlin", utc(2024, 3, 31, 0, 59), 7, 1),
        ("Europe/Berlin", utc(2024, 3, 31, 1, 0), 7, 3),
        ("Europe/Berlin", utc(2024, 10, 27, 0, 59), 7, 2),
        ("Europe/Berlin", utc(2024, 10, 27, 1, 0), 7, 2),
        ("America/New_York", utc(2024, 3, 10, 6, 59), 7, 1),
        ("America/New_York", utc(2024, 3, 10, 7, 0), 7, 3),
        ("Asia/Kolkata", utc(2024, 1, 1, 18, 29), 1, 23),
        ("Asia/Kolkata", utc(2024, 1, 1, 18, 30), 2, 0),
        ("Asia/Kathmandu", utc(2024, 1, 1, 18, 14), 1, 23),
        ("Asia/Kathmandu", utc(2024, 1, 1, 18, 15), 2, 0),
        ("Australia/Lord_Howe", utc(2024, 4, 6, 15, 0), 7, 1),
    ],
)
def test_local_time(zone: str, moment: object, weekday: int, hour: int) -> None:
    leads = LEADS.with_columns(timezone=pl.lit(zone))
    touch = build_features(None, leads, sent(moment)).touches.row(0, named=True)
    assert (touch["local_weekday"], touch["local_hour"]) == (weekday, hour)


@pytest.mark.parametrize(
    ("own", "clients", "hour"),
    [
        ("Asia/Tokyo", "UTC", 9),
        (None, "Asia/Tokyo", 9),
        ("", "Asia/Tokyo", 9),
        ("+09:00", "Asia/Tokyo", 9),
        ("Mars/Olympus", None, None),
    ],
)
def test_the_clients_zone_stands_in(own: str | None, clients: str | None, hour: int | None) -> None:
    leads = LEADS.with_columns(timezone=pl.lit(own, dtype=pl.String))
    rows = pl.DataFrame(
        {"id": ["c"], "timezone": [clients]}, schema_overrides={"timezone": pl.String}
    )
    features = build_features(rows, leads, sent(utc(2024, 1, 2)))
    assert features.touches["local_hour"].to_list() == [hour]
    notes = features.notes["reason"].to_list()
    assert notes == ([] if hour is not None else ["touch without zone"])


def test_order_gaps_and_conversion() -> None:
    day = timedelta(days=1)
    times = [CREATED + 2 * day, CREATED + day, CREATED + day, CREATED + 5 * day]
    leads = LEADS.with_columns(status=pl.lit("converted"), converted_at=pl.lit(CREATED + 3 * day))
    activities = sent(*times, action=["email_sent", "sms_sent", "email_sent", "mail_sent"])
    found = build_features(None, leads, activities).touches
    assert found["activity_id"].to_list() == ["a1", "a2", "a0", "a3"]
    assert found["touch_number"].to_list() == [1, 2, 3, 4]
    assert found["gap_days"].to_list() == [None, 0.0, 1.0, 3.0]
    assert found["previous_channel"].to_list() == [None, "sms", "email", "email"]
    assert found["channel_count"].to_list() == [1, 2, 2, 3]
    assert found["adds_channel"].to_list() == [True, True, False, True]
    assert found["is_converting"].to_list() == [False, False, True, False]
    assert found["is_after_conversion"].to_list() == [False, False, False, True]


def test_the_earlier_of_booking_and_status_converts() -> None:
    leads = LEADS.with_columns(status=pl.lit("converted"), converted_at=pl.lit(utc(2024, 2, 1)))
    activities = sent(utc(2024, 1, 5), utc(2024, 1, 6), action=["email_sent", "meeting_booked"])
    features = build_features(None, leads, activities)
    assert features.leads["converted_at"].to_list() == [utc(2024, 1, 6)]
    assert features.touches["is_converting"].to_list() == [True]


def test_a_contradicted_booking_flag_is_reported_only() -> None:
    activities = sent(utc(2024, 1, 5), led_to_booking=[True])
    features = build_features(None, LEADS, activities)
    assert features.touches["is_converting"].to_list() == [False]
    assert features.touches["booking_mismatch"].to_list() == [True]
    assert "led_to_booking contradicts the touch times" in features.notes["reason"].to_list()


def test_what_is_left_out_is_noted() -> None:
    clients = pl.DataFrame({"id": ["c", "gone"], "deleted_at": [None, CREATED]})
    leads = pl.DataFrame(
        {"id": ["l", "l", "m"], "client_id": ["c", "c", "gone"], "created_at": [CREATED] * 3}
    )
    activities = sent(CREATED, CREATED, None, CREATED).with_columns(
        id=pl.Series(["a", "a", "b", "d"]), lead_id=pl.Series(["l", "l", "l", "unknown"])
    )
    notes = build_features(clients, leads, activities).notes
    assert dict(notes.select("reason", "rows").iter_rows()) == {
        "activity of an unknown or deleted lead": 1,
        "activity without time": 1,
        "lead of an unknown or deleted client": 1,
        "repeated activity id": 1,
        "repeated lead id": 1,
        "touch without zone": 1,
    }


def test_an_unseen_channel_is_a_channel() -> None:
    activities = sent(
        *[CREATED] * 4,
        action=["whatsapp_sent", "email_sent", "form_sent", "whatsapp_opened"],
        channel=["WhatsApp", "carrier pigeon", "email", "whatsapp"],
    )
    found = build_features(None, LEADS, activities).touches
    assert found["channel"].to_list() == ["whatsapp", "carrier pigeon"]


def test_the_columns_are_those_of_the_architecture_document_also_when_empty() -> None:
    empty = build_features(None, pl.DataFrame(), pl.DataFrame())
    full = build_features(pl.DataFrame({"id": ["c"]}), LEADS, sent(CREATED))
    assert empty.leads.schema == full.leads.schema
    assert empty.touches.schema == full.touches.schema
    assert empty.notes.schema == full.notes.schema
    assert (full.leads.height, full.touches.height) == (1, 1)
    document = (Path(__file__).parents[3] / "docs" / "architecture.md").read_text()
    for table, frame in (("lead_features", full.leads), ("touch_features", full.touches)):
        section = document.split(f"### `{table}`")[1].split("###")[0]
        rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")][2:]
        named = [name.strip() for row in rows for name in row.split(",")]
        plain = [name for name in frame.columns if "__" not in name]
        assert [name for name in named if "__" not in name] == plain


def test_columns_of_nulls_and_other_types_are_taken() -> None:
    leads = LEADS.with_columns(
        pl.lit(None).alias(name)
        for name in ("title", "timezone", "employee_count", "is_hiring", "als_components", "status")
    ).with_columns(
        created_at=pl.lit("2024-01-01T01:00:00+01:00"), id=pl.lit(7), client_id=pl.lit("c")
    )
    activities = sent(CREATED).with_columns(
        lead_id=pl.lit(7),
        occurred_at=pl.col("occurred_at")
        .dt.convert_time_zone("Asia/Tokyo")
        .dt.cast_time_unit("ms"),
        content_snapshot=pl.struct(body=pl.lit("leads")),
    )
    features = build_features(None, leads, activities)
    assert features.leads["created_at"].to_list() == [CREATED]
    assert features.touches["occurred_at"].to_list() == [CREATED]
    assert features.touches["occurred_at"].dtype == UTC
    assert features.touches["pain__leads"].to_list() == [True]


@pytest.mark.parametrize(
    "value", [CREATED.replace(tzinfo=None), "2024-01-01T00:00:00", "yesterday", 5]
)
def test_a_time_without_zone_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="activities") as caught:
        build_features(None, LEADS, sent(value))
    assert "\n" not in str(caught.value)
