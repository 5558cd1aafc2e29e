"""The command line as other programs see it: exit statuses, JSON on stdout, one line of error."""

import json
import subprocess
import sys

import pytest

from conversion_assets.cli.shell import run
from conversion_assets.domain.moments import parse_moment
from conversion_assets.domain.patterns import DOCUMENTS
from conversion_assets_tests.documents import AS_OF, document
from conversion_assets_tests.homes import VARIABLES

COMMANDS = [
    "backfill", "check", "demo", "erase", "import", "learn", "list", "migrate", "patterns",
    "rebuild", "schema", "synth", "ui", "verify", "weights",
]  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONVERSION_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def call(capsys):
    """Run a command in this process: status, stdout, stderr."""

    def call(*arguments):
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def files(tmp_path, call):
    assert call("synth", "--out", tmp_path / "data", "--clients", 2, "--leads", 60)[0] == 0
    return {
        name: tmp_path / "data" / f"{name}.parquet" for name in ("clients", "leads", "activities")
    }


def import_all(call, files, *more):
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    return call("import", *options, *more)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_refuses_unknown_options_in_one_line(call, command):
    status, out, _ = call(command, "--help")
    assert status == 0
    assert out.startswith(f"Usage: conversion-assets {command}")
    status, out, err = call(command, "--no-such-option")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_the_help_names_every_command(call):
    status, out, _ = call("--help")
    assert status == 0
    listed = [line.split()[0] for line in out.split("Commands:")[1].strip().splitlines()]
    assert listed == sorted(listed)
    assert set(COMMANDS) <= set(listed)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["nonsense"], "No such command"),
        (["schema", "whom"], "'who', 'what', 'when', 'how'"),
        (["schema"], "TYPE"),
        (["import"], "at least one of clients, leads and activities"),
        (["import", "--clients", "missing.csv"], "does not exist"),
        (["import", "--mapping", __file__], "go together"),
        (["learn", "--as-of", "2026-01-04"], "has no zone"),
        (["learn", "--as-of", "yesterday"], "is not a time"),
        (["learn", "surplus"], "unexpected extra argument"),
        (["patterns"], "CLIENT"),
        (["patterns", "c", "--type", "x"], "--type"),
        (["patterns", "c", "--as-of", "1"], "--as-of"),
        (["synth", "--out", "x", "--clients", "0"], "--clients"),
        (["synth"], "--out"),
        (["ui", "--port", "0"], "--port"),
        (["learn"], "no active client"),
        (["backfill"], "name the CLIENT"),
        (["backfill", "c", "--no-content", "--no-als", "--no-detectors"], "nothing to do"),
        (["backfill", "c", "--as-of", "2026-01-04"], "has no zone"),
    ],
)
def test_a_bad_argument_is_one_line_and_status_2(call, arguments, hint):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert hint in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "command",
    [
        ["patterns", "nobody"],
        ["weights", "nobody"],
        ["backfill", "nobody"],
        ["backfill", "nobody", "--dry-run"],
    ],
)
def test_an_unknown_client_is_status_6(call, command):
    status, out, err = call(*command)
    assert (status, out) == (6, "")
    assert err == "error: there is no client 'nobody'\n"


def test_a_bad_variable_is_one_line_without_its_value(call, monkeypatch):
    monkeypatch.setenv("CONVERSION_DATABASE_URL", "mysql://user:hunter2@host/db")
    for command in (
        ["learn"],
        ["patterns", "c"],
        ["weights", "c"],
        ["migrate"],
        ["list"],
        ["demo"],
    ):
        status, out, err = call(*command)
        assert (status, out) == (2, ""), command
        assert err.startswith("error: CONVERSION_DATABASE_URL: must be sqlite://")
        assert "hunter2" not in err


def test_an_unexpected_error_is_one_line_that_says_how_to_see_more(call, monkeypatch):
    def fail():
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("conversion_assets.cli.service.open_settings", fail)
    status, _, err = call("migrate")
    assert status == 1
    assert err == (
        "error: unexpected RuntimeError: two lines; "
        "for the traceback: conversion-assets --debug ...\n"
    )
    with pytest.raises(RuntimeError):
        run(["--debug", "migrate"])


