"""Engines, migrations and the rules that hold in the database itself, on both kinds."""

import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from conversion_assets.domain.contracts import CONTRACTS, LONGEST_ID
from conversion_assets.domain.errors import InputError, UnreachableError
from conversion_assets.storage import tables
from conversion_assets.storage.database import (
    create_database_engine,
    current_revision,
    head_revision,
    migrate,
    parse_database_url,
    public_name,
    require_current_schema,
    write_transaction,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
CLIENT = {"id": "a", "created_at": T0}
LEAD = {"client_id": "a", "id": "l", "status": "new", "created_at": T0}
ACTIVITY = {"client_id": "a", "id": "x", "lead_id": "l", "action": "email_sent", "occurred_at": T0}
PATTERN = {
    "client_id": "a", "pattern_type": "who", "patterns": "{}", "sample_size": 1, "confidence": 0.5,
    "as_of": T0, "computed_at": T0, "valid_until": T0, "code_version": "1",
    "input_fingerprint": "f", "run_id": "r",
}  # fmt: skip
OUTCOME = {
    "client_id": "a", "pattern_type": "who", "outcome": "found", "as_of": T0, "computed_at": T0,
    "code_version": "1", "input_fingerprint": "f", "run_id": "r",
}  # fmt: skip


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"]
)
def test_every_name_of_postgresql_means_psycopg_3(scheme):
    url = parse_database_url(f"{scheme}://u:p%40%20w@host:1/db?sslmode=require")
    assert url.drivername == "postgresql+psycopg"
    assert (url.password, url.query["sslmode"]) == ("p@ w", "require")


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://u:hush@h/d", "sqlite://", "sqlite:///:memory:", "postgresql://u:hush@h:port/d"]
)  # fmt: skip
def test_a_bad_address_is_one_line_that_says_what_is_right(url):
    with pytest.raises(InputError) as error:
        create_database_engine(url)
    assert "sqlite:///path/to/file.db" in str(error.value)
    assert "hush" not in str(error.value)
    assert "\n" not in str(error.value)


def test_the_folder_of_a_new_file_is_private(tmp_path):
    engine = create_database_engine(f"sqlite:///{tmp_path}/new/deeper/x.db")
    migrate(engine)
    for folder in ("new", "new/deeper"):
        assert stat.S_IMODE(os.stat(tmp_path / folder).st_mode) == 0o700
    engine.dispose()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"folder .*/file/x of the database"):
        create_database_engine(f"sqlite:///{tmp_path}/file/x/y.db")


def test_sqlite_connections_are_safe(sqlite_url):
    engine = create_database_engine(sqlite_url)
    with engine.connect() as connection:
        values = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        ]
    assert values == ["wal", 1, 30_000, 1]
    engine.dispose()


def test_a_refused_login_does_not_show_the_password(postgresql_url):
    url = parse_database_url(postgresql_url).set(password="wrong-secret")
    engine = create_database_engine(url.render_as_string(hide_password=False))
    for call in (migrate, require_current_schema):
        with pytest.raises(UnreachableError) as error:
            call(engine)
        assert "wrong-secret" not in str(error.value)
        assert "password authentication failed" in str(error.value)
        assert "\n" not in str(error.value)
    assert "wrong-secret" not in repr(engine) + public_name(engine)


# -- migrations --------------------------------------------------------------------------------


def _condition(index):
    return {k: str(v) for k, v in index.get("dialect_options", {}).items() if k.endswith("_where")}


def reflected(engine):
    """Everything the inspector knows of each table, in an order of its own."""
    inspector = inspect(engine)
    found = {}
    for name in sorted(set(inspector.get_table_names()) - {"alembic_version"}):
        columns = {
            c["name"]: (str(c["type"]), c["nullable"], str(c.get("default")))
            for c in inspector.get_columns(name)
            # Defaults that call PostgreSQL's transaction counter stand in the migration only.
            if c["name"] != "change_id"
        }
        found[name] = {
            "columns": columns,
            "pk": inspector.get_pk_constraint(name),
            "fk": sorted(map(repr, inspector.get_foreign_keys(name))),
            "unique": sorted(map(repr, inspector.get_unique_constraints(name))),
            "check": sorted(
                (c["name"], c["sqltext"]) for c in inspector.get_check_constraints(name)
            ),
            "index": sorted(
                (i["name"], i["column_names"], i["unique"], str(_condition(i)))
                for i in inspector.get_indexes(name)
            ),
        }
    return found


