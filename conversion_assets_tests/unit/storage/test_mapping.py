from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
import yaml

from conversion_assets.domain.errors import InputError
from conversion_assets.storage.mapping import ImportMapping, load_mapping, map_tables

LEADS = {
    "source": "people",
    "columns": {"id": "no", "client_id": {"constant": "c"}, "created_at": "seen"},
}


def mapping(**changes):
    document = {"version": 1, "sources": {"people": {"file": "people.csv"}}, "leads": LEADS}
    return document | changes


def save(folder, document):
    path = folder / "m.yaml"
    path.write_text(
        document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)
    )
    return path


def mapped(folder, people, document=None, **others):
    for name, text in {"people": people, **others}.items():
        (folder / f"{name}.csv").write_text(text)
    return map_tables(ImportMapping.model_validate(document or mapping()), folder)


def leads_with(**columns):
    return mapping(leads=LEADS | {"columns": LEADS["columns"] | columns})


PEOPLE = "no,seen,word\n1,2024-01-01T00:00:00Z,a\n2,2024-01-02T00:00:00Z,b\n3,,\n"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("word", ["a", "b", None]),
        ({"column": "word"}, ["a", "b", None]),
        ({"constant": 7}, ["7", "7", "7"]),
        ({"constant": True}, ["true"] * 3),
        ({"concat": ["no", "word"], "separator": "-"}, ["1-a", "2-b", None]),
        ({"first_of": ["word", "no"]}, ["a", "b", "3"]),
        ({"column": "word", "vocabulary": {"a": "A", "b": None}}, ["A", None, None]),
        (
            {
                "cases": [{"when": [{"column": "word", "in": ["a"]}], "then": "no"}],
                "otherwise": {"constant": "x"},
            },
            ["1", "x", "x"],
        ),
        (
            {"cases": [{"when": [{"column": "word", "is_null": True}], "then": "no"}]},
            [None, None, "3"],
        ),
        (
            {"object": {"w": "word", "n": "no"}},
            ['{"w":"a","n":"1"}', '{"w":"b","n":"2"}', '{"n":"3"}'],
        ),
    ],
)
def test_values(tmp_path, value, expected):
    frame = mapped(tmp_path, PEOPLE, leads_with(title=value))["leads"]
    assert frame["title"].to_list() == expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"equals": "a"}, ["1"]),
        ({"in": ["a", "b"]}, ["1", "2"]),
        ({"starts_with": "b"}, ["2"]),
        ({"is_null": False}, ["1", "2"]),
        ({"equals": "a", "negate": True}, ["2", "3"]),
        ({"is_null": True}, ["3"]),
    ],
)
def test_conditions(tmp_path, condition, expected):
    document = mapping(leads=LEADS | {"where": [{"column": "word", **condition}]})
    assert mapped(tmp_path, PEOPLE, document)["leads"]["id"].to_list() == expected