@pytest.mark.parametrize("kind", list(DOCUMENTS))
def test_a_schema_describes_its_documents(call, kind):
    status, out, _ = call("schema", kind)
    assert status == 0
    schema = json.loads(out)
    assert schema["$schema"].endswith("2020-12/schema")
    written = document(kind).model_dump(mode="json")
    assert set(schema["required"]) <= set(written)
    assert set(written) <= set(schema["properties"])


def test_help_and_schema_load_neither_dagster_nor_polars():
    code = (
        "import sys; from conversion_assets.cli.shell import run; run(['--help']);"
        "run(['schema', 'who']);"
        "loaded = {module.split('.')[0] for module in sys.modules};"
        "print(sorted(loaded & {'dagster', 'polars', 'sqlalchemy'}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stderr.strip() == "[]"


def test_import_reports_its_rows_and_again_changes_nothing(call, files):
    status, out, err = import_all(call, files, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["clients"]["accepted"] == 2
    assert report["leads"] == {"accepted": 120, "rejected": 0, "written": 120}
    assert report["quarantine"] is None
    assert report["reasons"] == {}
    again = json.loads(import_all(call, files, "--json")[1])
    assert again["leads"] == {"accepted": 120, "rejected": 0, "written": 0}


def test_a_dry_run_stores_nothing(call, files):
    assert import_all(call, files, "--dry-run")[0] == 0
    status, _, err = call("learn")
    assert status == 2
    assert "no active client" in err


def test_refused_rows_are_status_3_and_stand_in_quarantine(call, tmp_path, home):
    clients = tmp_path / "clients.csv"
    clients.write_text("id,created_at\na,2026-01-01T00:00:00Z\nb,2026-01-01T00:00:00\n")
    status, out, _ = call("import", "--clients", clients, "--json")
    assert status == 3
    report = json.loads(out)
    assert (report["clients"]["accepted"], report["clients"]["rejected"]) == (1, 1)
    assert report["quarantine"].startswith(str(home / "quarantine"))
    assert sum(report["reasons"]["clients"].values()) == 1


def test_an_unreadable_file_is_status_2_and_stores_nothing(call, files, tmp_path):
    broken = tmp_path / "leads.parquet"
    broken.write_bytes(b"no parquet")
    status, out, err = call("import", "--clients", files["clients"], "--leads", broken)
    assert (status, out) == (2, "")
    assert "leads.parquet" in err
    assert call("weights", "client-0001")[0] == 6


def test_weights_default_for_a_client_without_patterns(call, files):
    import_all(call, files)
    status, out, err = call("weights", "client-0001", "--json")
    assert (status, err) == (0, "")
    answer = json.loads(out)
    assert answer["client_id"] == "client-0001"
    assert answer["source"] == "default"
    assert answer["weights"] == {
        "data_quality": 0.2, "authority": 0.25, "company_fit": 0.25, "timing": 0.15
    }  # fmt: skip
    assert answer["reason"]


def test_a_client_without_patterns_is_status_6(call, files):
    import_all(call, files)
    status, _, err = call("patterns", "client-0001")
    assert status == 6
    assert "has no pattern stored" in err


def test_synth_is_the_same_for_the_same_arguments(call, tmp_path):
    for name in ("a", "b"):
        assert call("synth", "--out", tmp_path / name, "--clients", 1, "--leads", 30)[0] == 0
    for name in ("clients.parquet", "leads.parquet", "activities.parquet", "truth.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    status, out, _ = call(
        "synth", "--out", tmp_path / "c", "--clients", 1, "--leads", 30, "--null", "--json"
    )
    assert status == 0
    assert json.loads(out)["null"] is True
    assert json.loads((tmp_path / "c" / "truth.json").read_text())["null"] is True


def test_migrate_says_the_revision_and_can_be_repeated(call):
    revisions = [json.loads(call("migrate", "--json")[1])["revision"] for _ in range(2)]
    assert revisions[0] == revisions[1]


def test_times_are_read_in_any_zone():
    assert parse_moment("2026-03-01T01:00:00+01:00") == AS_OF
    assert parse_moment("2026-03-01T00:00:00Z") == AS_OF
