import json
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from conversion_assets.domain.errors import InputError
from conversion_assets.storage.canonical import POSITION, REASONS, to_canonical

BASE = {"id": "l", "client_id": "c", "created_at": "2024-03-01T00:00:00Z"}


def check(table="leads", schema=None, **values):
    """Reasons of one row, or the row."""
    base = BASE if table == "leads" else {}
    if table == "activities":
        base = {"id": "a", "client_id": "c", "lead_id": "l", "action": "email_sent"}
        base |= {"occurred_at": "2024-03-01T00:00:00Z"}
    if table == "clients":
        base = {"id": "c"}
    result = to_canonical(
        table, pl.DataFrame([base | values], schema_overrides=schema), where="here"
    )
    if result.refused.height:
        assert result.rows.height == 0
        return result.refused[REASONS][0].to_list()
    return result.rows.row(0, named=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-03-01T09:30:00Z", "2024-03-01T09:30:00+00:00"),
        ("2024-03-01 09:30:00.5+05:45", "2024-03-01T03:45:00.500000+00:00"),
        ("2024-03-01t09:30:00,123456789z", "2024-03-01T09:30:00.123456+00:00"),
        ("2024-03-01T09:30-0330", "2024-03-01T13:00:00+00:00"),
        (" 2024-02-29T23:59:59+14 ", "2024-02-29T09:59:59+00:00"),
        ("2024-03-01T09:30:00.5 Z", "2024-03-01T09:30:00.500000+00:00"),
    ],
)
def test_times(text, expected):
    assert check(created_at=text)["created_at"].isoformat() == expected


@pytest.mark.parametrize("value", ["2024-03-01T09:30:00", "2024-03-01 09:30", "2024-03-01"])
def test_naive_times_are_refused_wherever_they_stand(value):
    assert check(created_at=value) == ["naive timestamp"]
    assert check(scored_at=value) == ["naive timestamp"]


@pytest.mark.parametrize("value", [datetime(2024, 3, 1), date(2024, 3, 1)])  # noqa: DTZ001
def test_naive_typed_times_are_refused(value):
    assert check(created_at=value) == ["naive timestamp"]


def test_a_naive_typed_column_without_values_is_fine():
    assert check(scored_at=None, schema={"scored_at": pl.Datetime("us")})["scored_at"] is None


@pytest.mark.parametrize("unit", ["ns", "us", "ms"])
def test_typed_times_of_any_zone_and_unit(unit):
    at = datetime(2024, 3, 1, 9, 30, tzinfo=ZoneInfo("Asia/Kathmandu"))
    row = check(created_at=at, schema={"created_at": pl.Datetime(unit, "Asia/Kathmandu")})
    assert row["created_at"] == datetime(2024, 3, 1, 3, 45, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        "yesterday",
        "2024-02-30T00:00:00Z",
        "2024-03-01T24:00:00Z",
        "2024-03-01T23:59:60Z",
        "2024-03-01T00:00:00+24:00",
        "2024-03-01T00:00:00+01:60",
        "1709251200",
        1709251200,
        17.5,
    ],
)
def test_unparsable_times(value):
    assert check(created_at=value) == ["unparsable timestamp"]


@pytest.mark.parametrize(
    "value", ["1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00+10:00"]
)
def test_sentinels_are_out_of_range(value):
    assert check(created_at=value) == ["timestamp out of range"]


@pytest.mark.parametrize("value", [None, "", "  "])
def test_missing_values(value):
    assert check(id=value) == ["missing id"]
    assert check(client_id=value) == ["missing client_id"]
    assert check(created_at=value) == ["missing created_at"]
    assert check("activities", action=value) == ["missing action"]
    assert check("activities", lead_id=value) == ["missing lead_id"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, "7"),
        (7.0, "7"),
        (2**60, str(2**60)),
        (True, "true"),
        ("007", "007"),
        (" 7", " 7"),
        ("Å😀", "Å😀"),
    ],
)
def test_ids_become_text(value, expected):
    assert check(id=value)["id"] == expected


def test_id_length():
    assert check(id="é" * 200)["id"] == "é" * 200
    assert check(id="x" * 201) == ["id too long"]


def test_nul_character():
    assert check(title="a\0b") == ["nul character"]
    assert check(als_components='{"a":"\\u0000"}') == ["nul character"]
    assert check(als_components='{"a":"\\\\u0000"}')["als_components"] == '{"a":"\\\\u0000"}'


@pytest.mark.parametrize("value", ["true", "TRUE", "1", " yes", "Y", "t", 1, 1.0, True])
def test_true(value):
    assert check(is_hiring=value)["is_hiring"] is True


@pytest.mark.parametrize("value", ["false", "False", "0", "no", "n", "F", 0, 0.0, False])
def test_false(value):
    assert check(is_hiring=value)["is_hiring"] is False


@pytest.mark.parametrize("value", ["maybe", "2", 2, "truetrue", [True]])
def test_not_a_flag(value):
    assert check(is_hiring=value) == ["not true or false"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("12", 12),
        (" 12 ", 12),
        ("12.0", 12),
        ("1e2", 100),
        (12.0, 12),
        (12, 12),
        ("NaN", None),
        (float("nan"), None),
        ("", None),
    ],
)
def test_whole_numbers(value, expected):
    assert check(employee_count=value)["employee_count"] == expected