@pytest.mark.parametrize(
    ("text", "spec", "expected"),
    [
        ("2024-03-01T09:30:00+01:00", {}, datetime(2024, 3, 1, 8, 30, tzinfo=UTC)),
        (
            "01.03.2024 09:30",
            {"format": "%d.%m.%Y %H:%M", "zone": "Europe/Berlin"},
            datetime(2024, 3, 1, 8, 30, tzinfo=UTC),
        ),
        (
            "2024-03-01 09:30:00.5",
            {"zone": "Asia/Kathmandu"},
            datetime(2024, 3, 1, 3, 45, 0, 500000, tzinfo=UTC),
        ),
        (
            "2024-03-01T09:30:00Z",
            {"zone": "Asia/Kathmandu"},
            datetime(2024, 3, 1, 9, 30, tzinfo=UTC),
        ),
        (
            "2024-03-01",
            {"format": "%Y-%m-%d", "zone": "Asia/Kathmandu"},
            datetime(2024, 2, 29, 18, 15, tzinfo=UTC),
        ),
        # Clocks went forward at midnight: the day began at 01:00.
        (
            "2017-10-15",
            {"format": "%Y-%m-%d", "zone": "America/Sao_Paulo"},
            datetime(2017, 10, 15, 3, tzinfo=UTC),
        ),
        # Clocks went back at midnight in Havana: the day began at the first of two.
        (
            "2023-11-05",
            {"format": "%Y-%m-%d", "zone": "America/Havana"},
            datetime(2023, 11, 5, 4, tzinfo=UTC),
        ),
        (
            "2023-10-29 02:30",
            {"format": "%Y-%m-%d %H:%M", "zone": "Europe/Berlin", "ambiguous": "latest"},
            datetime(2023, 10, 29, 1, 30, tzinfo=UTC),
        ),
        (
            "01/Mar/2024 09:30 -0500",
            {"format": "%d/%b/%Y %H:%M %z"},
            datetime(2024, 3, 1, 14, 30, tzinfo=UTC),
        ),
    ],
)
def test_times(tmp_path, text, spec, expected):
    document = leads_with(scored_at={"column": "word", "time": spec})
    frame = mapped(tmp_path, f"no,seen,word\n1,x,{text}\n", document)["leads"]
    assert datetime.fromisoformat(frame["scored_at"][0]) == expected


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("2024-03-01 09:30:00", {}),
        ("2023-10-29 02:30", {"format": "%Y-%m-%d %H:%M", "zone": "Europe/Berlin"}),
        ("2024-03-31 02:30", {"format": "%Y-%m-%d %H:%M", "zone": "Europe/Berlin"}),
        ("soon", {"format": "%Y-%m-%d", "zone": "Europe/Berlin"}),
    ],
)
def test_what_is_no_such_time_stays_for_the_check_to_refuse(tmp_path, text, spec):
    document = leads_with(scored_at={"column": "word", "time": spec})
    frame = mapped(tmp_path, f"no,seen,word\n1,x,{text}\n", document)["leads"]
    assert frame["scored_at"][0] == text


DEALS = "no,won\n2,yes\n"


def joined(how):
    return mapping(
        sources={"people": {"file": "people.csv"}, "deals": {"file": "deals.csv"}},
        leads=LEADS | {"joins": [{"source": "deals", "match": {"no": "no"}, "how": how}]},
    )


@pytest.mark.parametrize(
    ("how", "ids"), [("left", ["1", "2", "3"]), ("inner", ["2"]), ("anti", ["1", "3"])]
)
def test_joins(tmp_path, how, ids):
    assert mapped(tmp_path, PEOPLE, joined(how), deals=DEALS)["leads"]["id"].to_list() == ids


def test_joined_columns_have_the_name_of_their_source(tmp_path):
    document = joined("left")
    document["leads"]["columns"] = LEADS["columns"] | {"title": "deals.won"}
    assert mapped(tmp_path, PEOPLE, document, deals=DEALS)["leads"]["title"].to_list() == [
        None,
        "yes",
        None,
    ]


def test_a_join_never_multiplies_rows(tmp_path):
    with pytest.raises(
        InputError, match=r"leads\.0\.joins\.0: deals has 2 rows that share a key, for example 2"
    ):
        mapped(tmp_path, PEOPLE, joined("left"), deals="no,won\n2,yes\n2,no\n")


def test_first_of_each_group_is_the_earliest_instant_not_text(tmp_path):
    events = (
        "no,at,what\n"
        "1,2024-01-01T10:00:00+05:00,early\n"
        "1,2024-01-01T06:00:00+00:00,late\n"
        "1,,never\n"
    )
    for last, expected in ((False, "early"), (True, "late")):
        document = mapping(
            sources={
                "people": {"file": "people.csv"},
                "events": {"file": "events.csv"},
                "one": {"of": "events", "first": {"by": "no", "order": "at", "last": last}},
            },
            leads=LEADS
            | {
                "joins": [{"source": "one", "match": {"no": "no"}}],
                "columns": LEADS["columns"] | {"title": "one.what"},
            },
        )
        frame = mapped(tmp_path, PEOPLE, document, events=events)["leads"]
        assert frame["title"].to_list() == [expected, None, None]


def test_rows_know_where_they_came_from(tmp_path):
    document = mapping(leads=LEADS | {"where": [{"column": "word", "equals": "b"}]})
    frame = mapped(tmp_path, PEOPLE, document)["leads"]
    assert frame.select("__source", "__row").rows() == [("people.csv", 2)]


def test_parts_are_put_one_below_the_other(tmp_path):
    second = LEADS | {
        "columns": LEADS["columns"] | {"id": {"concat": [{"constant": "x"}, "no"]}, "title": "word"}
    }
    frame = mapped(tmp_path, PEOPLE, mapping(leads=[LEADS, second]))["leads"]
    assert frame["id"].to_list() == ["1", "2", "3", "x1", "x2", "x3"]
    assert frame["title"].to_list() == [None, None, None, "a", "b", None]


