"""Erasure of leads and clients, on both databases and both kinds of store."""

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import boto3
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
from sqlalchemy import insert, inspect, select, text, update

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.errors import ConflictError, InputError, NotFoundError
from conversion_assets.domain.terms import PatternType
from conversion_assets.refresh import erase as erasing
from conversion_assets.refresh.erase import (
    erase,
    find_unfinished,
    finish_unfinished,
    plan_erasure,
)
from conversion_assets.refresh.features import refresh_features
from conversion_assets.refresh.patterns import refresh_patterns
from conversion_assets.refresh.rebuild import rebuild_features
from conversion_assets.refresh.verify import verify
from conversion_assets.storage import erasures, quarantine, tables, traces
from conversion_assets.storage.columnar.manifest import bucket_of
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine
from conversion_assets.storage.erasures import Erasure, hash_id, match_erased, read_erasures
from conversion_assets.storage.importer import import_frames
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import generate_agency

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
CONFIG = SyntheticConfig(clients=3, leads=150, base_conversion=0.3, seed=5, pool_opt_in=0.0)
NOW = datetime(2026, 2, 1, tzinfo=UTC)
A, B = "client-0001", "client-0002"
MARK = "zebulon.quux@nowhere.example"


@pytest.fixture(scope="module")
def agency():
    """Three clients; one lead of the first has an id that a lead of the second has too."""
    made = generate_agency(CONFIG)
    first = made.leads.filter(pl.col("client_id") == A)["id"][0]
    twin = made.leads.filter(pl.col("client_id") == B)["id"][0]
    person = {
        "first_name": "Zebulon",
        "last_name": "Quux",
        "email": MARK,
        "phone": "+31 20 555 01 99",
        "linkedin_url": "https://linkedin.example/in/zebulonquux",
    }
    mine = (pl.col("client_id") == A) & (pl.col("id") == first)
    leads = made.leads.with_columns(
        pl.when(mine).then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in person.items()
    )
    same = pl.col("client_id") == B
    leads = leads.with_columns(
        pl.when(same & (pl.col("id") == twin)).then(pl.lit(first)).otherwise("id").alias("id")
    )
    activities = made.activities.with_columns(
        pl.when(same & (pl.col("lead_id") == twin))
        .then(pl.lit(first))
        .otherwise("lead_id")
        .alias("lead_id"),
        pl.when((pl.col("client_id") == A) & (pl.col("lead_id") == first))
        .then(pl.lit(json.dumps({"body": "Hi Zebulon Quux", "to": MARK})))
        .otherwise("content_snapshot")
        .alias("content_snapshot"),
    )
    return {"clients": made.clients, "leads": leads, "activities": activities}, first


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def s3_store(endpoint: str) -> FeatureStore:
    name = f"bucket-{random.randrange(10**9)}"
    boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    ).create_bucket(Bucket=name)
    options = {key.lower(): value for key, value in KEYS.items()}
    options["aws_endpoint_url"] = endpoint
    return FeatureStore(f"s3://{name}/features", options)


@pytest.fixture
def home(engine, agency, tmp_path):
    frames, _ = agency
    import_frames(engine, **frames, quarantine_dir=tmp_path / "quarantine")
    store = FeatureStore(tmp_path / "store")
    refresh_features(engine, store)
    return engine, store, tmp_path / "quarantine"


def run(home, client, *leads, learned=False, more=(), **keywords):
    plan = plan_erasure(*home, Erasure.of(client, leads), learned=learned, more=more)
    return erase(*home, plan, learned=learned, now=lambda: NOW, **keywords)


def learn(home, clients=(A, B)):
    engine, store, _ = home
    refresh_features(engine, store)
    return refresh_patterns(
        engine, store, client_ids=clients, kinds=tuple(PatternType), as_of=CONFIG.as_of,
        run_id="r", config=LearningConfig(), now=partial(datetime.now, UTC),
    )  # fmt: skip


def dump(engine, client):
    """Every row of a client, as text."""
    with engine.connect() as connection:
        found = {}
        for table in tables.metadata.sorted_tables:
            owner = "id" if table.name == "clients" else "client_id"
            if owner in table.c and table.name not in ("erasures", "row_deletions"):
                rows = connection.execute(select(table).where(table.c[owner] == client))
                found[table.name] = sorted(map(str, rows))
    return found


def search(home, client, *leads):
    engine, store, folder = home
    plan = plan_erasure(engine, store, folder, Erasure.of(client, leads), more=[MARK])
    return [
        *traces.search_database(engine, plan.identity),
        traces.search_store(store, plan.identity.erasure),
    ]


