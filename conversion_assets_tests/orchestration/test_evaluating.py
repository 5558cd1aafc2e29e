"""Commands that look back, on a home that learned twice: one JSON document, statuses, no writes."""

import json
from datetime import timedelta

import pytest

from conversion_assets.cli.shell import run
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets_tests.homes import AS_OF, dump_learned, make_home
from conversion_assets_tests.orchestration.conftest import clear_environment

CONFIG = SyntheticConfig(
    clients=2, leads=1200, base_conversion=0.25, seed=4, pool_opt_in=0.0, as_of=AS_OF
)
FIRST = AS_OF - timedelta(weeks=14)
BEFORE_ALL = AS_OF - timedelta(weeks=200)


@pytest.fixture(scope="module")
def learned_home(tmp_path_factory):
    """Two clients, learned by the command at two moments; no test below changes it."""
    folder = make_home(tmp_path_factory.mktemp("learned"), CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        clear_environment(patch)
        patch.setenv("CONVERSION_HOME", str(folder))
        for moment in (FIRST, AS_OF):
            assert run(["learn", "--as-of", moment.isoformat(), "--json"]) == 0
    return folder


@pytest.fixture
def call(learned_home, monkeypatch, capsys):
    clear_environment(monkeypatch)
    monkeypatch.setenv("CONVERSION_HOME", str(learned_home))

    def call(*arguments):
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


pytestmark = pytest.mark.slow


def test_evaluate_prints_the_record_as_one_document_and_stores_nothing(call, learned_home):
    before = dump_learned(learned_home)
    status, out, _ = call("evaluate", "--weeks", 0, "--as-of", AS_OF.isoformat(), "--json")
    document = json.loads(out)
    assert status == 0
    assert set(document) == {"as_of", "record", "drift"}
    assert document["as_of"] == AS_OF.isoformat()
    summary, claims = document["record"]["summary"], document["record"]["claims"]
    # The claims of fourteen weeks ago are graded by now.
    assert summary["claims"] >= summary["graded"] > 0
    assert summary["inside"] is None or 0 <= summary["inside"] <= 1
    assert {claim["client_id"] for claim in claims} <= {"client-0001", "client-0002"}
    assert all(claim["status"] in ("holds", "fades", "lost", "too_few") for claim in claims)
    assert dump_learned(learned_home) == before


def test_evaluate_replays_the_weeks_of_one_client(call):
    arguments = ("evaluate", "--client", "client-0002", "--weeks", 3, "--as-of", AS_OF.isoformat())
    status, out, _ = call(*arguments, "--json")
    document = json.loads(out)
    assert status == 0
    assert document["backtest"]["weeks"] == 3
    assert {row["client_id"] for row in document["backtest"]["clients"]} <= {"client-0002"}
    assert {row["client_id"] for row in document["backtest"]["claims"]} <= {"client-0002"}
    assert {row["client_id"] for row in document["record"]["claims"]} <= {"client-0002"}
    # The replay has no clock and no chance in it.
    assert call(*arguments, "--json")[1] == out


def test_evaluate_never_looks_past_its_moment(call):
    """A day after the first refresh nothing is graded, whatever is known by now."""
    then = (FIRST + timedelta(days=1)).isoformat()
    status, out, _ = call("evaluate", "--weeks", 0, "--as-of", then, "--json")
    summary = json.loads(out)["record"]["summary"]
    assert status == 0
    assert summary["claims"] > 0
    assert summary["graded"] == 0


def test_evaluate_for_people(call):
    status, out, err = call("evaluate", "--weeks", 2, "--as-of", AS_OF.isoformat())
    assert status == 0
    for words in ("forecasts stored here", "replay of 2 weeks", "weakest first"):
        assert words in out
    assert "drift:" in err


def test_diff_splits_the_change_into_steps(call, learned_home):
    before = dump_learned(learned_home)
    moments = ("--from", FIRST.isoformat(), "--to", AS_OF.isoformat())
    status, out, _ = call("diff", "client-0001", *moments, "--json")
    document = json.loads(out)
    assert status == 0
    assert set(document) == {"client_id", "from", "to", "steps", "cells", "drift", "notes"}
    assert (document["from"], document["to"]) == (FIRST.isoformat(), AS_OF.isoformat())
    steps = [row["step"] for row in document["steps"]]
    assert len(steps) == len(set(steps)) >= 4
    turned = [row for row in document["cells"] if row["verdict_from"] != row["verdict_to"]]
    # Fourteen weeks of new leads move something, and every change has a cause that is a step.
    assert turned
    assert {row["decided_by"] for row in turned} <= set(steps)
    assert dump_learned(learned_home) == before


def test_diff_for_people(call):
    moments = ("--from", FIRST.isoformat(), "--to", AS_OF.isoformat())
    status, out, _ = call("diff", "client-0001", *moments)
    assert status == 0
    assert "verdicts changed" in out
    assert "→" in out


@pytest.mark.parametrize(
    ("arguments", "status", "hint"),
    [
        (["evaluate", "--client", "nobody"], 6, "nobody"),
        (["evaluate", "--weeks", "-1"], 2, "--weeks"),
        (["evaluate", "--weeks", "soon"], 2, "--weeks"),
        (["evaluate", "--as-of", "2026-01-04T00:00:00"], 2, "--as-of"),
        (["evaluate", "--as-of", "yesterday"], 2, "--as-of"),
        (["diff"], 2, "CLIENT"),
        (["diff", "client-0001", "--from", FIRST.isoformat()], 2, "--to"),
        (["diff", "client-0001", "--from", "x", "--to", AS_OF.isoformat()], 2, "--from"),
        (["diff", "nobody", "--from", FIRST.isoformat(), "--to", AS_OF.isoformat()], 6, "nobody"),
        (["diff", "client-0001", "--from", BEFORE_ALL.isoformat(), "--to", AS_OF.isoformat()],
         6, "client-0001"),
        (["diff", "client-0001", "--from", AS_OF.isoformat(), "--to", AS_OF.isoformat()], 2, ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("as_json", [False, True])
def test_what_cannot_be_done_is_one_line_and_a_status(call, arguments, status, hint, as_json):
    found, out, err = call(*arguments, *(["--json"] if as_json else []))
    assert (found, out) == (status, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert hint in err


def test_evaluate_where_nothing_was_learned(call, tmp_path, monkeypatch):
    """Imported, never learned: no features yet."""
    folder = make_home(tmp_path, SyntheticConfig(clients=1, leads=30))
    monkeypatch.setenv("CONVERSION_HOME", str(folder))
    status, out, err = call("evaluate", "--json")
    assert (status, out) == (6, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
