"""The heartbeat on real state: each thing that can fall silent, and the command's exit status."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from dagster._daemon.types import DaemonHeartbeat
from sqlalchemy import update

from conversion_assets.cli.shell import run
from conversion_assets.orchestration.instance import open_instance
from conversion_assets.orchestration.ticks import WATCHED, find_late_daemons
from conversion_assets.refresh.health import check_health
from conversion_assets.settings import load_settings
from conversion_assets.storage import tables
from conversion_assets.storage.database import create_database_engine, migrate, write_transaction
from conversion_assets.storage.outbox import Outbox
from conversion_assets_tests.alerting import message
from conversion_assets_tests.homes import VARIABLES
from conversion_assets_tests.integration.storage.test_health import add_clients, plant

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class Home:
    """A home in which everything happened a moment ago; tests make single things old."""

    def __init__(self):
        self.settings = load_settings()
        url = self.settings.database_url.get_secret_value()
        self.settings.home.mkdir(parents=True, exist_ok=True)
        migrate(url)
        self.engine = create_database_engine(url)
        self.now = datetime.now(UTC)
        plant(self.engine, "a", as_of=self.now - HOUR)
        plant(self.engine, "b", as_of=self.now - HOUR)
        self.check(self.now)
        self.tick(self.now)

    def check(self, now):
        health = self.settings.health.model_copy(update={"stale_after_days": 400})
        check_health(self.engine, now=now, config=health, channels=["slack"])

    def tick(self, now, names=WATCHED):
        with open_instance(self.settings) as instance:
            for name in names:
                beat = DaemonHeartbeat(now.timestamp(), name, "daemon-id", [])
                instance.add_daemon_heartbeat(beat)

    def set_learned(self, client, **values):
        table = tables.pattern_outcomes
        with write_transaction(self.engine) as connection:
            connection.execute(update(table).where(table.c.client_id == client).values(values))


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONVERSION_HOME", str(tmp_path / "home"))
    home = Home()
    yield home
    home.engine.dispose()


@pytest.fixture
def beat(capsys):
    def beat(*options):
        status = run(["heartbeat", "--json", *options])
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] == (status == 0)
        return status, sorted({problem.split(":")[0] for problem in told["problems"]})

    return beat


def test_a_home_in_which_everything_happened_lives(home, beat):
    assert beat() == (0, [])


def test_learning_that_did_not_succeed_in_its_window(home, beat):
    old = home.now - 9 * DAY
    home.set_learned("a", computed_at=old)
    assert beat() == (0, [])  # one client of two is its own trouble
    home.set_learned("b", outcome="failed")
    assert beat() == (1, ["learning"])
    assert beat("--learning-days", "10") == (0, [])
    home.set_learned("b", outcome="not_enough_data")
    assert beat() == (0, [])


def test_clients_nobody_learns_for_are_not_missed(home, beat):
    home.set_learned("a", computed_at=home.now - 9 * DAY)
    home.set_learned("b", computed_at=home.now - 9 * DAY)
    with write_transaction(home.engine) as connection:
        connection.execute(update(tables.clients).values(is_paused=True))
    add_clients(home.engine, "no conversion yet")
    assert beat() == (0, [])


def test_a_health_check_that_did_not_end_in_its_window(home, beat):
    home.check(home.now - 26 * HOUR)
    assert beat() == (1, ["health"])
    assert beat("--health-hours", "27") == (0, [])
    # A check of some clients is not the daily one.
    check_health(home.engine, now=home.now, config=home.settings.health, channels=["slack"],
                 client_ids=["a"])  # fmt: skip
    assert beat() == (1, ["health"])


@pytest.mark.parametrize("name", WATCHED)
def test_each_daemon_whose_tick_is_late(home, beat, name):
    home.tick(home.now - 6 * MINUTE, [name])
    assert beat() == (1, ["daemon"])
    assert beat("--daemon-minutes", "10") == (0, [])
    with open_instance(home.settings) as instance:
        (line,) = find_late_daemons(instance, home.now, 5)
    assert name in line


def test_alerts_that_wait_too_long(home, beat):
    outbox = Outbox(home.engine)
    outbox.enqueue([message(1)], ["slack"], home.now - 59 * MINUTE)
    assert beat() == (0, [])
    outbox.enqueue([message(2)], ["email"], home.now - 61 * MINUTE)
    assert beat() == (1, ["alerts"])
    assert beat("--outbox-minutes", "90") == (0, [])


def test_a_channel_that_refuses_everything_is_told_at_once(home, beat):
    outbox = Outbox(home.engine)
    outbox.enqueue([message(1)], ["slack"], home.now)
    outbox.acquire("slack", "me", "hash", home.now, home.now + HOUR)
    waiting = outbox.next_message("slack")
    outbox.postpone("slack", "me", waiting.row_id, now=home.now, until=home.now + HOUR,
                    reason="HTTP 404", is_blocked=True)  # fmt: skip
    assert beat() == (1, ["alerts"])


def test_a_message_refused_for_good_is_told_for_a_week(home, beat):
    outbox = Outbox(home.engine)
    for number, days in enumerate((8, 6)):
        outbox.enqueue([message(number)], ["slack"], home.now - days * DAY)
        waiting = outbox.next_message("slack")
        outbox.mark_refused("slack", waiting.row_id, home.now - days * DAY, "too long")
        assert beat()[0] == int(days < 7)


def test_what_cannot_be_asked_is_silent(home, beat):
    with write_transaction(home.engine) as connection:
        connection.exec_driver_sql("DROP TABLE alert_outbox")
    assert beat()[0] == 1


def test_a_home_that_does_not_exist_is_silent(home, beat, monkeypatch, tmp_path):
    monkeypatch.setenv("CONVERSION_DATABASE_URL", f"sqlite:///{tmp_path}/nowhere/conversion.db")
    assert beat()[0] == 1
