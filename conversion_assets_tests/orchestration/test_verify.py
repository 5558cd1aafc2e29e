"""`verify` finds what was tampered with, and the commands it prints mend it."""

import json
import os
import shlex
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from conversion_assets.cli.launching import launch_learning
from conversion_assets.cli.shell import run
from conversion_assets.refresh.verify import Difference, list_mends
from conversion_assets.settings import load_settings
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine
from conversion_assets.storage.importer import import_frames
from conversion_assets_tests.homes import CLIENTS, SMALL, make_home
from conversion_assets_tests.orchestration.conftest import clear_environment

ONE = CLIENTS[0]


@pytest.fixture(scope="module")
def base_home(tmp_path_factory):
    """A home whose patterns are learned as of now; copy it before changing anything.

    The printed commands learn as of now, so the leads must be of these days.
    """
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    # Nobody lends to others: a change of one client then concerns no other.
    config = SMALL.model_copy(update={"as_of": today, "pool_opt_in": 0.0})
    folder = make_home(tmp_path_factory.mktemp("learned") / "home", config)
    with pytest.MonkeyPatch.context() as patch:
        clear_environment(patch)
        patch.setenv("CONVERSION_HOME", str(folder))
        launch_learning(load_settings())
    return folder


@pytest.fixture
def verify(capsys):
    """Run `verify --json`: exit status and document."""

    def call(*more):
        capsys.readouterr()
        status = run(["verify", "--json", *more])
        return status, json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def mend(capsys):
    """Run every command that a verification printed, each once, as a person would."""

    def call(document):
        commands = list_mends(Difference(**one) for one in document["differences"])
        for command in commands:
            program, *arguments = shlex.split(command)
            assert program == "conversion-assets"
            assert run(arguments) == 0, capsys.readouterr().err
        return commands

    return call


def edit(home, *statements):
    with closing(sqlite3.connect(home / "conversion.db")) as database, database:
        database.execute("PRAGMA foreign_keys = ON")
        for statement in statements:
            database.execute(statement)


def manifest(home):
    path = home / "store" / "manifest.json"
    return path, json.loads(path.read_text())


def change_manifest(home, change):
    path, written = manifest(home)
    change(written)
    path.write_text(json.dumps(written))


def file_of(home, table, client=ONE):
    store = FeatureStore(home / "store")
    counted = store.count_clients(store.load_manifest(), table)
    [path] = counted.filter(pl.col("client_id") == client)["path"].to_list()
    return home / "store" / path


def delete_a_file(home):
    file_of(home, "touch_features").unlink()


def change_a_byte(home):
    path = file_of(home, "lead_features")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut_a_file(home):
    path = file_of(home, "lead_features")
    path.write_bytes(path.read_bytes()[:-10])


def change_a_count(home):
    def change(written):
        written["clients"][ONE]["leads"] += 1

    change_manifest(home, change)


def break_the_manifest(home):
    manifest(home)[0].write_text('{"format_version": 1, "revision"')


def forget_a_column(home):
    change_manifest(home, lambda written: written["columns"]["lead_features"].pop("seniority"))


def remove_the_store(home):
    shutil.rmtree(home / "store")


def move_the_watermark_ahead(home):
    def change(written):
        epoch, position = written["watermark"]["source"].rsplit("/", 1)
        written["watermark"]["source"] = f"{epoch}/{int(position) + 1000}"

    change_manifest(home, change)


def skip_changes(home):
    """Rows that came, and a watermark that says they were read."""
    edit(
        home,
        f"DELETE FROM leads WHERE client_id = '{ONE}' AND id IN"
        f" (SELECT id FROM leads WHERE client_id = '{ONE}' ORDER BY id LIMIT 3)",
    )

    def change(written):
        epoch, _ = written["watermark"]["source"].rsplit("/", 1)
        with closing(sqlite3.connect(home / "conversion.db")) as database:
            value = database.execute("SELECT value FROM change_counter").fetchone()[0]
        written["watermark"]["source"] = f"{epoch}/{value + 1}"

    change_manifest(home, change)


def leave_an_orphan(home):
    path = home / "store" / "lead_features" / "b00-0123456789abcdef.parquet"
    path.write_bytes(b"PAR1")
    os.utime(path, (0, 0))


