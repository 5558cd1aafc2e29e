"""`ui` on the demonstration home, driven in a real browser.

With SCREENSHOTS=docs/images in the environment the pictures of the documentation are taken anew.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, DagsterRunStatus
from playwright.sync_api import Page, expect

from conversion_assets_tests.browser import (
    PATIENCE_MS,
    browser_page,
    find_chrome,
    take_picture,
)

pytestmark = pytest.mark.slow

WHO = AssetKey("who_patterns")
SECRET = "xoxb-very-secret"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CONVERSION_", "DAGSTER_"))
    }
    return {
        **kept,
        "CONVERSION_HOME": str(tmp_path_factory.mktemp("demo")),
        "SLACK_WEBHOOK_URL": f"https://hooks.example/{SECRET}",
    }


@pytest.fixture(scope="module")
def demo(environment):
    """The demonstration home and what `demo --json` said of it."""
    done = subprocess.run(
        [sys.executable, "-m", "conversion_assets.cli", "demo", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def url(demo, environment):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "conversion_assets.cli", "ui", "--port", str(port)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        lines = iter(process.stderr.readline, "")
        assert any("Dagster UI: " in line for line in lines)
        yield f"http://127.0.0.1:{port}"
        children = list_children(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    assert children
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def list_children(pid: int) -> list[int]:
    """Every living descendant of a process."""
    found = []
    waiting = [pid]
    while waiting:
        tasks = Path(f"/proc/{waiting.pop()}/task")
        below = [
            int(child)
            for task in (tasks.iterdir() if tasks.exists() else [])
            for child in (task / "children").read_text().split()
        ]
        found += below
        waiting += below
    return found


@pytest.fixture
def page():
    if find_chrome() is None:
        # The README promises `make test` on a machine without a browser; CI installs one.
        pytest.skip("no Chromium found: set CHROME to one or install Debian's chromium")
    with browser_page() as page:
        yield page


@contextmanager
def opened(environment, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", f"{environment['CONVERSION_HOME']}/dagster")
    with DagsterInstance.from_config(os.environ["DAGSTER_HOME"]) as instance:
        yield instance


def wait_for_run(instance, count):
    """Wait until there are so many runs and all are finished; return the newest."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline:
        runs = instance.get_runs()
        if len(runs) >= count and all(run.is_finished for run in runs):
            assert len(runs) == count
            return runs[0]
        time.sleep(0.5)
    raise AssertionError(f"no {count} finished runs: {[run.status for run in instance.get_runs()]}")


def open_partition(page: Page, url: str, partition: str) -> None:
    page.goto(f"{url}/assets/who_patterns?view=partitions&partition={partition}")
    expect(page.get_by_text("Materialized (8)")).to_be_visible()


def count_materializations(instance, partition):
    records = instance.fetch_materializations(WHO, limit=1000).records
    return sum(record.partition_key == partition for record in records)


def test_the_graph_is_shown(page, url):
    page.set_viewport_size({"width": 1500, "height": 1300})
    page.goto(f"{url}/asset-groups")
    expect(page.get_by_text("patterns").last).to_be_visible()
    page.wait_for_timeout(3000)
    page.get_by_text("Hide navigation").click()
    page.keyboard.press("Alt+KeyE")
    for name in ("activities", "touch_features", "who_patterns", "how_patterns"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    take_picture(page, "asset-graph.png")


def test_one_client_is_materialized_from_the_ui(page, url, environment, monkeypatch):
    with opened(environment, monkeypatch) as instance:
        before = instance.get_runs_count()
        open_partition(page, url, "demo-bluegum")
        page.get_by_role("button", name="Materialize").first.click()
        page.get_by_role("button", name="Launch 1 run").click()
        run = wait_for_run(instance, before + 1)
        assert run.status is DagsterRunStatus.SUCCESS
        assert run.tags["dagster/partition"] == "demo-bluegum"
        assert count_materializations(instance, "demo-bluegum") == 2
        assert count_materializations(instance, "demo-cascade") == 1


def test_all_clients_are_materialized_from_the_ui_in_one_run(page, url, environment, monkeypatch):
    with opened(environment, monkeypatch) as instance:
        before = instance.get_runs_count()
        open_partition(page, url, "demo-bluegum")
        page.get_by_role("button", name="Materialize").first.click()
        page.get_by_role("button", name="All", exact=True).click()
        page.get_by_role("button", name="Launch").click()
        run = wait_for_run(instance, before + 1)
        assert run.status is DagsterRunStatus.SUCCESS
        assert count_materializations(instance, "demo-cascade") == 2
        assert instance.get_materialized_partitions(WHO) == {
            row["client_id"]
            for row in json_rows(environment)
            if row["outcome"] in ("found", "none_found")
        }


def json_rows(environment):
    """Outcomes of WHO as the database has them."""
    code = (
        "import json; from conversion_assets.storage.database import create_database_engine as e;"
        "from conversion_assets.storage.patterns import PatternRepository as R;"
        f"f = R(e('sqlite:///{environment['CONVERSION_HOME']}/conversion.db')).outcomes();"
        "print(json.dumps(f.filter(pattern_type='who')"
        ".select('client_id', 'outcome').to_dicts()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def test_a_materialization_shows_evidence_findings_and_a_plot(page, url):
    page.set_viewport_size({"width": 1500, "height": 1250})
    open_partition(page, url, "demo-bluegum")
    expect(page.get_by_text("base_rate_interval")).to_be_visible()
    plot = page.get_by_role("img", name="lift")
    expect(plot).to_be_visible()
    assert plot.evaluate("image => image.naturalWidth") > 300
    expect(page.get_by_role("cell", name="act", exact=True).first).to_be_visible()
    page.get_by_text("Hide navigation").click()
    take_picture(page, "pattern.png")


def test_the_ui_shows_no_secret(page, url):
    texts = []
    page.on("response", lambda response: texts.append(read(response)))
    for path in ("/deployment/config", "/runs", "/asset-groups", "/locations"):
        page.goto(url + path)
        page.wait_for_timeout(2500)
    assert any("conversion_assets" in text for text in texts)
    assert not [text for text in texts if SECRET in text]


def read(response):
    if "/graphql" not in response.url:
        return ""
    try:
        return response.text()
    except Exception:
        return ""  # the page moved on before the answer was read
