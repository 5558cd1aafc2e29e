"""From planted faults to messages: schedules, checks in the UI, alerts, recovery.

One deployment of real processes per storage lives through a Sunday and a Monday.
"""

import json
from datetime import timedelta

import pytest
from playwright.sync_api import expect
from sqlalchemy import func, select

from conversion_assets.storage import tables
from conversion_assets.storage.database import create_database_engine
from conversion_assets_tests.browser import browser_page, find_chrome, take_picture
from conversion_assets_tests.integration.deployment.faults import (
    CLIENTS,
    EXPIRED,
    FAILED,
    FAILING_CHECKS,
    PLANTED,
    import_agency,
    plant_faults,
    poison_learning,
    repair_sources,
)
from conversion_assets_tests.integration.deployment.services import (
    ControlledClock,
    Deployment,
    deployed,
    next_sunday,
    wait_for,
)
from conversion_assets_tests.integration.deployment.slack import read_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DELIVERY_S = 31
"""A little more than the pause between two ticks of the sensor that delivers."""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
def urls(request):
    """Addresses of the system of record and of Dagster's tables; None where embedded."""
    if request.param == "sqlite":
        yield None, None
        return
    databases = request.getfixturevalue("postgres_databases")
    with databases.fresh(migrated=False) as own, databases.fresh(migrated=False) as dagster:
        yield own, dagster


@pytest.fixture
def sunday():
    return next_sunday()


@pytest.fixture
def deployment(urls, sunday, slack, tmp_path):
    clock = ControlledClock(tmp_path / "clock", sunday)
    deployment = Deployment(
        tmp_path, clock, slack_url=slack.url, database_url=urls[0], dagster_url=urls[1]
    )
    engine = create_database_engine(deployment.database_url)
    import_agency(engine, tmp_path, sunday)
    engine.dispose()
    with deployed(deployment):
        yield deployment


@pytest.fixture
def engine(deployment):
    engine = create_database_engine(deployment.database_url)
    yield engine
    engine.dispose()


def test_a_sunday_and_a_monday(deployment, engine, slack, sunday):
    deployment.wait_until_scheduled()
    # The sensor of changed clients finds seven of which nothing is known.
    deployment.wait_for_run("learn_patterns", sunday, "SUCCESS")
    learn_on_sunday(deployment, engine, sunday)
    plant_faults(engine, deployment.clock.now())
    check_on_sunday(deployment, sunday)
    look_at_the_ui(deployment)
    receive_one_message_per_client(deployment, slack)
    repair(deployment, engine)
    check_on_monday(deployment, sunday)
    receive_one_end_per_client(deployment, slack)


def pass_time(deployment, moment):
    """Let a scheduled moment come: the daemon is killed, and back six seconds before it.

    A daemon that is slow to start finds the moment passed, and makes up for it.
    """
    deployment.kill("daemon")
    deployment.clock.move_to(moment - timedelta(seconds=6))
    deployment.start("daemon")


def learn_on_sunday(deployment, engine, sunday):
    due = sunday + timedelta(hours=2)
    poison_learning(engine)
    pass_time(deployment, due)
    run = deployment.wait_for_run("learn_patterns", due)
    assert run["tags"]["dagster/schedule_name"] == "weekly_pattern_learning"
    assert run["tags"]["dagster/run_key"] == f"weekly:{due.isoformat()}"
    # One client failed, so the run says so; all others are stored.
    assert run["status"] == "FAILURE"
    assert run["tags"]["conversion/failed_clients"] == "1"
    table = tables.conversion_pattern_history
    query = select(table.c.client_id, func.count()).group_by(table.c.client_id)
    with engine.connect() as connection:
        versions = dict(map(tuple, connection.execute(query)))
    assert versions == {client: 4 if client == FAILED else 8 for client in CLIENTS}