def drop_a_history_row(home):
    with closing(sqlite3.connect(home / "conversion.db")) as database, database:
        name = "conversion_pattern_history_keep_delete"
        sql = database.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        database.execute(f"DROP TRIGGER {name}")
        database.execute(
            f"DELETE FROM conversion_pattern_history WHERE client_id = '{ONE}'"
            " AND pattern_type = 'who'"
        )
        database.execute(sql[0])


def drop_a_current_row(home):
    edit(home, f"DELETE FROM conversion_patterns WHERE client_id = '{ONE}'")


def change_a_document(home):
    edit(
        home,
        "UPDATE conversion_patterns SET patterns = json_set(patterns, '$.sample_size', 7)"
        f" WHERE client_id = '{ONE}' AND pattern_type = 'when'",
    )


def change_a_document_everywhere(home):
    with closing(sqlite3.connect(home / "conversion.db")) as database, database:
        name = "conversion_pattern_history_keep_update"
        sql = database.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        database.execute(f"DROP TRIGGER {name}")
        for table in ("conversion_patterns", "conversion_pattern_history"):
            database.execute(
                f"UPDATE {table} SET patterns = json_set(patterns, '$.conversions', 1)"
                f" WHERE client_id = '{ONE}' AND pattern_type = 'how'"
            )
        database.execute(sql[0])


def change_a_lead(home):
    edit(home, f"UPDATE leads SET industry = 'Mining' WHERE client_id = '{ONE}'")


def change_a_zone(home):
    edit(home, f"UPDATE clients SET timezone = 'Asia/Tokyo' WHERE id = '{ONE}'")


def forget_the_outcomes(home):
    edit(home, f"DELETE FROM pattern_outcomes WHERE client_id = '{CLIENTS[1]}'")


def pretend_other_code(home):
    edit(home, f"UPDATE pattern_outcomes SET code_version = 'old' WHERE client_id = '{ONE}'")


def forecast_without_a_document(home):
    names = (
        "client_id, cell, pattern_type, dimension, value, unit, rate, rate_low, rate_high,"
        " strength, lift, lift_low, lift_high, base_rate, delay_days, horizon_days, due_as_of,"
        " code_version, run_id, made_as_of"
    )
    edit(
        home,
        f"INSERT INTO pattern_forecasts ({names}) VALUES ('{ONE}', 'x', 'who', 'd', 'v', 'lead',"
        " .1, .1, .1, 1, 1, 1, 1, .1, 1, 28, '2025-01-29T00:00:00.000000Z', 'c', 'r',"
        " '2025-01-01T00:00:00.000000Z')",
    )


FEATURES = "conversion-assets rebuild features"
HISTORY = f"conversion-assets rebuild history --client {ONE}"
LEARN = f"conversion-assets learn --client {ONE}"

TAMPERINGS = [
    (delete_a_file, "files_are_whole", FEATURES),
    (change_a_byte, "files_are_whole", FEATURES),
    (cut_a_file, "files_are_whole", FEATURES),
    (change_a_count, "manifest_counts_match", FEATURES),
    (break_the_manifest, "store_is_readable", FEATURES),
    (forget_a_column, "columns_are_of_this_code", FEATURES),
    (remove_the_store, "features_are_there", FEATURES),
    (move_the_watermark_ahead, "watermark_is_of_this_database", FEATURES),
    (skip_changes, "counts_match", FEATURES),
    (leave_an_orphan, "files_are_named", FEATURES),
    (drop_a_history_row, "current_is_newest_of_history", HISTORY),
    (drop_a_current_row, "current_is_newest_of_history", HISTORY),
    (forecast_without_a_document, "forecasts_belong_to_a_version", HISTORY),
    (change_a_document, "current_is_newest_of_history", HISTORY),
    (change_a_document_everywhere, "documents_are_as_recorded", LEARN),
    (change_a_lead, "features_are_up_to_date", LEARN),
    (change_a_zone, "features_are_up_to_date", LEARN),
    (forget_the_outcomes, "active_clients_are_learned", LEARN.replace(ONE, CLIENTS[1])),
    (pretend_other_code, "patterns_are_of_this_code", LEARN),
]


def files_of(home):
    return {
        path.relative_to(home): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and "dagster" not in path.parts and not path.name.startswith("conv")
    }