def test_clients_are_written_out(tmp_path):
    frame = mapped(tmp_path, PEOPLE, mapping(clients=[{"id": 7}, {"id": "b", "is_paused": True}]))[
        "clients"
    ]
    assert frame.select("id", "is_paused").rows() == [("7", None), ("b", "true")]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("", "top level"),
        ("- 1", "top level"),
        ("a: [", "line 1: not valid YAML"),
        (mapping(version=2), "version: "),
        (mapping(shoe=1), "shoe: Extra inputs"),
        (mapping(sources={}), "sources: "),
        (mapping(sources={"people": {}}), "sources.people: want exactly one of file and of"),
        (mapping(sources={"people": {"file": "../people.csv"}}), "inside the input folder"),
        (mapping(sources={"people": {"file": "/etc/people.csv"}}), "inside the input folder"),
        (
            mapping(sources={"people": {"of": "later"}, "later": {"file": "x.csv"}}),
            "sources.people.of: no source 'later'",
        ),
        (
            mapping(leads=LEADS | {"source": "nobody"}),
            "leads.0: no source 'nobody'; there are people",
        ),
        (mapping(leads=LEADS | {"columns": {"id": "no"}}), "leads.0.columns: leads need client_id"),
        (leads_with(shoe="no"), "leads.0.columns.shoe: leads have no such column"),
        (
            leads_with(title={"constant": 1, "column": "no"}),
            "leads.0.columns.title: want exactly one of",
        ),
        (leads_with(title={"eval": "1 + 1"}), "leads.0.columns.title.eval: "),
        (
            leads_with(title={"column": "no", "time": {"format": "%Y"}}),
            "leads.0.columns.title.time: a format without %z",
        ),
        (
            leads_with(title={"column": "no", "time": {"zone": "Mars/Base"}}),
            "time.zone: unknown time zone 'Mars/Base'",
        ),
        (
            mapping(leads=LEADS | {"where": [{"column": "no"}]}),
            "leads.0.where.0: want one of equals",
        ),
        (mapping(clients=[{"name": "x"}]), "clients.0: clients need id"),
    ],
)
def test_a_wrong_mapping_is_one_line_with_its_place(tmp_path, document, words):
    with pytest.raises(InputError) as error:
        load_mapping(save(tmp_path, document))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "m.yaml" in str(error.value)


def test_a_mapping_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        load_mapping(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            leads_with(title="shoe"),
            "leads.0.columns.title: no column 'shoe'; there are no, seen, word",
        ),
        (
            mapping(leads=LEADS | {"where": [{"column": "shoe", "equals": "x"}]}),
            "leads.0.where: no column 'shoe'",
        ),
        (mapping(sources={"people": {"file": "none.csv"}}), "no such file"),
    ],
)
def test_a_mapping_that_does_not_fit_its_files(tmp_path, document, words):
    with pytest.raises(InputError, match=words):
        mapped(tmp_path, PEOPLE, document)


def test_a_missing_input_folder():
    with pytest.raises(InputError, match="no such folder"):
        map_tables(ImportMapping.model_validate(mapping()), Path("nowhere"))


def test_typed_columns_of_a_parquet_source(tmp_path):
    pl.DataFrame(
        {"no": [1], "seen": [datetime(2024, 7, 1, 12)], "day": [datetime(2024, 7, 1, tzinfo=UTC)]}  # noqa: DTZ001
    ).with_columns(pl.col("day").dt.date()).write_parquet(tmp_path / "p.parquet")
    time = {"zone": "Europe/Berlin"}
    document = mapping(sources={"people": {"file": "p.parquet"}})
    document["leads"] = LEADS | {
        "columns": LEADS["columns"]
        | {
            "created_at": {"column": "seen", "time": time},
            "scored_at": {"column": "day", "time": time},
        }
    }
    frame = map_tables(ImportMapping.model_validate(document), tmp_path)["leads"]
    assert datetime.fromisoformat(frame["created_at"][0]) == datetime(2024, 7, 1, 10, tzinfo=UTC)
    assert datetime.fromisoformat(frame["scored_at"][0]) == datetime(2024, 6, 30, 22, tzinfo=UTC)