def test_a_lead_is_gone_everywhere_and_others_stay(home, agency):
    engine, store, _ = home
    _, lead = agency
    learn(home)
    before = {client: dump(engine, client) for client in (A, B, "client-0003")}
    features = {c: store.read("touch_features", [c]) for c in (A, B)}
    # It is there to be found: in its rows and in the files of the store.
    plan = plan_erasure(*home, Erasure.of(A, [lead]))
    assert plan.rows["leads"] == 1
    assert plan.rows["activities"] > 0
    assert plan.features > 1
    found = traces.search_database(engine, plan.identity)
    assert {one.place for one in found if one.found} == {"table leads", "table activities"}

    report = run(home, A, lead)
    assert report.is_proven
    assert report.rows == plan.rows
    assert {one.place for one in report.searched} >= {
        "table activities",
        "columnar store",
        "quarantine",
    }
    after = {client: dump(engine, client) for client in before}
    assert after[B] == before[B]
    assert after["client-0003"] == before["client-0003"]
    gone = {t: set(before[A][t]) - set(after[A][t]) for t in before[A]}
    assert {table for table, rows in gone.items() if rows} == {"leads", "activities"}
    assert store.read("touch_features", [B]).equals(features[B])
    assert store.read("touch_features", [A]).equals(features[A].filter(pl.col("lead_id") != lead))
    # Nothing notes the ids, and the next refresh finds nothing to do.
    with engine.connect() as connection:
        assert connection.execute(select(tables.row_deletions)).all() == []
    manifest = store.load_manifest()
    assert refresh_features(engine, store).changed_client_ids == []
    assert store.load_manifest().clients == manifest.clients


def test_only_hashes_are_remembered(home, agency):
    engine, _, _ = home
    _, lead = agency
    run(home, A, lead)
    with engine.connect() as connection:
        [row] = connection.execute(select(tables.erasures)).all()
    assert row.lead_hash == hash_id(row.salt, A, lead)
    assert row.open_client_id is None
    assert row.asked_at == row.done_at == NOW
    assert lead not in str(row)
    assert A not in str(row)


def test_a_client_is_gone_everywhere_and_others_stay(home):
    engine, store, _ = home
    learn(home)
    before = dump(engine, B)
    assert dump(engine, A)["conversion_pattern_history"]
    report = run(home, A)
    assert report.is_proven
    assert report.rows["conversion_pattern_history"] > 0
    assert not any(dump(engine, A).values())
    assert dump(engine, B) == before
    assert A not in store.load_manifest().clients
    assert A not in store.load_manifest().zones
    assert store.read("lead_features", [B]).height == CONFIG.leads
    with pytest.raises(NotFoundError, match="there is no client 'nobody'"):
        run(home, "nobody")
    # Asked again it is known, and nothing is left.
    again = run(home, A)
    assert (again.rows, again.features, again.is_proven) == ({}, {}, True)


def test_the_history_of_others_stays_append_only(home):
    engine, *_ = home
    learn(home)
    run(home, A)
    with pytest.raises(Exception, match="append-only"), engine.begin() as connection:
        connection.execute(text("DELETE FROM conversion_pattern_history"))


def test_every_table_with_a_client_is_known_to_the_erasure(engine):
    inspector = inspect(engine)
    for table in inspector.get_table_names():
        columns = {column["name"] for column in inspector.get_columns(table)}
        if "client_id" in columns:
            assert table in tables.metadata.tables


def test_patterns_of_an_erased_lead_are_to_be_learned_again(home, agency):
    engine, store, folder = home
    _, lead = agency
    learn(home)

    def differences():
        found = verify(engine, store, folder, config=LearningConfig(), now=NOW).differences
        return {(one.check, one.client_id, one.mend) for one in found if one.client_id in (A, B)}

    assert differences() == set()
    plan = plan_erasure(*home, Erasure.of(A, [lead]))
    erase(*home, plan, now=partial(datetime.now, UTC))
    mend = f"conversion-assets learn --client {A}"
    assert ("patterns_are_newer_than_erasures", A, mend) in differences()
    assert {client for _, client, _ in differences()} == {A}
    refresh_patterns(
        engine, store, client_ids=[A], kinds=tuple(PatternType), run_id="r2",
        as_of=CONFIG.as_of + timedelta(days=1), config=LearningConfig(),
        now=partial(datetime.now, UTC),
    )  # fmt: skip
    assert differences() == set()


