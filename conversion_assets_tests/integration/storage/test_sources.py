"""Reading rows and what changed, on both databases, whoever wrote."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import polars as pl
import pytest
from sqlalchemy import insert, text

from conversion_assets.domain.contracts import CONTRACTS
from conversion_assets.domain.errors import InputError, UnreachableError
from conversion_assets.storage import tables
from conversion_assets.storage.database import (
    create_database_engine,
    next_change_id,
    write_transaction,
)
from conversion_assets.storage.sources import (
    Watermark,
    active_client_ids,
    count_rows,
    open_snapshot,
    read_activities_of,
    read_changes,
    read_clients,
    source_version,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def write(engine, statement, rows=None):
    with write_transaction(engine) as connection:
        connection.execute(text(statement) if isinstance(statement, str) else statement, rows)


def add_clients(engine, *ids, **columns):
    write(engine, insert(tables.clients), [{"id": i, "created_at": T0, **columns} for i in ids])


def add_leads(engine, client, *ids, **columns):
    rows = [
        {"client_id": client, "id": i, "status": "new", "created_at": T0, **columns} for i in ids
    ]
    write(engine, insert(tables.leads), rows)


def add_activities(engine, client, lead, *ids, **columns):
    row = {"client_id": client, "lead_id": lead, "action": "email_sent", "occurred_at": T0}
    write(engine, insert(tables.activities), [{**row, "id": i, **columns} for i in ids])


@pytest.fixture
def filled(engine):
    add_clients(engine, "a", "b")
    add_leads(engine, "a", "l1", "l2", "l3")
    add_leads(engine, "b", "l1")
    add_activities(engine, "a", "l1", "x1", "x2")
    add_activities(engine, "a", "l2", "x3")
    add_activities(engine, "b", "l1", "x1")
    return engine


def keys(frame):
    return frame.select("client_id", "id").rows()


def schema(table):
    return {name: column.dtype for name, column in CONTRACTS[table].columns().items()}


@pytest.mark.parametrize("table", ["leads", "activities"])
def test_empty_tables_have_the_canonical_types(engine, table):
    read = read_changes(engine, table, None)
    assert read.rows.schema == schema(table)
    assert read.rows.height == read.deleted.height == 0
    assert read_clients(engine).schema == schema("clients")
    assert read_activities_of(
        engine, pl.DataFrame(schema={"client_id": pl.String, "lead_id": pl.String})
    ).schema == schema("activities")


def test_types_hold_behind_leading_nulls(engine):
    add_clients(engine, "a")
    add_leads(engine, "a", *(f"l{i:05}" for i in range(3000)))
    late = datetime(2026, 2, 3, 4, 5, 6, 789, tzinfo=UTC)
    add_leads(
        engine, "a", "z", is_hiring=True, als_score=0.1, employee_count=12, converted_at=late,
        als_components='{"risk": 15, "timing": 0.5}', title="Geschäftsführerin 🚀",
    )  # fmt: skip
    rows = read_changes(engine, "leads", None).rows
    assert rows.schema == schema("leads")
    last = rows.row(-1, named=True)
    assert (last["is_hiring"], last["als_score"], last["employee_count"]) == (True, 0.1, 12)
    assert last["converted_at"] == late
    assert last["title"] == "Geschäftsführerin 🚀"
    assert '"risk"' in last["als_components"]
    assert rows["is_hiring"].null_count() == 3000


def test_complete_read_then_nothing_new(filled):
    first = read_changes(filled, "leads", None)
    assert first.is_complete
    assert keys(first.rows) == [("a", "l1"), ("a", "l2"), ("a", "l3"), ("b", "l1")]
    again = read_changes(filled, "leads", first.watermark)
    assert not again.is_complete
    assert again.rows.height == again.deleted.height == 0


def test_clients_are_chosen_and_keys_are_quoted(filled):
    add_clients(filled, "o'b\"\\u0000{}%s")
    add_leads(filled, "o'b\"\\u0000{}%s", "l'\\", "🚀")
    since = read_changes(filled, "leads", None).watermark
    write(filled, "UPDATE leads SET title = 'CEO'")
    odd = "o'b\"\\u0000{}%s"
    assert keys(read_changes(filled, "leads", since, [odd]).rows) == [(odd, "l'\\"), (odd, "🚀")]
    assert read_changes(filled, "leads", since, []).rows.height == 0
    assert read_changes(filled, "leads", None, ["a\0", "nobody"]).rows.height == 0
    assert read_clients(filled, ["b", odd])["id"].to_list() == ["b", odd]


def test_foreign_insert_update_delete_are_picked_up(filled):
    since = read_changes(filled, "activities", None).watermark
    write(filled, "UPDATE activities SET channel = 'sms' WHERE id = 'x3'")
    write(filled, "DELETE FROM activities WHERE client_id = 'a' AND id = 'x1'")
    now = "'2026-01-05T00:00:00.000000Z'"
    write(
        filled,
        "INSERT INTO activities (client_id, id, lead_id, action, occurred_at)"
        f" VALUES ('b', 'new', 'l1', 'reply', {now})",
    )
    change = read_changes(filled, "activities", since)
    assert keys(change.rows) == [("a", "x3"), ("b", "new")]
    assert keys(change.deleted) == [("a", "x1")]
    nothing = read_changes(filled, "activities", change.watermark)
    assert nothing.rows.height == nothing.deleted.height == 0


def test_deleted_and_inserted_again_is_a_row_not_a_deletion(filled):
    since = read_changes(filled, "activities", None).watermark
    write(filled, "DELETE FROM activities WHERE id = 'x3'")
    add_activities(filled, "a", "l2", "x3")
    change = read_changes(filled, "activities", since)
    assert keys(change.rows) == [("a", "x3")]
    assert change.deleted.height == 0


def test_a_changed_key_is_a_deletion_and_a_row(filled):
    since = read_changes(filled, "activities", None).watermark
    write(filled, "UPDATE activities SET id = 'x9' WHERE id = 'x3'")
    change = read_changes(filled, "activities", since)
    assert keys(change.rows) == [("a", "x9")]
    assert keys(change.deleted) == [("a", "x3")]


def test_deleting_a_lead_deletes_its_activities(filled):
    with open_snapshot(filled) as snapshot:
        since = snapshot.watermark
    write(filled, "DELETE FROM leads WHERE client_id = 'a' AND id = 'l1'")
    with open_snapshot(filled) as snapshot:
        assert keys(snapshot.changes("leads", since).deleted) == [("a", "l1")]
        assert keys(snapshot.changes("activities", since).deleted) == [("a", "x1"), ("a", "x2")]


def test_soft_deletion_and_its_undoing(filled):
    since = read_changes(filled, "leads", None).watermark
    write(filled, tables.leads.update().where(tables.leads.c.id == "l2").values(deleted_at=T0))
    gone = read_changes(filled, "leads", since)
    assert gone.rows.height == 0
    assert keys(gone.deleted) == [("a", "l2")]
    assert keys(read_changes(filled, "leads", None).rows) == [
        ("a", "l1"), ("a", "l3"), ("b", "l1"),
    ]  # fmt: skip
    write(filled, "UPDATE leads SET deleted_at = NULL")
    back = read_changes(filled, "leads", gone.watermark)
    assert ("a", "l2") in keys(back.rows)
    assert back.deleted.height == 0


def test_truncate_is_recorded(postgresql_url):
    engine = create_database_engine(postgresql_url)
    add_clients(engine, "a")
    add_leads(engine, "a", "l1")
    add_activities(engine, "a", "l1", "x1")
    since = read_changes(engine, "activities", None).watermark
    write(engine, "TRUNCATE activities")
    assert keys(read_changes(engine, "activities", since).deleted) == [("a", "x1")]
    engine.dispose()


def test_replace_is_picked_up_on_sqlite(sqlite_url):
    engine = create_database_engine(sqlite_url)
    add_clients(engine, "a")
    add_leads(engine, "a", "l1")
    since = read_changes(engine, "leads", None).watermark
    write(
        engine,
        "INSERT OR REPLACE INTO leads (client_id, id, status, created_at)"
        " VALUES ('a', 'l1', 'dead', '2026-01-05T00:00:00.000000Z')",
    )
    assert read_changes(engine, "leads", since).rows["status"].to_list() == ["dead"]
    engine.dispose()


def test_a_numbering_writer_is_picked_up(filled):
    since = read_changes(filled, "leads", None).watermark
    with write_transaction(filled) as connection:
        number = next_change_id(connection)
        connection.execute(
            tables.leads.update()
            .where(tables.leads.c.id == "l3")
            .values(title="CEO", change_id=number)
        )
    assert keys(read_changes(filled, "leads", since).rows) == [("a", "l3")]


def test_an_update_without_change_keeps_its_number_on_postgresql(postgresql_url):
    engine = create_database_engine(postgresql_url)
    add_clients(engine, "a")
    add_leads(engine, "a", "l1")
    since = read_changes(engine, "leads", None).watermark
    write(engine, "UPDATE leads SET title = title")
    assert read_changes(engine, "leads", since).rows.height == 0
    engine.dispose()


def test_a_late_commit_with_a_lower_number_is_not_lost(postgresql_url):
    engine = create_database_engine(postgresql_url)
    add_clients(engine, "a")
    add_leads(engine, "a", "l0")
    with engine.connect() as slow:
        slow.execute(text("INSERT INTO clients (id, created_at) VALUES ('slow', now())"))
        slow.execute(
            text(
                "INSERT INTO leads (client_id, id, status, created_at)"
                " VALUES ('a', 'slow', 'new', now())"
            )
        )
        add_leads(engine, "a", "fast")  # a higher number, committed first
        version = source_version(engine, "leads")
        seen = read_changes(engine, "leads", None)
        assert keys(seen.rows) == [("a", "fast"), ("a", "l0")]
        slow.commit()
    late = read_changes(engine, "leads", seen.watermark)
    assert ("a", "slow") in keys(late.rows)
    assert source_version(engine, "leads") != version
    assert read_changes(engine, "leads", late.watermark).rows.height == 0
    engine.dispose()


def test_a_snapshot_does_not_move(filled):
    with open_snapshot(filled) as snapshot:
        before = snapshot.changes("leads", None)
        writer = threading.Thread(target=add_leads, args=(filled, "b", "late"))
        writer.start()
        writer.join()
        add_activities(filled, "b", "late", "late")
        assert "late" not in snapshot.changes("activities", None).rows["id"].to_list()
        assert snapshot.changes("leads", None).rows.equals(before.rows)
    after = read_changes(filled, "activities", before.watermark)
    assert keys(after.rows) == [("b", "late")]


def ask_together(snapshot, sql, times=4):
    """What some threads are told that ask at the same time."""
    start = threading.Barrier(times)

    def ask(_):
        start.wait()
        return snapshot.query(sql, {"who": pl.Int64(), "leads": pl.Int64()}).row(0)

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(ask, range(times)))


ASK = "SELECT pg_backend_pid() AS who, count(*) AS leads FROM leads, pg_sleep(0.2)"


def test_threads_see_one_state_through_all_connections(postgresql_url):
    engine = create_database_engine(postgresql_url)
    add_clients(engine, "a")
    add_leads(engine, "a", "l1")
    with open_snapshot(engine, connections=2) as snapshot:
        add_leads(engine, "a", "l2", "l3")
        found = ask_together(snapshot, ASK)
        assert {leads for _, leads in found} == {1}
        assert len({who for who, _ in found}) == 2
    with open_snapshot(engine) as snapshot:
        found = ask_together(snapshot, ASK, times=2)
        assert len(set(found)) == 1
        assert found[0][1] == 3
    engine.dispose()


def test_one_connection_is_enough_where_another_does_not_know_the_state(postgresql_url):
    """As behind a pooler that leads to another server."""
    engine = create_database_engine(postgresql_url)
    add_clients(engine, "a")
    add_leads(engine, "a", "l1")
    with open_snapshot(engine, connections=2) as snapshot:
        snapshot._reader._state = "00000000-00000000-1"
        found = ask_together(snapshot, ASK)
        assert len(set(found)) == 1
        assert snapshot.count("SELECT count(*) FROM leads") == 1
    engine.dispose()


def test_threads_take_turns_on_sqlite(sqlite_url):
    engine = create_database_engine(sqlite_url)
    add_clients(engine, "a")
    add_leads(engine, "a", *(f"l{number}" for number in range(500)))
    with open_snapshot(engine, connections=2) as snapshot:
        sql = "SELECT 1 AS who, count(*) AS leads FROM leads a, leads b"
        assert ask_together(snapshot, sql) == [(1, 250_000)] * 4
    engine.dispose()


def test_a_foreign_or_future_watermark_reads_everything(filled):
    mark = read_changes(filled, "leads", None).watermark
    assert read_changes(filled, "leads", Watermark("other", mark.position)).is_complete
    assert read_changes(filled, "leads", Watermark(mark.epoch, mark.position + 10**6)).is_complete
    assert not read_changes(filled, "leads", Watermark.parse(str(mark))).is_complete
    with pytest.raises(InputError, match="watermark 'x' cannot be read"):
        Watermark.parse("x")


def test_activities_of_leads_stay_within_the_client(filled):
    chosen = pl.DataFrame({"client_id": ["a", "a", "b"], "lead_id": ["l2", "l2", "nobody"]})
    assert keys(read_activities_of(filled, chosen)) == [("a", "x3")]


def test_counts(filled):
    write(filled, tables.leads.update().where(tables.leads.c.id == "l3").values(deleted_at=T0))
    assert count_rows(filled, "leads").rows() == [("a", 2), ("b", 1)]
    assert count_rows(filled, "activities").rows() == [("a", 3), ("b", 1)]
    assert count_rows(filled, "clients").rows() == [("a", 1), ("b", 1)]


def test_source_version_moves_with_the_rows_only(filled):
    tables_ = ("clients", "leads", "activities")

    def versions():
        return [source_version(filled, table) for table in tables_]

    before = versions()
    assert versions() == before
    # What learning writes to a client is no change of the source.
    write(filled, "UPDATE clients SET conversion_sample_count = 3, als_learned_weights = '{}'")
    assert versions() == before
    write(filled, "UPDATE leads SET title = 'CEO' WHERE client_id = 'a' AND id = 'l3'")
    changed = versions()
    assert [a == b for a, b in zip(before, changed, strict=True)] == [True, False, True]
    write(filled, "DELETE FROM activities WHERE client_id = 'a' AND id = 'x1'")
    assert versions()[2] != changed[2]
    write(filled, "UPDATE clients SET name = 'A'")
    assert versions()[0] != before[0]


def test_active_clients(engine):
    add_clients(engine, "won", "booked", "open", "undated", "gone-lead")
    add_clients(engine, "paused", is_paused=True)
    add_clients(engine, "left", deleted_at=T0)
    add_clients(engine, "trial", subscription_status="trialing")
    for client in ("won", "paused", "left", "trial"):
        add_leads(engine, client, "l", status="converted", converted_at=T0)
    add_leads(engine, "gone-lead", "l", status="converted", converted_at=T0, deleted_at=T0)
    add_leads(engine, "undated", "l", status="converted")
    for client in ("booked", "open"):
        add_leads(engine, client, "l")
    add_activities(engine, "booked", "l", "x", action="meeting_booked")
    add_activities(engine, "open", "l", "x")
    assert active_client_ids(engine) == ["booked", "won"]


def test_a_value_of_another_type_is_named(sqlite_url):
    engine = create_database_engine(sqlite_url)
    add_clients(engine, "a")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        connection.exec_driver_sql(
            "INSERT INTO leads (client_id, id, status, created_at)"
            " VALUES ('a', 'l', 'new', '2026-02-31T00:00:00.000000Z')"
        )
        connection.commit()
    with pytest.raises(InputError, match=r"column created_at holds a value that is no Datetime"):
        read_changes(engine, "leads", None)
    engine.dispose()


def test_an_unreachable_database_is_one_line_without_the_password(postgresql_url):
    wrong = postgresql_url.replace("127.0.0.1", "127.0.0.2")
    password = wrong.split(":")[2].split("@")[0]
    for url in (wrong, wrong.replace("/test_", "/none_"), postgresql_url.replace(password, "no")):
        engine = create_database_engine(url)
        with pytest.raises(UnreachableError) as error:
            read_changes(engine, "leads", None)
        assert password not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_database_without_tables_is_one_line(empty_database_url):
    engine = create_database_engine(empty_database_url)
    with pytest.raises(InputError, match=r"^database .*(change_counter|leads)") as error:
        read_changes(engine, "leads", None)
    assert "\n" not in str(error.value)
    engine.dispose()
