"""Import into real databases of both kinds."""

import gzip
import hashlib
import json
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from sqlalchemy import select

from benchmarks import import_speed
from conversion_assets.domain.contracts import CONTRACTS
from conversion_assets.domain.errors import InputError
from conversion_assets.storage import tables
from conversion_assets.storage.database import create_database_engine, migrate
from conversion_assets.storage.importer import ImportReport, import_files, import_frames

T = "2024-03-01T00:00:00Z"
CLIENTS = [{"id": "a", "timezone": "Asia/Kathmandu", "created_at": T}, {"id": "b", "created_at": T}]


def lead(number, client="a", **values):
    return {"id": str(number), "client_id": client, "created_at": T, "title": None} | values


def activity(number, client="a", of=1, **values):
    base = {"id": str(number), "client_id": client, "lead_id": str(of), "action": "email_sent"}
    return base | {"occurred_at": T, "content_snapshot": None} | values


def load(engine, folder, clients=None, leads=None, activities=None, **options) -> ImportReport:
    frames = {"clients": clients, "leads": leads, "activities": activities}
    given = {t: pl.DataFrame(rows, infer_schema_length=None) for t, rows in frames.items() if rows}
    return import_frames(engine, **given, quarantine_dir=folder / "quarantine", **options)


def stored(engine, *, with_changes=True):
    """All rows of the three tables."""
    result = {}
    with engine.connect() as connection:
        for name in CONTRACTS:
            table = tables.metadata.tables[name]
            columns = [c for c in table.c if with_changes or c.name != "change_id"]
            rows = connection.execute(select(*columns).order_by(*table.primary_key))
            result[name] = list(rows)
    return result


def digest(engine):
    return hashlib.sha256(repr(stored(engine)).encode()).hexdigest()