def test_patterns_can_go_with_a_lead(home, agency):
    engine, *_ = home
    _, lead = agency
    learn(home)
    before = dump(engine, B)
    run(home, A, lead, learned=True)
    left = dump(engine, A)
    assert not left["conversion_patterns"] + left["conversion_pattern_history"]
    assert left["leads"]
    assert dump(engine, B) == before


def test_an_erased_lead_does_not_come_back_with_an_import(home, agency):
    engine, _, folder = home
    frames, lead = agency
    run(home, A, lead)
    for _ in range(2):
        report = import_frames(engine, **frames, quarantine_dir=folder)
        assert report.reasons["leads"] == {"erased": 1}
        assert set(report.reasons["activities"]) == {"erased"}
        assert report.clients.written == report.leads.written == report.activities.written == 0
    # The quarantine says which row, not who.
    [path] = folder.glob("*/leads.jsonl")
    assert json.loads(path.read_text())["record"] is None
    assert MARK not in path.read_text()
    assert lead not in path.read_text()
    # Also where the row is refused for another reason.
    broken = frames["leads"].filter(pl.col("id") == lead).with_columns(status=pl.lit("?"))
    import_frames(engine, leads=broken, quarantine_dir=folder)
    texts = "".join(path.read_text() for path in folder.glob("*/leads.jsonl"))
    assert MARK not in texts
    assert '"client-0002"' in texts
    # Allowed, it is a lead like any other again.
    report = import_frames(engine, **frames, quarantine_dir=folder, allow_erased=True)
    assert report.leads.written == 1
    assert import_frames(engine, **frames, quarantine_dir=folder).rejected == 0
    assert read_erasures(engine).is_empty()


def test_an_erased_client_does_not_come_back_with_an_import(home, agency):
    engine, _, folder = home
    frames, _ = agency
    run(home, A)
    report = import_frames(engine, **frames, quarantine_dir=folder)
    assert report.reasons["clients"] == {"erased": 1}
    assert report.reasons["leads"] == {"erased": CONFIG.leads}
    assert not any(dump(engine, A).values())
    report = import_frames(engine, **frames, quarantine_dir=folder, allow_erased=True)
    assert report.rejected == 0
    assert len(dump(engine, A)["leads"]) == CONFIG.leads


def test_quarantined_rows_go_too_and_others_stay(home, agency):
    engine, _, folder = home
    frames, lead = agency
    wrong = frames["leads"].filter(pl.col("id") == lead).with_columns(status=pl.lit("?"))
    stranger = wrong.with_columns(id=pl.lit("other"), email=pl.lit(MARK)).head(1)
    nobody = wrong.head(1).with_columns(client_id=pl.lit(None, dtype=pl.String))
    import_frames(engine, leads=pl.concat([wrong, stranger, nobody]), quarantine_dir=folder)
    assert sum(quarantine.count_rows(folder).values()) == 4
    report = run(home, A, lead)
    assert report.quarantined == 3
    [left] = [
        json.loads(line)
        for line in "".join(p.read_text() for p in folder.glob("*/*.jsonl")).splitlines()
    ]
    assert left["record"]["client_id"] == B
    # Named by what it holds.
    [quarantined] = folder.iterdir()
    assert len(quarantined.name) == 16


def test_what_another_lead_holds_of_the_person_is_found(home, agency):
    engine, *_ = home
    frames, lead = agency
    other = frames["leads"].filter(pl.col("client_id") == A)["id"][5]
    table = tables.activities
    with engine.begin() as connection:
        connection.execute(
            update(table)
            .where(table.c.client_id == A, table.c.lead_id == other)
            .values(metadata=json.dumps({"cc": MARK.upper()}))
        )
    report = run(home, A, lead)
    assert not report.is_proven
    [hit] = [one for one in report.searched if one.found]
    assert hit.place == "table activities"
    assert any(other in where for where in hit.where)
    # It stays begun until that is gone too.
    assert read_erasures(engine)["done_at"].to_list() == [None]
    assert run(home, A, lead, other, more=[MARK]).is_proven
    assert read_erasures(engine)["done_at"].null_count() == 0


def test_bytes_are_gone_from_the_sqlite_file(sqlite_url, agency, tmp_path):

    engine = create_database_engine(sqlite_url)
    frames, lead = agency
    import_frames(engine, **frames, quarantine_dir=tmp_path / "quarantine")
    store = FeatureStore(tmp_path / "store")
    refresh_features(engine, store)
    path = Path(str(engine.url.database))
    with engine.connect() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    assert MARK.encode() in path.read_bytes()
    assert run((engine, store, tmp_path / "quarantine"), A, lead).is_proven
    data = path.read_bytes()
    assert MARK.encode() not in data
    assert b"zebulonquux" not in data
    assert b"Quux" not in data
    engine.dispose()