@pytest.mark.parametrize("value", ["1.5", "many", 1.5, "inf", float("inf"), "9" * 20, "1,000", [1]])
def test_not_a_whole_number(value):
    assert check(employee_count=value) == ["not a whole number"]


@pytest.mark.parametrize(
    ("reason", "values"),
    [
        ("negative employee count", {"employee_count": -1}),
        ("number out of range", {"employee_count": 2**31}),
        ("not a number", {"als_score": "high"}),
        ("not a number", {"als_score": float("inf")}),
        ("unknown status", {"status": "Converted"}),
        ("unknown time zone", {"timezone": "Mars/Base"}),
        ("unknown time zone", {"timezone": "+02:00"}),
        ("converted before created", {"converted_at": "2024-02-29T23:59:59Z"}),
        ("not a text", {"title": ["CEO"]}),
        ("invalid json", {"als_components": "{'a': 1}"}),
        ("invalid json", {"als_components": "[1]"}),
        ("invalid json", {"als_components": '"text"'}),
        ("invalid json", {"als_components": "7"}),
        ("invalid json", {"als_components": '{"a": NaN}'}),
        ("invalid json", {"als_components": [1, 2]}),
    ],
)
def test_reasons_of_a_lead(reason, values):
    assert check(**values) == [reason]


@pytest.mark.parametrize(
    ("reason", "table", "values"),
    [
        ("unknown time zone", "clients", {"timezone": "Mars/Base"}),
        ("unknown subscription status", "clients", {"subscription_status": "gone"}),
        ("negative sample count", "clients", {"conversion_sample_count": -1}),
        ("negative touch number", "activities", {"touch_number": -1}),
        ("invalid json", "activities", {"metadata": "{"}),
        ("naive timestamp", "activities", {"occurred_at": "2024-03-01T00:00:00"}),
    ],
)
def test_reasons_elsewhere(reason, table, values):
    assert check(table, **values) == [reason]


def test_a_row_has_all_its_reasons():
    assert check(created_at="soon", scored_at="2024-03-01", is_hiring="maybe") == [
        "naive timestamp",
        "not true or false",
        "unparsable timestamp",
    ]


def test_unknown_channels_and_actions_are_kept():
    row = check("activities", channel="pigeon", action="pigeon_released")
    assert (row["channel"], row["action"]) == ("pigeon", "pigeon_released")


def test_defaults():
    client = check("clients")
    assert (
        client["name"],
        client["subscription_status"],
        client["is_paused"],
        client["pool_opt_in"],
    ) == (
        "c",
        "active",
        False,
        False,
    )
    lead = check()
    assert (lead["status"], lead["updated_at"]) == ("new", lead["created_at"])
    lead = check(converted_at="2024-03-02T00:00:00Z")
    assert (lead["status"], lead["updated_at"]) == ("converted", lead["converted_at"])
    activity = check("activities")
    assert (activity["channel"], activity["created_at"]) == ("email", activity["occurred_at"])
    assert check("activities", action="email_opened")["channel"] is None


@pytest.mark.parametrize(
    "value",
    [
        '{"b": 1, "a": {"x": [1, null], "y": null}, "n": null}',
        {"b": 1, "a": {"x": [1, None], "y": None}, "n": None},
    ],
)
def test_text_and_struct_give_the_same_json(value):
    assert check(als_components=value)["als_components"] == '{"b":1,"a":{"x":[1,null]}}'


@pytest.mark.parametrize("value", ["null", "", None])
def test_no_json(value):
    assert check(als_components=value)["als_components"] is None


def test_struct_with_awkward_names_and_values():
    value = {
        'a "b"\\': 'c "d"\\\n\t',
        "e": 1.5,
        "f": True,
        "g": ["x"],
        "h": datetime(2024, 3, 1, tzinfo=UTC),
    }
    stored = json.loads(check(als_components=value)["als_components"])
    assert stored['a "b"\\'] == 'c "d"\\\n\t'
    assert (stored["e"], stored["f"], stored["g"]) == (1.5, True, ["x"])


def test_unknown_columns_are_reported():
    result = to_canonical(
        "leads", pl.DataFrame([BASE | {"shoe_size": 44, "__row": 1}]), where="here"
    )
    assert result.unknown == ("shoe_size",)
    assert result.provided == ("id", "client_id", "created_at")
    assert result.rows[POSITION].to_list() == [0]


def test_missing_columns_are_named():
    with pytest.raises(
        InputError, match="here: leads need column client_id, created_at; found: id"
    ):
        to_canonical("leads", pl.DataFrame({"id": ["a"]}), where="here")


def test_no_rows_and_no_columns():
    assert to_canonical("leads", pl.DataFrame(), where="here").rows.height == 0


def test_columns_of_nulls_of_no_type():
    row = check(
        title=None, scored_at=None, is_hiring=None, employee_count=None, als_components=None
    )
    assert row["title"] is row["scored_at"] is row["is_hiring"] is None


def test_categories():
    assert check(title="CEO", schema={"title": pl.Categorical})["title"] == "CEO"