def check_on_sunday(deployment, sunday):
    due = sunday + timedelta(hours=6)
    check_health(deployment, due)
    for asset, failing in FAILING_CHECKS.items():
        checks = deployment.list_checks(asset)
        states = {name: shown["evaluation"]["success"] for name, shown in checks.items()}
        assert {name for name, passed in states.items() if not passed} == failing, asset


def look_at_the_ui(deployment):
    """In a browser, where there is one: CI has one, and so has the picture of the documentation."""
    if find_chrome() is None:
        return
    with browser_page() as page:
        page.clock.set_system_time(deployment.clock.now())
        page.set_viewport_size({"width": 1500, "height": 760})
        claim = "patterns_have_not_expired"
        page.goto(f"{deployment.url}/assets/who_patterns?view=checks&checkDetail={claim}")
        expect(page.get_by_text("1 of 7 clients")).to_be_visible()
        expect(page.get_by_text("expired 1.2 days ago")).to_be_visible()
        expect(page.get_by_text(EXPIRED).first).to_be_visible()
        failing = FAILING_CHECKS["who_patterns"]
        expect(page.get_by_text("Failed", exact=True)).to_have_count(len(failing) + 1)
        page.get_by_text("Hide navigation").click()
        take_picture(page, "checks.png")


def check_health(deployment, due):
    pass_time(deployment, due)
    run = deployment.wait_for_run("check_pattern_health", due, "SUCCESS")
    assert run["tags"]["dagster/schedule_name"] == "daily_pattern_health"
    assert run["tags"]["dagster/run_key"] == f"daily:{due.isoformat()}"
    assert run["creationTime"] >= due.timestamp()


def deliver(deployment, slack, count):
    """Let the next delivery come, and wait until nothing waits."""
    deployment.clock.advance(DELIVERY_S)
    wait_for(f"{count} messages", lambda: len(slack.messages) >= count)
    (channel,) = wait_for(
        "an empty outbox",
        lambda: [c for c in list_alerts(deployment)["channels"] if not c["waiting"]],
    )
    assert channel["channel"] == "slack"
    assert (channel["sent"], channel["refused"]) == (count, 0)
    assert len(slack.messages) == count


def list_alerts(deployment):
    return json.loads(deployment.run_command("alerts", "list", "--json"))


def receive_one_message_per_client(deployment, slack):
    deliver(deployment, slack, len(PLANTED))
    found = {client: {} for client in PLANTED}
    for one in list_alerts(deployment)["findings"]:
        found[one["client_id"]][one["finding_id"]] = (one["pattern_type"], one["rule"])
    assert {client: set(ids.values()) for client, ids in found.items()} == PLANTED
    by_client = {message["text"].split(":")[0]: message for message in slack.messages}
    assert set(by_client) == set(PLANTED)
    for client, message in by_client.items():
        count = len(found[client])
        assert message["text"] == f"{client}: {count} finding{'s' * (count > 1)} open"
        words = read_text(message)
        assert all(finding_id in words for finding_id in found[client])
        assert all(rule in words for _, rule in PLANTED[client])
        assert f"{deployment.url}/assets/" in words


def repair(deployment, engine):
    repair_sources(engine, deployment.clock.now())
    deployment.run_command("learn")


def check_on_monday(deployment, sunday):
    check_health(deployment, sunday + timedelta(days=1, hours=6))
    for asset in FAILING_CHECKS:
        shown = deployment.list_checks(asset)
        assert all(check["evaluation"]["success"] for check in shown.values()), asset


def receive_one_end_per_client(deployment, slack):
    deliver(deployment, slack, 2 * len(PLANTED))
    ended = slack.messages[len(PLANTED) :]
    assert sorted(message["text"] for message in ended) == [
        f"{client}: resolved" for client in sorted(PLANTED)
    ]
    assert list_alerts(deployment)["findings"] == []
    assert json.loads(deployment.run_command("heartbeat", "--json")) == {"ok": True, "problems": []}