def test_nothing_differs_after_learning_and_nothing_is_written(home, verify):
    before = files_of(home)
    status, document = verify("--deep")
    assert (status, document["differences"], document["notes"]) == (0, [], [])
    assert document["clients"] == len(CLIENTS)
    assert document["checked"]["current patterns"] > 0
    assert files_of(home) == before
    with closing(sqlite3.connect(home / "conversion.db")) as database:
        assert database.execute("SELECT count(*) FROM pattern_forecasts").fetchone()[0] >= 0


@pytest.mark.parametrize(
    ("tamper", "check", "command"), TAMPERINGS, ids=[one[0].__name__ for one in TAMPERINGS]
)
def test_a_tampering_is_found_and_the_printed_command_mends_it(
    home, verify, mend, tamper, check, command
):
    tamper(home)
    status, document = verify()
    assert status == 1
    found = {(one["check"], one["mend"]) for one in document["differences"]}
    assert (check, command) in found
    if "learn" not in command:  # those are mended together, below
        assert command in mend(document)
        # Features that are right again may show that patterns are not.
        left = {one["check"] for one in verify()[1]["differences"]}
        assert left <= {"patterns_are_of_these_rows"}


@pytest.mark.slow
def test_what_learning_mends_is_mended_by_one_command(home, verify, mend):
    for tamper, _, command in TAMPERINGS:
        if "learn" in command:
            tamper(home)
    skip_changes(home)
    _, document = verify()
    assert mend(document) == [FEATURES, f"{LEARN} --client {CLIENTS[1]}"]
    status, document = verify("--deep")
    assert (status, document["differences"]) == (0, [])


def test_other_clients_are_not_accused(home, verify):
    change_a_document(home)
    _, document = verify()
    assert {one["client_id"] for one in document["differences"]} == {ONE}
    assert verify("--client", CLIENTS[1])[0] == 0
    assert verify("--client", ONE)[0] == 1


def test_deep_finds_what_counts_cannot(home, verify):
    """A changed row whose number says that it was read."""
    with closing(sqlite3.connect(home / "conversion.db")) as database, database:
        sql = database.execute(
            "SELECT sql FROM sqlite_master WHERE name = 'leads_number_update'"
        ).fetchone()
        database.execute("DROP TRIGGER leads_number_update")
        database.execute(f"UPDATE leads SET source = 'elsewhere' WHERE client_id = '{ONE}'")
        database.execute(sql[0])
    assert verify()[0] == 0
    status, document = verify("--deep", "--client", ONE)
    assert status == 1
    assert {one["check"] for one in document["differences"]} == {"features_are_those_of_the_rows"}


def test_rows_of_unknown_clients_and_unknown_partitions_are_told(home, verify, mend):
    edit(home, f"UPDATE clients SET deleted_at = '2026-01-01T00:00:00.000000Z' WHERE id = '{ONE}'")
    status, document = verify()
    assert status == 1
    assert "clients_are_known" in {one["check"] for one in document["differences"]}
    for _ in range(2):
        mend(document)
        status, document = verify()
    assert document["differences"] == []


@pytest.mark.slow
def test_learning_as_of_an_earlier_moment_is_not_taken_for_a_changed_document(home, verify):
    moment = (datetime.now(UTC) - timedelta(days=14)).isoformat()
    assert run(["learn", "--client", ONE, "--as-of", moment]) == 0
    _, document = verify()
    # It is an earlier look at the same client, which the current patterns did not know of.
    assert {one["check"] for one in document["differences"]} <= {"patterns_are_of_these_rows"}


def test_an_unknown_client_is_status_6_in_one_line(home, capsys):
    assert run(["verify", "--client", "nobody"]) == 6
    assert capsys.readouterr().err == "error: there is no client 'nobody'\n"


def test_quarantine_is_a_note(home, verify):
    engine = create_database_engine(f"sqlite:///{home}/conversion.db")
    wrong = pl.DataFrame(
        {
            "id": ["x"],
            "client_id": ["nobody"],
            "status": ["new"],
            "created_at": ["2026-01-01T00:00:00Z"],
        }
    )
    import_frames(engine, leads=wrong, quarantine_dir=home / "quarantine")
    engine.dispose()
    status, document = verify()
    assert status == 0
    assert document["checked"]["quarantined rows"] == 1
    assert "1 rows wait" in document["notes"][0]


def test_the_table_is_for_people(home, capsys):
    change_a_document(home)
    assert run(["verify"]) == 1
    out, err = capsys.readouterr()
    assert "1 differences" in out
    assert "to mend everything:" in err
    assert f"    {HISTORY}\n" in err
