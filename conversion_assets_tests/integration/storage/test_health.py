"""Findings and their messages: told once, kept quiet, closed once; on both databases."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select, update

from conversion_assets.domain.config import HealthConfig
from conversion_assets.domain.errors import InputError, NotFoundError
from conversion_assets.domain.health import HealthFinding
from conversion_assets.domain.patterns import Outcome
from conversion_assets.domain.terms import HealthRule, PatternType, Severity
from conversion_assets.refresh.health import HEALTH_HEARTBEAT, check_health
from conversion_assets.storage import tables
from conversion_assets.storage.database import write_transaction
from conversion_assets.storage.health import (
    acknowledge_findings,
    list_open_findings,
    load_heartbeats,
    record_findings,
)
from conversion_assets.storage.patterns import PatternRepository
from conversion_assets_tests.documents import AS_OF, document

NOW = datetime(2026, 3, 2, 6, tzinfo=UTC)
DAY = timedelta(days=1)
CONFIG = HealthConfig()


def add_clients(engine, *names, **columns):
    with write_transaction(engine) as connection:
        rows = [{"id": name, "created_at": AS_OF - 400 * DAY} | columns for name in names]
        connection.execute(insert(tables.clients), rows)


def finding(client="a", rule=HealthRule.EXPIRED, severity=Severity.HIGH, kind=PatternType.WHO):
    return HealthFinding(client, kind, rule, severity, f"{rule} it is", {"days_left": -1.0})


def low(client="a"):
    return finding(client, HealthRule.LOW_SAMPLE, Severity.MEDIUM)


def record(engine, findings, now=NOW, checked=("a",), config=CONFIG, **changes):
    with write_transaction(engine) as connection:
        return record_findings(
            connection, checked, findings, now=now, config=config,
            channels=changes.pop("channels", ["slack"]), **changes,
        )  # fmt: skip


def told(recorded):
    return [(str(m.kind), m.client_id, [str(ln.rule) for ln in m.lines]) for m in recorded.messages]


@pytest.fixture
def home(engine):
    add_clients(engine, "a", "b")
    return engine


def test_one_message_with_all_findings_then_quiet_then_one_end(home):
    assert told(record(home, [finding(), low()])) == [("opened", "a", ["expired", "low_sample"])]
    assert told(record(home, [finding(), low()], NOW + DAY)) == []
    assert told(record(home, [finding(), low()], NOW + 2 * DAY)) == []
    assert told(record(home, [], NOW + 3 * DAY)) == [("resolved", "a", ["expired", "low_sample"])]
    assert told(record(home, [], NOW + 4 * DAY)) == []
    assert list_open_findings(home) == []


def test_what_is_only_medium_is_told_once_without_reminders(home):
    assert told(record(home, [low()])) == [("opened", "a", ["low_sample"])]
    assert told(record(home, [low()], NOW + 30 * DAY)) == []
    assert told(record(home, [], NOW + 31 * DAY)) == [("resolved", "a", ["low_sample"])]


def test_medium_findings_can_be_kept_to_the_list(home):
    quiet = HealthConfig(alert_severity="high")
    assert told(record(home, [low()], config=quiet)) == []
    assert [f.line.rule for f in list_open_findings(home)] == ["low_sample"]
    assert told(record(home, [], NOW + DAY, config=quiet)) == []
    both = record(home, [finding(), low()], NOW + 2 * DAY, config=quiet)
    assert told(both) == [("opened", "a", ["expired", "low_sample"])]
    mild = record(home, [low()], NOW + 3 * DAY, config=quiet)
    assert told(mild) == [("resolved", "a", ["expired"])]


def test_an_end_waits_for_the_last_of_the_client(home):
    failed = finding(rule=HealthRule.FAILED)
    record(home, [finding(), failed])
    assert told(record(home, [failed], NOW + DAY)) == []
    assert told(record(home, [], NOW + 2 * DAY)) == [("resolved", "a", ["expired", "failed"])]


def test_a_new_finding_is_told_with_those_that_are_open(home):
    record(home, [finding()])
    again = record(home, [finding(), finding(rule=HealthRule.FAILED)], NOW + DAY)
    assert told(again) == [("opened", "a", ["expired", "failed"])]


def test_a_finding_that_flaps_before_its_end_was_told_is_not_told_again(home):
    failed = finding(rule=HealthRule.FAILED)
    record(home, [finding(), failed])
    record(home, [failed], NOW + DAY)
    assert told(record(home, [finding(), failed], NOW + 2 * DAY)) == []


def test_a_finding_that_comes_back_after_its_end_is_new(home):
    record(home, [finding()])
    record(home, [], NOW + DAY)
    assert told(record(home, [finding()], NOW + 2 * DAY)) == [("opened", "a", ["expired"])]
    (open_now,) = list_open_findings(home)
    assert open_now.line.first_seen_at == NOW + 2 * DAY


def test_a_finding_that_grows_worse_is_told(home):
    record(home, [low()])
    worse = finding(rule=HealthRule.LOW_SAMPLE)
    assert told(record(home, [worse], NOW + DAY)) == [("opened", "a", ["low_sample"])]
    assert told(record(home, [worse], NOW + 2 * DAY)) == []


def test_still_open_is_told_again_after_days_unless_acknowledged(home):
    record(home, [finding()])
    assert told(record(home, [finding()], NOW + 6.9 * DAY)) == []
    assert told(record(home, [finding()], NOW + 7 * DAY)) == [("still_open", "a", ["expired"])]
    assert told(record(home, [finding()], NOW + 8 * DAY)) == []
    assert acknowledge_findings(home, [finding().finding_id], NOW + 9 * DAY) == 1
    assert acknowledge_findings(home, [finding().finding_id], NOW + 9 * DAY) == 0
    assert told(record(home, [finding()], NOW + 30 * DAY)) == []
    assert told(record(home, [], NOW + 31 * DAY)) == [("resolved", "a", ["expired"])]


def test_only_what_is_open_can_be_acknowledged(home):
    record(home, [finding()])
    with pytest.raises(NotFoundError, match="no open finding"):
        acknowledge_findings(home, [finding().finding_id, "nonsense"], NOW)
    assert list_open_findings(home)[0].acknowledged_at is None


def test_clients_that_were_not_checked_keep_their_findings(home):
    record(home, [finding("a"), finding("b")], checked=["a", "b"])
    assert record(home, [], NOW + DAY, checked=["b"]).resolved == 1
    assert [f.line.client_id for f in list_open_findings(home)] == ["a"]
    with pytest.raises(InputError, match="'b'"):
        record(home, [finding("b")], NOW + DAY, checked=["a"])


def test_a_client_that_left_is_closed_and_told_why(home):
    record(home, [finding()])
    recorded = record(home, [], NOW + DAY, checked=[], departed=["a"])
    assert told(recorded) == [("resolved", "a", ["expired"])]
    assert "no longer active" in recorded.messages[0].lines[0].message


def test_many_at_once_are_one_digest_and_nothing_is_lost(engine):
    names = [f"c{i:04}" for i in range(1000)]
    add_clients(engine, *names)
    found = [finding(name) for name in names] + [low(name) for name in names]
    recorded = record(engine, found, checked=names, channels=["slack", "email"])
    (digest,) = recorded.messages
    assert digest.client_id is None
    assert {line.client_id for line in digest.lines} == set(names)
    assert len(digest.lines) == 2000
    with engine.connect() as connection:
        rows = connection.execute(select(tables.alert_outbox)).all()
    assert [row.channel for row in rows] == ["slack", "email"]
    assert len(list_open_findings(engine)) == 2000
    assert [m.kind for m in record(engine, [], NOW + DAY, checked=names).messages] == ["resolved"]
    assert list_open_findings(engine) == []


def test_a_check_that_breaks_off_leaves_neither_finding_nor_message(home):
    def break_off():
        with write_transaction(home) as connection:
            record_findings(
                connection, ["a"], [finding()], now=NOW, config=CONFIG, channels=["slack"]
            )
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert list_open_findings(home) == []
    with home.connect() as connection:
        assert connection.execute(select(tables.alert_outbox)).all() == []


def test_two_checks_at_once_tell_it_once(home):
    counts = []

    def work(seconds):
        recorded = record(home, [finding()], NOW + timedelta(seconds=seconds))
        counts.append(len(recorded.messages))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == [0, 0, 0, 0, 0, 1]


def plant(engine, name, *, conversions=12, as_of=AS_OF, outcome="found", kinds=tuple(PatternType)):
    """A client with leads, touches, documents and outcomes."""
    add_clients(engine, name)
    with write_transaction(engine) as connection:
        connection.execute(
            insert(tables.leads),
            [
                {"id": f"l{i}", "client_id": name, "status": "converted", "converted_at": as_of,
                 "created_at": as_of - 30 * DAY}
                for i in range(conversions)
            ],
        )  # fmt: skip
        connection.execute(
            insert(tables.activities),
            [{"id": "x", "client_id": name, "lead_id": "l0", "action": "email_sent",
              "occurred_at": as_of}],
        )  # fmt: skip
    PatternRepository(engine).store_client(
        name,
        {kind: document(kind, name, as_of) for kind in kinds},
        [Outcome(client_id=name, pattern_type=t, outcome=outcome) for t in PatternType],
        as_of=as_of, computed_at=as_of, run_id="r", code_version="1", input_fingerprint="f",
        validity_days=14,
    )  # fmt: skip


def check(engine, now=NOW, **changes):
    return check_health(engine, now=now, config=CONFIG, channels=["slack"], **changes)


def rules(done):
    return {(f.client_id, f.pattern_type, str(f.rule)) for f in done.findings}


def test_planted_faults_are_found_end_to_end(engine):
    plant(engine, "good")
    plant(engine, "old", as_of=AS_OF - 20 * DAY)
    plant(engine, "gap", kinds=tuple(PatternType)[:3])
    plant(engine, "broken", outcome="failed")
    add_clients(engine, "idle", "paused")
    with write_transaction(engine) as connection:
        connection.execute(
            insert(tables.leads).values(
                id="l", client_id="idle", status="converted", converted_at=NOW, created_at=NOW
            )
        )
    done = check(engine)
    assert done.client_ids == ["broken", "gap", "good", "idle", "old"]
    assert rules(done) == {
        *(("old", kind, "expired") for kind in PatternType),
        ("old", None, "stale_source"),
        ("gap", PatternType.HOW, "missing_pattern"),
        *(("broken", kind, "failed") for kind in PatternType),
        *(("idle", kind, "no_result") for kind in PatternType),
    }
    assert {m.client_id for m in done.recorded.messages} == {"old", "broken", "idle", "gap"}
    assert load_heartbeats(engine) == {HEALTH_HEARTBEAT: NOW}
    assert check(engine, NOW + DAY).recorded.messages == []


def test_a_document_that_somebody_spoiled_is_found(engine):
    plant(engine, "a")
    where = (tables.conversion_patterns.c.client_id == "a") & (
        tables.conversion_patterns.c.pattern_type == "who"
    )
    with write_transaction(engine) as connection:
        connection.execute(
            update(tables.conversion_patterns).where(where).values(
                patterns='{"recommended_weights": {"data_quality": 0.6, "authority": 0.02,'
                ' "company_fit": 0.2, "timing": "x"}, "data_notes": 3}'
            )
        )  # fmt: skip
    found = {(str(f.rule), f.subject) for f in check(engine).findings}
    assert found == {
        ("invalid_document", ""),
        ("extreme_weight", "data_quality"),
        ("extreme_weight", "authority"),
        ("invalid_weights", ""),
    }


def test_some_clients_only(engine):
    plant(engine, "a", as_of=AS_OF - 20 * DAY)
    plant(engine, "b", as_of=AS_OF - 20 * DAY)
    assert check(engine, client_ids=["b"]).client_ids == ["b"]
    assert load_heartbeats(engine) == {}
    with pytest.raises(NotFoundError, match="'nobody'"):
        check(engine, client_ids=["b", "nobody"])


def test_a_client_that_is_paused_is_no_longer_checked_and_closed(engine):
    plant(engine, "a", as_of=AS_OF - 20 * DAY)
    check(engine)
    with write_transaction(engine) as connection:
        connection.execute(update(tables.clients).values(is_paused=True))
    done = check(engine, NOW + DAY)
    assert done.client_ids == []
    assert told(done.recorded)[0][:2] == ("resolved", "a")
    assert list_open_findings(engine) == []