def test_migrations_build_what_the_code_declares(empty_database_url):
    engine = create_database_engine(empty_database_url)
    tables.metadata.create_all(engine)
    declared = reflected(engine)
    tables.metadata.drop_all(engine)
    migrate(engine)
    assert declared == reflected(engine)
    assert len(declared) == 17
    engine.dispose()


def test_migrating_twice_is_migrating_once(empty_database_url):
    engine = create_database_engine(empty_database_url)
    assert current_revision(engine) is None
    with pytest.raises(InputError, match=r"is at revision none, this code needs .*: run `conv"):
        require_current_schema(engine)
    assert migrate(engine) == migrate(empty_database_url) == head_revision()
    require_current_schema(engine)
    engine.dispose()


def test_two_processes_migrate_at_once(empty_database_url):
    code = (
        "import sys; from conversion_assets.storage.database import migrate; migrate(sys.argv[1])"
    )
    racers = [subprocess.Popen([sys.executable, "-c", code, empty_database_url]) for _ in range(3)]
    assert [racer.wait() for racer in racers] == [0, 0, 0]
    engine = create_database_engine(empty_database_url)
    require_current_schema(engine)
    engine.dispose()


def test_a_failed_migration_leaves_nothing(empty_database_url):
    engine = create_database_engine(empty_database_url)
    with write_transaction(engine) as connection:
        connection.execute(text("CREATE TABLE pattern_outcomes (x INTEGER)"))
    with pytest.raises(InputError, match="pattern_outcomes"):
        migrate(engine)
    assert inspect(engine).get_table_names() == ["pattern_outcomes"]
    engine.dispose()


def test_a_database_from_the_future_is_refused(engine):
    with write_transaction(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for call in (migrate, require_current_schema):
        with pytest.raises(InputError, match="is at revision 9999, this code needs"):
            call(engine)


def test_tables_have_the_columns_of_the_contracts():
    for name, contract in CONTRACTS.items():
        columns = tables.metadata.tables[name].columns.keys()
        assert columns == [*contract.column_names(), "change_id"]
    assert tables.ID_LENGTH == LONGEST_ID


# -- rules in the database ---------------------------------------------------------------------


@pytest.fixture
def filled(engine):
    with write_transaction(engine) as connection:
        connection.execute(insert(tables.clients), [CLIENT, {**CLIENT, "id": "b"}])
        connection.execute(insert(tables.leads), LEAD)
        connection.execute(insert(tables.activities), ACTIVITY)
        connection.execute(insert(tables.conversion_patterns), PATTERN)
        connection.execute(insert(tables.conversion_pattern_history), PATTERN)
        connection.execute(insert(tables.pattern_outcomes), OUTCOME)
    return engine


BAD_ROWS = {
    "client twice": (tables.clients, CLIENT),
    "client without id": (tables.clients, {"created_at": T0, "id": ""}),
    "client id too long": (tables.clients, {**CLIENT, "id": "x" * (LONGEST_ID + 1)}),
    "unknown subscription": (
        tables.clients, {**CLIENT, "id": "c", "subscription_status": "gratis"},
    ),
    "lead twice": (tables.leads, LEAD),
    "lead of nobody": (tables.leads, {**LEAD, "client_id": "nobody"}),
    "lead without time": (tables.leads, {**LEAD, "id": "m", "created_at": None}),
    "activity of another tenant's lead": (
        tables.activities, {**ACTIVITY, "client_id": "b", "id": "y"},
    ),
    "activity of no lead": (tables.activities, {**ACTIVITY, "id": "y", "lead_id": "m"}),
    "activity twice": (tables.activities, ACTIVITY),
    "pattern twice": (tables.conversion_patterns, PATTERN),
    "pattern of nobody": (tables.conversion_patterns, {**PATTERN, "client_id": "nobody"}),
    "unknown pattern type": (tables.conversion_patterns, {**PATTERN, "pattern_type": "why"}),
    "confidence above 1": (
        tables.conversion_patterns, {**PATTERN, "pattern_type": "how", "confidence": 1.0000001},
    ),
    "confidence below 0": (
        tables.conversion_patterns, {**PATTERN, "pattern_type": "how", "confidence": -1e-9},
    ),
    "negative sample": (
        tables.conversion_patterns, {**PATTERN, "pattern_type": "how", "sample_size": -1},
    ),
    "broken JSON": (
        tables.conversion_patterns, {**PATTERN, "pattern_type": "how", "patterns": "{"},
    ),
    "unknown type in history": (
        tables.conversion_pattern_history, {**PATTERN, "pattern_type": "why"},
    ),
    "unknown outcome": (
        tables.pattern_outcomes, {**OUTCOME, "pattern_type": "how", "outcome": "perhaps"},
    ),
    "outcome twice": (tables.pattern_outcomes, OUTCOME),
    "outcome of nobody": (tables.pattern_outcomes, {**OUTCOME, "client_id": "nobody"}),
    "second counter": (tables.change_counter, {"only_row": 2, "value": 0, "epoch": "x"}),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_refused(filled, case):
    table, row = BAD_ROWS[case]
    with pytest.raises(DBAPIError), write_transaction(filled) as connection:
        connection.execute(insert(table), row)


def test_ids_are_a_clients_own(filled):
    with write_transaction(filled) as connection:
        connection.execute(insert(tables.leads), {**LEAD, "client_id": "b"})
        connection.execute(insert(tables.activities), {**ACTIVITY, "client_id": "b"})


def test_a_client_with_rows_is_not_deleted(filled):
    with pytest.raises(IntegrityError), write_transaction(filled) as connection:
        connection.execute(text("DELETE FROM clients WHERE id = 'a'"))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE conversion_pattern_history SET run_id = 'other'",
        "DELETE FROM conversion_pattern_history",
        "DELETE FROM conversion_pattern_history WHERE client_id = 'a'",
    ],
)
def test_history_is_append_only(filled, statement):
    with (
        pytest.raises(DBAPIError, match="conversion_pattern_history is append-only"),
        write_transaction(filled) as connection,
    ):
        connection.execute(text(statement))


