"""What holds for any value a file may hold."""

import json
from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversion_assets.domain.contracts import EARLIEST, LATEST
from conversion_assets.storage.canonical import REASONS, parse_instants, to_canonical
from conversion_assets.storage.database import create_database_engine
from conversion_assets.storage.files import read_rows
from conversion_assets.storage.importer import import_frames

offsets = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda m: timezone(timedelta(minutes=m)))
times = st.datetimes(
    datetime(1981, 1, 1),  # noqa: DTZ001 - Hypothesis wants naive bounds
    datetime(2099, 1, 1),  # noqa: DTZ001
    timezones=offsets,
)
# Lone surrogates are no characters, and no encoder would write them.
texts = st.text(st.characters(codec="utf-8"), max_size=20)
kept = texts.filter(lambda t: t.strip() and "\0" not in t)
documents = st.dictionaries(
    texts,
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | texts
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda children: (
            st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=4,
)


def without_nulls(value):
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def lead(**values):
    base = {"id": "1", "client_id": "c", "created_at": "2024-01-01T00:00:00Z"}
    return to_canonical("leads", pl.DataFrame([base | values]), where="here")


@given(
    times,
    st.sampled_from("Tt "),
    st.booleans(),
    st.sampled_from(["seconds", "microseconds", "minutes"]),
)
def test_any_zoned_time_is_read_as_the_same_instant(at, separator, zulu, precision):
    if zulu:
        at = at.astimezone(UTC)
    text = at.isoformat(sep=separator, timespec=precision)
    if zulu:
        text = text.removesuffix("+00:00") + "Z"
    expected = datetime.fromisoformat(text.replace("t", "T")).astimezone(UTC)
    assert pl.select(parse_instants(pl.lit(text))).item() == expected


@given(times)
def test_any_naive_time_is_refused(at):
    text = at.replace(tzinfo=None).isoformat()
    assert lead(created_at=text).refused[REASONS].to_list() == [["naive timestamp"]]


@given(texts)
def test_any_text_as_a_time_is_a_time_or_a_reason(text):
    result = lead(scored_at=text)
    if result.refused.height:
        (reason,) = result.refused[REASONS][0]
        assert reason in ("naive timestamp", "unparsable timestamp", "timestamp out of range")
    else:
        value = result.rows["scored_at"][0]
        assert value is None or EARLIEST <= value < LATEST


@given(kept)
def test_any_id_is_kept_as_it_is(text):
    assert lead(id=text).rows["id"].to_list() == [text]


@given(documents)
def test_any_document_keeps_its_meaning(document):
    text = json.dumps(document)
    result = lead(als_components=text)
    if "\\u0000" in text:
        return
    assert json.loads(result.rows["als_components"][0]) == without_nulls(document)


@given(texts)
def test_any_text_as_json_is_an_object_or_a_reason(text):
    result = lead(als_components=text)
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    if not is_object and result.refused.height == 0:
        assert result.rows["als_components"][0] is None
        assert text.strip() in ("", "null")


rows = st.lists(
    st.fixed_dictionaries({"id": kept, "title": st.none() | kept, "als_components": documents}),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row["id"],
)


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(rows)
def test_csv_and_jsonl_give_the_same_rows(tmp_path, given_rows):
    base = {"client_id": "c", "created_at": "2024-01-01T00:00:00Z"}
    full = [base | row for row in given_rows]
    as_text = [row | {"als_components": json.dumps(row["als_components"])} for row in full]
    pl.DataFrame(as_text, infer_schema_length=None).write_csv(tmp_path / "x.csv")
    pl.DataFrame(as_text, infer_schema_length=None).write_parquet(tmp_path / "x.parquet")
    lines = [json.dumps(row, ensure_ascii=False) for row in full]
    (tmp_path / "x.jsonl").write_bytes("\n".join(lines).encode())
    results = []
    for name in ("x.csv", "x.jsonl", "x.parquet"):
        frame = read_rows(tmp_path / name, json_columns=["als_components"])
        result = to_canonical("leads", frame, where=name)
        results.append((result.rows.to_dicts(), result.refused.to_dicts()))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_any_row_is_stored_and_then_the_same(request, tmp_path, kind):
    engine = create_database_engine(request.getfixturevalue(f"{kind}_url"))
    client = pl.DataFrame({"id": ["c"], "created_at": ["2024-01-01T00:00:00Z"]})
    import_frames(engine, clients=client, quarantine_dir=tmp_path)

    @settings(max_examples=40, deadline=None)
    @given(rows)
    def check(given_rows):
        leads = pl.DataFrame(
            [
                row
                | {
                    "als_components": json.dumps(row["als_components"]),
                    "client_id": "c",
                    "created_at": "2024-01-01T00:00:00Z",
                }
                for row in given_rows
            ],
            infer_schema_length=None,
        )
        first = import_frames(engine, leads=leads, quarantine_dir=tmp_path)
        again = import_frames(engine, leads=leads, quarantine_dir=tmp_path)
        assert first.leads.accepted == again.leads.accepted
        assert again.leads.written == 0

    check()