def quarantined(report, table):
    text = (Path(report.quarantine) / f"{table}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_report_is_the_json_of_the_interface(engine, tmp_path):
    report = load(
        engine,
        tmp_path,
        clients=CLIENTS,
        leads=[
            lead(1, shoe_size=44),
            lead(2, created_at="2024-03-01"),
            lead(3, created_at="2024-03-01"),
        ],
    )
    document = json.loads(report.model_dump_json())
    assert document["clients"] == {"accepted": 2, "rejected": 0, "written": 2}
    assert document["leads"] == {"accepted": 1, "rejected": 2, "written": 1}
    assert document["activities"] == {"accepted": 0, "rejected": 0, "written": 0}
    assert document["reasons"] == {"leads": {"naive timestamp": 2}}
    assert document["unknown_columns"] == {"leads": ["shoe_size"]}
    assert Path(document["quarantine"]).is_dir()
    assert report.rejected == 2


def test_quarantine_holds_the_row_as_it_came(engine, tmp_path):
    path = tmp_path / "leads.csv"
    path.write_text("id,client_id,created_at,shoe\n007,a,2024-03-01T00:00:00Z,1\n008,a,soon,2\n")
    load(engine, tmp_path, clients=CLIENTS)
    report = import_files(engine, leads=path, quarantine_dir=tmp_path / "q")
    assert quarantined(report, "leads") == [
        {
            "source": "leads.csv",
            "row": 2,
            "reasons": ["unparsable timestamp"],
            "record": {"id": "008", "client_id": "a", "created_at": "soon", "shoe": "2"},
        }
    ]
    assert stored(engine)["leads"][0][0] == "007"
    again = import_files(engine, leads=path, quarantine_dir=tmp_path / "q")
    assert again.quarantine == report.quarantine
    assert len(list((tmp_path / "q").iterdir())) == 1
    assert Path(report.quarantine).stat().st_mode & 0o077 == 0


def test_references(engine, tmp_path):
    load(engine, tmp_path, clients=CLIENTS, leads=[lead(1), lead(9, client="b")])
    report = load(
        engine,
        tmp_path,
        leads=[lead(2), lead(3, client="nobody"), lead(4, created_at="soon")],
        activities=[
            activity(1, of=1),
            activity(2, of=2),
            activity(3, of=3),
            activity(4, of=4),
            activity(5, of=9),
            activity(6, client="nobody", of=1),
            activity(7, client="b", of=2),
        ],
    )
    assert report.reasons["leads"] == {"unknown client": 1, "unparsable timestamp": 1}
    assert report.reasons["activities"] == {
        "lead belongs to another client": 2,
        "unknown client": 1,
        "unknown lead": 2,
    }
    assert [row[0] for row in stored(engine)["activities"]] == ["1", "2"]


def test_another_clients_rows_cannot_be_touched(engine, tmp_path):
    load(engine, tmp_path, clients=CLIENTS, leads=[lead(1, title="CEO")], activities=[activity(1)])
    before = stored(engine)
    load(engine, tmp_path, leads=[lead(1, client="b", title="taken over")])
    report = load(engine, tmp_path, activities=[activity(1, client="b", of=1, action="x")])
    after = stored(engine)
    assert [row for row in after["leads"] if row[1] == "a"] == before["leads"]
    assert [row for row in after["activities"] if row[1] == "a"] == before["activities"]
    assert report.activities.accepted == 1


def test_rows_that_share_an_id(engine, tmp_path):
    report = load(
        engine,
        tmp_path,
        clients=CLIENTS,
        leads=[
            lead(1),
            lead(1),
            lead(2, title="x"),
            lead(2, title="y"),
            lead(2, title="x"),
            lead(1, client="b"),
        ],
    )
    assert (report.leads.accepted, report.leads.rejected, report.leads.written) == (3, 3, 2)
    assert report.reasons == {"leads": {"duplicate id": 3}}
    assert report.notes == {"leads": {"equal rows with one id": 1}}
    assert [row[:2] for row in stored(engine)["leads"]] == [("1", "a"), ("1", "b")]


def test_the_same_import_twice_changes_nothing(engine, tmp_path):
    rows = {
        "clients": CLIENTS,
        "leads": [
            lead(1, title="CEO", als_components='{"a": 1, "b": 2.50}'),
            lead(2, als_score=1.5),
        ],
        "activities": [activity(1, content_snapshot='{"subject": "Å😀 \\"q\\""}'), activity(2)],
    }
    load(engine, tmp_path, **rows)
    before = digest(engine)
    report = load(engine, tmp_path, **rows)
    assert digest(engine) == before
    assert report.leads.model_dump() == {"accepted": 2, "rejected": 0, "written": 0}


def test_a_client_without_created_at_keeps_its_first(engine, tmp_path):
    load(engine, tmp_path, clients=[{"id": "a"}], now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    before = digest(engine)
    load(engine, tmp_path, clients=[{"id": "a"}], now=lambda: datetime(2026, 1, 2, tzinfo=UTC))
    assert digest(engine) == before
    assert stored(engine)["clients"][0].created_at == datetime(2026, 1, 1, tzinfo=UTC)


def test_only_changed_rows_get_a_new_change_id(engine, tmp_path):
    load(engine, tmp_path, clients=CLIENTS, leads=[lead(1), lead(2)])
    before = {row[0]: row[-1] for row in stored(engine)["leads"]}
    report = load(engine, tmp_path, leads=[lead(1), lead(2, title="CEO"), lead(3)])
    after = {row[0]: row[-1] for row in stored(engine)["leads"]}
    assert report.leads.written == 2
    assert after["1"] == before["1"]
    assert after["2"] == after["3"] > before["2"]


def test_missing_columns_leave_stored_values(engine, tmp_path):
    full = lead(
        1, title="CEO", als_score=70.0, status="in_sequence", updated_at="2024-03-05T00:00:00Z"
    )
    load(engine, tmp_path, clients=CLIENTS, leads=[full])
    before = digest(engine)
    load(engine, tmp_path, leads=[{"id": "1", "client_id": "a", "created_at": T}])
    assert digest(engine) == before
    load(engine, tmp_path, leads=[{"id": "1", "client_id": "a", "created_at": T, "title": None}])
    row = stored(engine)["leads"][0]
    assert (row.title, row.status, row.als_score) == (None, "in_sequence", 70.0)


def test_a_conversion_tells_the_status(engine, tmp_path):
    load(engine, tmp_path, clients=CLIENTS, leads=[lead(1), lead(2, status="dead")])
    news = [
        {"id": "1", "client_id": "a", "created_at": T, "converted_at": "2024-04-01T00:00:00Z"},
        {"id": "2", "client_id": "a", "created_at": T, "converted_at": None},
    ]
    load(engine, tmp_path, leads=news)
    assert [row.status for row in stored(engine)["leads"]] == ["converted", "dead"]
    assert stored(engine)["leads"][0].converted_at == datetime(2024, 4, 1, tzinfo=UTC)


def test_learned_weights_are_not_undone(engine, tmp_path):
    load(engine, tmp_path, clients=[{"id": "a", "created_at": T, "conversion_sample_count": 5}])
    load(engine, tmp_path, clients=[{"id": "a", "created_at": T, "conversion_sample_count": None}])
    load(engine, tmp_path, clients=[{"id": "a", "created_at": T, "conversion_sample_count": 3}])
    assert stored(engine)["clients"][0].conversion_sample_count == 5


def test_contradictions_are_noted(engine, tmp_path):
    report = load(
        engine,
        tmp_path,
        clients=CLIENTS,
        leads=[lead(1, status="converted"), lead(2, status="new", converted_at=T)],
    )
    assert report.rejected == 0
    assert report.notes["leads"] == {
        "converted without converted_at": 1,
        "converted_at without status converted": 1,
    }


AT = datetime(2024, 3, 1, 9, 30, 0, 123456, tzinfo=UTC)
RICH = {
    "clients": pl.DataFrame(
        {
            "id": ["007", "Å😀"],
            "timezone": ["Asia/Kathmandu", None],
            "is_paused": [True, None],
            "created_at": [AT, AT],
        }
    ),
    "leads": pl.DataFrame(
        {
            "id": ["1", "02", 'q"\\'],
            "client_id": ["007", "007", "Å😀"],
            "title": ['VP, "Sales"\n& more', None, " x "],
            "employee_count": [12, None, 0],
            "is_hiring": [True, False, None],
            "als_score": [0.1, None, 1e-7],
            "als_components": [
                {"authority": 25.0, "timing": 1},
                None,
                {"authority": 0.5, "timing": None},
            ],
            "created_at": [AT, AT, AT],
            "converted_at": [None, AT, None],
        }
    ),
    "activities": pl.DataFrame(
        {
            "id": ["1", "2"],
            "client_id": ["007", "Å😀"],
            "lead_id": ["02", 'q"\\'],
            "action": ["email_sent", "pigeon"],
            "content_snapshot": [
                {"subject": 'a "b" \\ é\t', "n": {"x": [1, 2]}},
                {"subject": None, "n": None},
            ],
            "occurred_at": [AT, AT],
        }
    ),
}


def as_text(frame):
    """Structs and times as a CSV export would write them."""
    columns = []
    for name, dtype in frame.schema.items():
        if isinstance(dtype, pl.Struct):
            texts = [None if v is None else json.dumps(v) for v in frame[name].to_list()]
            columns.append(pl.Series(name, texts, dtype=pl.String))
        elif isinstance(dtype, pl.Datetime):
            columns.append(
                frame[name]
                .dt.convert_time_zone("Asia/Kathmandu")
                .dt.to_string("%Y-%m-%d %H:%M:%S%.6f%:z")
            )
        else:
            columns.append(frame[name])
    return pl.DataFrame(columns)


def write_files(folder, kind):
    folder.mkdir()
    paths = {}
    for table, frame in RICH.items():
        paths[table] = folder / f"{table}.{kind}"
        if kind == "parquet":
            frame.write_parquet(paths[table])
        elif kind.startswith("csv"):
            text = as_text(frame).write_csv().encode()
            paths[table].write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
        else:
            lines = [json.dumps(row, default=str) for row in frame.to_dicts()]
            text = "\n".join(lines).encode()
            paths[table].write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
    return paths


def test_every_format_gives_the_same_rows(engine, tmp_path):
    expected = None
    for kind in ("parquet", "csv", "jsonl", "csv.gz", "jsonl.gz"):
        paths = write_files(tmp_path / kind, kind)
        report = import_files(engine, **paths, quarantine_dir=tmp_path / "q")
        assert report.rejected == 0, report.reasons
        if expected is None:
            expected = stored(engine)
            assert report.leads.written == 3
        else:
            assert report.leads.written == report.clients.written == report.activities.written == 0
            assert stored(engine) == expected


def test_two_halves_are_the_whole(engine, tmp_path, sqlite_url):
    leads = [lead(i, title=f"t{i}") for i in range(20)]
    activities = [activity(i, of=i % 20) for i in range(100)]
    load(engine, tmp_path, clients=CLIENTS, leads=leads, activities=activities)
    whole = stored(engine, with_changes=False)
    # Twice over the same database would prove nothing: the halves go into another one.
    other = create_database_engine(sqlite_url.replace("conversion.db", "other.db"))
    migrate(other)
    load(other, tmp_path, clients=CLIENTS[::-1], leads=leads[::2], activities=activities[::20])
    load(other, tmp_path, leads=leads[1::2], activities=activities[::-1])
    assert stored(other, with_changes=False) == whole


@pytest.mark.parametrize(
    "content",
    [b"", b"id,client_id\n1,a\n", b"id,client_id,created_at\n1,a\n2,a,x,y\n", b"\xff\xfe\x00"],
)
def test_a_wrong_file_changes_nothing(engine, tmp_path, content):
    load(engine, tmp_path, clients=CLIENTS, leads=[lead(1)], activities=[activity(1)])
    before = digest(engine)
    good = tmp_path / "clients.csv"
    good.write_text("id\nnew\n")
    wrong = tmp_path / "leads.csv"
    wrong.write_bytes(content)
    with pytest.raises(InputError, match=r"leads\.csv"):
        import_files(engine, clients=good, leads=wrong, quarantine_dir=tmp_path / "q")
    assert digest(engine) == before
    assert not (tmp_path / "q").exists()


def test_a_file_of_wrong_rows_only(engine, tmp_path):
    load(engine, tmp_path, clients=CLIENTS)
    before = digest(engine)
    report = load(engine, tmp_path, leads=[lead(1, created_at="soon")])
    assert (report.leads.accepted, report.leads.rejected) == (0, 1)
    assert digest(engine) == before


def test_a_dry_run_writes_nothing(engine, tmp_path):
    before = digest(engine)
    report = load(
        engine, tmp_path, clients=CLIENTS, leads=[lead(1), lead(2, created_at="soon")], dry_run=True
    )
    assert report.dry_run
    assert (report.leads.accepted, report.leads.rejected, report.quarantine) == (1, 1, None)
    assert digest(engine) == before
    assert not (tmp_path / "quarantine").exists()


def test_header_only_and_no_files(engine, tmp_path):
    path = tmp_path / "leads.csv"
    path.write_text("id,client_id,created_at\n")
    report = import_files(engine, leads=path, quarantine_dir=tmp_path / "q")
    assert report.leads.accepted == report.rejected == 0
    with pytest.raises(InputError, match="nothing to import"):
        import_files(engine, quarantine_dir=tmp_path / "q")


def test_a_quarantine_that_cannot_be_written_stops_the_import(engine, tmp_path):
    load(engine, tmp_path, clients=CLIENTS)
    before = digest(engine)
    (tmp_path / "file").write_text("")
    rows = pl.DataFrame([lead(1), lead(2, created_at="soon")])
    with pytest.raises(InputError, match="quarantine folder"):
        import_frames(engine, leads=rows, quarantine_dir=tmp_path / "file")
    assert digest(engine) == before


def test_a_database_without_tables_is_named(empty_database_url, tmp_path):
    engine = create_database_engine(empty_database_url)
    with pytest.raises(InputError, match="migrate"):
        load(engine, tmp_path, clients=CLIENTS)


def test_progress_ends_at_all_rows(engine, tmp_path):
    seen = []
    load(
        engine, tmp_path, clients=CLIENTS, leads=[lead(1)], progress=lambda *step: seen.append(step)
    )
    assert seen == [("clients", 2, 2), ("leads", 1, 1)]


def test_indexes_and_triggers_stand_again_after_the_first_fill(sqlite_url, tmp_path):
    engine = create_database_engine(sqlite_url)

    def schema():
        with engine.connect() as connection:
            rows = connection.exec_driver_sql("SELECT type, name, tbl_name, sql FROM sqlite_master")
            return sorted(tuple(map(str, row)) for row in rows)

    before = schema()
    load(engine, tmp_path, clients=CLIENTS, leads=[lead(1)], activities=[activity(1)])
    assert schema() == before


def test_foreign_keys_are_checked_again_after_an_import(sqlite_url, tmp_path):
    engine = create_database_engine(sqlite_url)
    load(engine, tmp_path, clients=CLIENTS)
    with pytest.raises(InputError):
        import_frames(engine, leads=pl.DataFrame({"id": ["1"]}), quarantine_dir=tmp_path)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        assert connection.exec_driver_sql("PRAGMA cache_size").scalar_one() == -2000


KILLED = """
import os, signal, sys
from pathlib import Path
import polars as pl
from conversion_assets.storage import upsert
from conversion_assets.storage.database import create_database_engine
from conversion_assets.storage.importer import import_files
upsert.BATCH_ROWS = 100
def stop(table, done, total):
    if (table, done) == (sys.argv[3], int(sys.argv[4])):
        os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[2])
import_files(create_database_engine(sys.argv[1]), clients=folder / "clients.parquet",
    leads=folder / "leads.parquet", activities=folder / "activities.parquet",
    quarantine_dir=folder / "q", progress=stop)
"""


@pytest.mark.slow
@pytest.mark.parametrize("at", [("leads", 100), ("activities", 1000)])
def test_a_killed_import_leaves_the_old_state_and_can_be_repeated(database_url, tmp_path, at):
    engine = create_database_engine(database_url)
    load(
        engine,
        tmp_path,
        clients=[CLIENTS[0]],
        leads=[lead("old")],
        activities=[activity("old", of="old")],
    )
    before = digest(engine)
    for table, rows in {
        "clients": CLIENTS,
        "leads": [lead(i) for i in range(300)],
        "activities": [activity(i, of=i % 300) for i in range(1000)],
    }.items():
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(tmp_path / f"{table}.parquet")
    command = [sys.executable, "-c", KILLED, database_url, str(tmp_path), at[0], str(at[1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert digest(engine) == before
    paths = {t: tmp_path / f"{t}.parquet" for t in CONTRACTS}
    report = import_files(engine, **paths, quarantine_dir=tmp_path / "q")
    assert report.activities.written == 1000


def test_two_imports_at_once_both_arrive(engine, tmp_path):
    load(engine, tmp_path, clients=CLIENTS)
    errors = []

    def run(client):
        try:
            load(engine, tmp_path, leads=[lead(i, client=client) for i in range(500)])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(client,)) for client in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(stored(engine)["leads"]) == 1000


def test_the_benchmark_runs(postgresql_url):
    result = import_speed.run(2_000, postgresql_url)
    assert set(result["sqlite"]) == set(result["postgresql"])