def test_the_search_of_the_bytes_leaves_the_locks_of_open_connections(sqlite_url):
    """A process that leaves meanwhile must not take the log for one that nobody uses."""
    engine = create_database_engine(sqlite_url)
    path = Path(str(engine.url.database))
    erasure = Erasure.of(A)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT count(*) FROM leads").all()
        identity = traces.identify(erasure, erasures.load_identities(engine, erasure))
        assert traces.search_free_space(engine, identity).looked_at
        found = traces.search_files([path.parent], identity)
        assert sum(int(one.looked_at.split()[0]) for one in found) >= 2
        leave = (
            "import sqlite3, sys; database = sqlite3.connect(sys.argv[1]);"
            "database.execute('SELECT count(*) FROM leads').fetchone(); database.close()"
        )
        subprocess.run([sys.executable, "-c", leave, path], check=True)
        assert path.with_name(f"{path.name}-wal").exists()
    engine.dispose()


def test_what_cannot_be_read_is_no_proof(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    matcher = traces.Matcher([MARK])
    with pytest.raises(InputError, match=r"^file .*folder cannot be read, so what it holds"):
        list(traces._chunks(folder, matcher))
    assert list(traces._chunks(folder / "gone.log", matcher)) == []


def test_s3_forgets_every_version(sqlite_url, agency, tmp_path, s3_endpoint):

    engine = create_database_engine(sqlite_url)
    frames, lead = agency
    import_frames(engine, **frames, quarantine_dir=tmp_path / "quarantine")
    home = engine, s3_store(s3_endpoint), tmp_path / "quarantine"
    refresh_features(engine, home[1])
    with engine.begin() as connection:  # a second version that keeps the files of the first
        connection.execute(
            update(tables.leads).where(tables.leads.c.client_id == A).values(source="event")
        )
    refresh_features(engine, home[1])
    plan = plan_erasure(*home, Erasure.of(A, [lead]))
    assert plan.features > plan.rows["activities"] + 1
    assert run(home, A, lead).is_proven
    assert traces.search_store(home[1], Erasure.of(A, [lead])).found == 0
    assert home[1].read("lead_features", [A]).height == CONFIG.leads - 1

    def differences():
        found = verify(*home, config=LearningConfig(), now=datetime.now(UTC), deep=True).differences
        return {one.check for one in found} - {"active_clients_are_learned"}

    assert differences() == set()
    home[1]._files.delete([home[1].load_manifest().files["touch_features"][0].path])
    assert differences() == {"files_are_whole"}
    rebuild_features(engine, home[1])
    assert differences() == set()
    engine.dispose()


class Stop(BaseException):
    """The process dies here."""


STEPS = (
    "erasures.record_erasure", "quarantine.erase_rows", "erasures.delete_rows",
    "erasures.forget_deletions", "erasures.scrub_database", "erasures.finish_erasure",
)  # fmt: skip


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_the_same_command_finishes(home, agency, monkeypatch, step, after):
    engine, store, _ = home
    _, lead = agency
    module, name = step.split(".")
    real = getattr(getattr(erasing, module), name)

    def die(*arguments, **keywords):
        if after:
            real(*arguments, **keywords)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(getattr(erasing, module), name, die)
        with pytest.raises(Stop):
            run(home, A, lead)
    refresh_features(engine, store)  # somebody learns in between
    if (step, after) != ("erasures.record_erasure", False):
        assert run(home, A, lead, more=[MARK]).is_proven
    else:
        assert read_erasures(engine).is_empty()
        assert run(home, A, lead).is_proven
    assert read_erasures(engine)["done_at"].to_list() == [NOW]
    assert search(home, A, lead)
    assert traces.total(search(home, A, lead)) == 0


@pytest.mark.parametrize("step", ["erasures.delete_rows", "erasures.forget_deletions"])
def test_an_erasure_whose_leads_nobody_remembers_is_finished(home, agency, monkeypatch, step):
    engine, store, folder = home
    _, lead = agency
    module, name = step.split(".")
    real = getattr(getattr(erasing, module), name)

    def die(*arguments, **keywords):
        real(*arguments, **keywords)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(getattr(erasing, module), name, die)
        with pytest.raises(Stop):
            run(home, A, lead)
    found = verify(engine, store, folder, config=LearningConfig(), now=NOW).differences
    mend = f"conversion-assets erase {A} --yes --unfinished"
    assert mend in {one.mend for one in found if one.check == "erasures_are_finished"}
    left = find_unfinished(engine, store, A)
    if left:
        assert left == [lead]
        assert run(home, A, *left).is_proven
    else:
        assert finish_unfinished(engine, A, NOW) == 1
    assert read_erasures(engine)["done_at"].to_list() == [NOW]


def test_a_learning_run_at_the_same_time_brings_nothing_back(home, agency):
    """Learning that read the rows before they went cannot put them into the store after."""
    engine, store, _ = home
    _, lead = agency
    with engine.begin() as connection:  # something to compute for every client
        connection.execute(update(tables.leads).values(source="event"))
    errors = []

    def refresh():
        for _ in range(3):
            try:
                refresh_features(engine, store)
            except ConflictError as error:
                errors.append(error)

    threads = [threading.Thread(target=refresh) for _ in range(2)]
    for thread in threads:
        thread.start()
    report = run(home, A, lead)
    for thread in threads:
        thread.join()
    assert report.is_proven
    learn(home)
    assert traces.total(search(home, A, lead)) == 0
    assert store.read("lead_features", [A]).height == CONFIG.leads - 1


def test_on_s3_a_writer_that_read_before_cannot_commit_after(
    sqlite_url, agency, tmp_path, s3_endpoint
):

    engine = create_database_engine(sqlite_url)
    frames, lead = agency
    import_frames(engine, **frames, quarantine_dir=tmp_path / "quarantine")
    home = engine, s3_store(s3_endpoint), tmp_path / "quarantine"
    refresh_features(engine, home[1])
    rows = {t: home[1].read(t, [A]) for t in ("lead_features", "touch_features", "bookings")}

    with home[1].write(force=True) as writer:
        writer.clear({t: dict(rows[t].schema) for t in rows})
        writer.replace_clients(bucket_of(A), [A], rows)
        assert run(home, A, lead).features
        with pytest.raises(ConflictError):
            writer.commit(feature_version="v", watermark=None)
    assert traces.search_store(home[1], Erasure.of(A, [lead])).found == 0
    engine.dispose()


def test_an_import_that_runs_at_the_same_time_waits(postgresql_url, agency, tmp_path):
    """The import looks for erasures and stores; an erasure in between would be undone."""

    engine = create_database_engine(postgresql_url)
    frames, lead = agency
    folder = tmp_path / "quarantine"
    import_frames(engine, **frames, quarantine_dir=folder)
    home = engine, FeatureStore(tmp_path / "store"), folder
    refresh_features(engine, home[1])
    changed = {**frames, "leads": frames["leads"].with_columns(source=pl.lit("event"))}
    done = threading.Event()

    def erase_it():
        run(home, A, lead)
        done.set()

    thread = threading.Thread(target=erase_it)

    def begin(*_):
        if not thread.ident:
            thread.start()
            assert not done.wait(0.5)

    import_frames(engine, **changed, quarantine_dir=folder, progress=begin)
    thread.join(60)
    assert done.is_set()
    assert import_frames(engine, **frames, quarantine_dir=folder).reasons["leads"] == {"erased": 1}
    assert traces.total(search(home, A, lead)) == 0
    engine.dispose()


def test_foreign_writers_are_told_of(home, agency):
    engine, store, folder = home
    _, lead = agency
    run(home, A, lead)
    with engine.begin() as connection:
        connection.execute(
            insert(tables.leads).values(id=lead, client_id=A, status="new", created_at=NOW)
        )
    found = verify(engine, store, folder, config=LearningConfig(), now=NOW).differences
    [back] = [one for one in found if one.check == "erased_leads_stay_away"]
    assert back.mend == f"conversion-assets erase {A} --unfinished --yes"
    assert find_unfinished(engine, store, A) == [lead]


ids = st.text("abc01", min_size=1, max_size=3)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(ids, ids), max_size=12),
    st.lists(st.tuples(ids, st.none() | ids), max_size=6),
)
def test_exactly_the_erased_are_recognised(keys, erased):
    salt = "salt"
    standing = pl.DataFrame(
        [
            (salt, hash_id(salt, c), None if lead is None else hash_id(salt, c, lead), NOW, None)
            for c, lead in erased
        ],
        schema=erasures._ERASURES,
        orient="row",
    )
    frame = pl.DataFrame(keys, schema={"client_id": pl.String, "lead_id": pl.String}, orient="row")
    whole = {client for client, lead in erased if lead is None}
    expected = {(c, lead) for c, lead in keys if c in whole or (c, lead) in erased}
    assert set(match_erased(standing, frame).rows()) == expected