def test_history_is_not_truncated(postgresql_url):
    engine = create_database_engine(postgresql_url)
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(text("TRUNCATE conversion_pattern_history"))
    engine.dispose()


def test_history_is_not_replaced(sqlite_url):
    engine = create_database_engine(sqlite_url)
    with write_transaction(engine) as connection:
        connection.execute(insert(tables.clients), CLIENT)
        history = insert(tables.conversion_pattern_history)
        connection.execute(history, PATTERN)
        connection.execute(history.prefix_with("OR REPLACE"), {**PATTERN, "run_id": "other"})
        kept = connection.execute(select(tables.conversion_pattern_history.c.run_id)).all()
    assert kept == [("r",)]
    engine.dispose()


@pytest.mark.parametrize(
    "value", ["2026-01-01 00:00:00", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000000+01", "1"]
)
def test_sqlite_refuses_a_time_that_is_not_utc(sqlite_url, value):
    engine = create_database_engine(sqlite_url)
    with pytest.raises(IntegrityError, match="is_utc"), engine.begin() as connection:
        connection.execute(
            text("INSERT INTO clients (id, created_at) VALUES ('a', :value)"), {"value": value}
        )
    engine.dispose()


@pytest.mark.parametrize("column", ["is_hiring", "employee_count", "als_score", "als_components"])
def test_sqlite_refuses_a_value_of_another_type(sqlite_url, column):
    engine = create_database_engine(sqlite_url)
    with engine.begin() as connection:
        connection.execute(insert(tables.clients), CLIENT)
        connection.execute(insert(tables.leads), LEAD)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        connection.execute(text(f"UPDATE leads SET {column} = 'yes'"))
    engine.dispose()


def test_a_naive_time_is_refused(engine):
    with pytest.raises(StatementError, match="has no zone"), engine.begin() as connection:
        connection.execute(
            insert(tables.clients),
            {"id": "a", "created_at": datetime(2026, 1, 1)},  # noqa: DTZ001
        )


# PostgreSQL and the fixed width hold the years 1 to 9999; a day is left for the zones.
instants = st.datetimes(
    datetime(1, 1, 2),  # noqa: DTZ001
    datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=st.timezones(),
)


@given(instants, instants)
def test_text_order_is_time_order(first, second):
    earlier, later = sorted((first.astimezone(UTC), second.astimezone(UTC)))
    assert tables.sqlite_time(earlier) <= tables.sqlite_time(later)
    assert len(tables.sqlite_time(first)) == 27
    assert datetime.fromisoformat(tables.sqlite_time(first)) == first.astimezone(UTC)


def test_times_come_back_in_utc(engine):
    zone = timezone(timedelta(hours=5, minutes=45))
    moment = datetime(2026, 7, 1, 4, 5, 6, 789, tzinfo=zone)
    with write_transaction(engine) as connection:
        connection.execute(insert(tables.clients), {"id": "a", "created_at": moment})
        found = connection.execute(select(tables.clients.c.created_at)).scalar_one()
    assert found == moment
    assert found.tzinfo is UTC
