"""`learn` killed at any moment and started again leaves the state of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from dagster import AssetKey, DagsterInstance, DagsterRunStatus

from conversion_assets_tests.homes import AS_OF, CLIENTS, copy_home, dump_learned, poison

SECRETS = {
    "SLACK_WEBHOOK_URL": "https://hooks.example/very-secret-slack",
    "SENTRY_DSN": "https://very-secret-sentry@sentry.example/1",
    "SMTP_URL": "smtps://user:very-secret-smtp@mail.example",
}


def learn(home, *more):
    command = [sys.executable, "-m", "conversion_assets.cli", "learn", "--json"]
    return subprocess.Popen(
        [*command, "--as-of", AS_OF.isoformat(), *more],
        env={**os.environ, "CONVERSION_HOME": str(home), **SECRETS},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def describe_dagster(home, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    with DagsterInstance.from_config(str(home / "dagster")) as instance:
        unfinished = [run for run in instance.get_runs() if not run.is_finished]
        return {
            "partitions": list(instance.get_dynamic_partitions("clients")),
            "unfinished": len(unfinished),
            **{
                kind: instance.get_materialized_partitions(AssetKey(f"{kind}_patterns"))
                for kind in ("who", "what", "when", "how")
            },
        }, instance.get_runs()


def test_the_command_keeps_its_contract_and_secrets_stay_out_of_the_home(home, monkeypatch):
    with learn(home) as process:
        out, err = process.communicate(timeout=180)
    assert (process.returncode, err) == (0, "")
    report = json.loads(out)
    assert set(report) == {"run_id", "clients", "outcomes", "errors", "stages", "duration_s"}
    assert report["clients"] == len(CLIENTS)
    assert report["errors"] == []
    files = [path for path in home.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" and "runs" in path.parts for path in files)
    for path in files:
        assert b"very-secret" not in path.read_bytes(), path
    assert "very-secret" not in out
    state, _ = describe_dagster(home, monkeypatch)
    assert state["unfinished"] == 0


def test_a_failed_client_is_status_4_and_named(home, monkeypatch):
    poison(home, CLIENTS[1])
    with learn(home) as process:
        out, err = process.communicate(timeout=180)
    assert process.returncode == 4
    assert {error["client_id"] for error in json.loads(out)["errors"]} == {CLIENTS[1]}
    assert f"failed: {CLIENTS[1]} who: " in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("attempts", [5, pytest.param(12, marks=pytest.mark.soak)])
def test_a_killed_run_leaves_nothing_behind(home, tmp_path, monkeypatch, attempts):
    undisturbed = copy_home(home, tmp_path / "undisturbed")
    started = time.monotonic()
    with learn(undisturbed) as process:
        assert process.communicate(timeout=180)[1] == ""
    duration = time.monotonic() - started
    expected = dump_learned(undisturbed)
    moments = random.Random(20260104)
    killed = 0
    # Mostly late: the first part of the time goes into loading the code.
    for share in [moments.uniform(0.3, 1.0) for _ in range(attempts)]:
        with learn(home) as process:
            try:
                process.wait(duration * share)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
        # What is stored is a part of the final state: whole clients, none half.
        rows = dump_learned(home)["conversion_patterns"]
        assert set(rows) <= set(expected["conversion_patterns"])
    assert killed >= attempts / 2
    with learn(home) as process:
        _, err = process.communicate(timeout=180)
    assert (process.returncode, err) == (0, "")
    assert dump_learned(home) == expected
    state, runs = describe_dagster(home, monkeypatch)
    assert state == describe_dagster(undisturbed, monkeypatch)[0]
    assert runs[0].status is DagsterRunStatus.SUCCESS
