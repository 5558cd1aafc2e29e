"""The repository: one transaction per client, idempotent, tenants apart, on both databases."""

import json
import sqlite3
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert, select, text, update
from sqlalchemy.exc import DBAPIError, OperationalError

from conversion_assets.domain.errors import InputError, NotFoundError, UnreachableError
from conversion_assets.domain.patterns import Claim, Estimate, Outcome, Weights
from conversion_assets.domain.terms import PatternType
from conversion_assets.storage import tables
from conversion_assets.storage.database import create_database_engine, write_transaction
from conversion_assets.storage.document_text import canonical_json
from conversion_assets.storage.patterns import (
    ClientResults,
    PatternRepository,
    Refresh,
    parse_document,
)
from conversion_assets_tests.documents import AS_OF, document, estimate

WHO, WHAT, WHEN, HOW = PatternType
COMPUTED = datetime(2026, 3, 1, 2, 3, 4, 567891, tzinfo=UTC)
CREATED = datetime(2025, 1, 1, tzinfo=UTC)
LEARNED = Weights(data_quality=0.1, authority=0.4, company_fit=0.2, timing=0.15)


def outcomes(client, kind="found", types=tuple(PatternType), **columns):
    return [Outcome(client_id=client, pattern_type=t, outcome=kind, **columns) for t in types]


def store(repository, client="a", documents=None, results=None, **changes):
    as_of = changes.get("as_of", AS_OF)
    if documents is None:
        documents = {t: document(t, client, as_of) for t in PatternType}
    arguments = {
        "as_of": as_of,
        "computed_at": COMPUTED,
        "run_id": "run-1",
        "code_version": "1",
        "input_fingerprint": "f1",
        "validity_days": 14,
    }
    repository.store_client(
        client, documents, outcomes(client) if results is None else results, **arguments | changes
    )


def recommending(client="a", as_of=AS_OF):
    who = document(WHO, client, as_of)
    evaluation = who.score_evaluation.model_copy(update={"recommended": True})
    return who.model_copy(update={"recommended_weights": LEARNED, "score_evaluation": evaluation})


def everything(engine):
    """All rows of the tables that the repository writes."""
    with engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table))))
            for table in (
                tables.clients,
                tables.conversion_patterns,
                tables.conversion_pattern_history,
                tables.pattern_outcomes,
            )
        }


@pytest.fixture
def repository(engine):
    with write_transaction(engine) as connection:
        connection.execute(
            insert(tables.clients), [{"id": i, "created_at": CREATED} for i in ("a", "b")]
        )
    pauses = []
    repository = PatternRepository(engine, sleep=pauses.append, jitter=lambda: 0.5)
    repository.pauses = pauses
    return repository


def test_stored_documents_come_back_equal(repository):
    store(repository)
    stored = repository.current("a")
    assert list(stored) == list(PatternType)
    for pattern_type, row in stored.items():
        original = document(pattern_type, "a")
        assert row.document == original
        assert canonical_json(row.document) == canonical_json(original)
        assert row.computed_at == COMPUTED
        assert row.valid_until == AS_OF + timedelta(days=14)
        assert (row.code_version, row.input_fingerprint) == ("1", "f1")
    assert list(repository.current("a", HOW)) == [HOW]


def test_settings_come_back_with_the_version_they_made(repository):
    """Also from the history, and none where none were told."""
    one, two = '{"act_q": 0.1}', '{"act_q": 0.05}'
    for days, told in ((0, one), (7, two), (14, None)):
        as_of = AS_OF + timedelta(days=days)
        refresh = Refresh(as_of, as_of, "run", "1", 14, settings=told)
        results = ClientResults("a", {WHO: document(WHO, "a", as_of)}, [], f"f{days}")
        assert repository.store_clients([results], refresh).errors == {}
    found = [
        repository.in_force("a", AS_OF + timedelta(days=days, hours=1))[WHO].settings
        for days in (0, 7, 14)
    ]
    assert [None if text is None else json.loads(text) for text in found] == [
        json.loads(one), json.loads(two), None,
    ]  # fmt: skip


def test_the_same_computation_twice_changes_nothing(repository, engine):
    store(repository, documents={WHO: recommending()})
    before = everything(engine)
    store(repository, documents={WHO: recommending()}, computed_at=COMPUTED + timedelta(hours=1),
          run_id="run-2")  # fmt: skip
    assert everything(engine) == before


def test_a_new_computation_replaces_and_is_kept_in_history(repository, engine):
    store(repository)
    store(repository, code_version="2", computed_at=COMPUTED + timedelta(hours=1))
    assert repository.current("a", WHO)[WHO].code_version == "2"
    history = everything(engine)["conversion_pattern_history"]
    assert len(history) == 8


def test_an_older_refresh_goes_to_history_only(repository, engine):
    store(repository, documents={WHO: recommending()})
    before = everything(engine)
    older = AS_OF - timedelta(days=30)
    who = document(WHO, "a", older).model_copy(update={"sample_size": 7})
    failed = outcomes("a", "failed", (WHO,), error="boom")
    store(repository, documents={WHO: who}, results=failed, as_of=older)
    after = everything(engine)
    assert len(after.pop("conversion_pattern_history")) == 2
    before.pop("conversion_pattern_history")
    assert after == before


def test_documents_in_force_at_a_time(repository):
    first, second = AS_OF, AS_OF + timedelta(days=10)
    store(repository, as_of=first)
    store(repository, as_of=second, documents={WHO: document(WHO, "a", second)})

    def at(time):
        return {t: row.document.as_of for t, row in repository.in_force("a", time).items()}

    assert at(first + timedelta(days=9)) == dict.fromkeys(PatternType, first)
    assert at(second) == {**dict.fromkeys(PatternType, first), WHO: second}
    assert at(first + timedelta(days=14)) == {WHO: second}
    for time_ in (first - timedelta(microseconds=1), second + timedelta(days=14)):
        with pytest.raises(NotFoundError, match="in force at"):
            repository.in_force("a", time_)
    with pytest.raises(InputError, match="no zone"):
        repository.in_force("a", datetime(2026, 1, 1))  # noqa: DTZ001


def test_of_two_computations_as_of_one_moment_the_current_is_in_force(repository):
    one, other = {"code_version": "1"}, {"code_version": "2"}
    for hour, version in enumerate((one, other, one)):
        store(repository, **version, computed_at=COMPUTED + timedelta(hours=hour))
    assert repository.current("a")[WHO].code_version == "1"
    assert repository.in_force("a", AS_OF)[WHO].code_version == "1"


def test_failed_and_missing_types_leave_what_was_stored(repository):
    store(repository)
    later = AS_OF + timedelta(days=7)
    results = [
        *outcomes("a", "failed", (WHO,), error="ValueError: boom"),
        *outcomes("a", "not_enough_data", (WHAT, WHEN, HOW), reason="12 resolved leads"),
    ]
    store(repository, documents={}, results=results, as_of=later, input_fingerprint="f2")
    assert {row.document.as_of for row in repository.current("a").values()} == {AS_OF}
    table = repository.outcomes(["a"])
    assert table["outcome"].to_list() == ["not_enough_data"] * 2 + ["not_enough_data", "failed"]
    assert table.row(3, named=True)["error"] == "ValueError: boom"
    assert table["as_of"].to_list() == [later] * 4
    latest = repository.latest_fingerprints()
    assert latest["pattern_type"].to_list() == ["how", "what", "when"]
    assert set(latest["input_fingerprint"]) == {"f2"}


def test_overviews_are_typed_when_empty(repository):
    assert repository.outcomes().height == 0
    assert str(repository.latest_fingerprints().schema["as_of"]) == (
        "Datetime(time_unit='us', time_zone='UTC')"
    )


def test_learned_weights_move_only_when_recommended(repository):
    store(repository, documents={WHO: document(WHO, "a")})
    inputs = repository.load_weights_inputs("a")
    assert inputs.client_weights is None
    assert inputs.who_document == json.loads(canonical_json(document(WHO, "a")))
    store(repository, documents={WHO: recommending()}, input_fingerprint="f2")
    inputs = repository.load_weights_inputs("a")
    assert inputs.client_weights == LEARNED.model_dump()
    assert inputs.valid_until == AS_OF + timedelta(days=14)
    store(repository, documents={WHO: document(WHO, "a")}, input_fingerprint="f3")
    assert repository.load_weights_inputs("a").client_weights == LEARNED.model_dump()


def test_tenants_are_isolated(repository):
    store(repository, "a")
    with pytest.raises(NotFoundError, match="client 'b' has no pattern stored"):
        repository.current("b")
    with pytest.raises(NotFoundError, match="client 'b' has no who pattern in force"):
        repository.in_force("b", AS_OF, WHO)
    assert repository.load_weights_inputs("b") == (None, None, None)
    with pytest.raises(InputError, match=r"for client 'b', who.* says client 'a'"):
        store(repository, "b", documents={WHO: document(WHO, "a")})
    for call in (
        lambda: repository.current("nobody"),
        lambda: repository.load_weights_inputs("nobody"),
        lambda: store(repository, "nobody"),
    ):
        with pytest.raises(NotFoundError, match="there is no client 'nobody'"):
            call()


def test_one_clients_trouble_is_not_anothers(repository, engine):
    refresh = Refresh(AS_OF, COMPUTED, "run-1", "1", 14)
    nul = estimate("a\0b")
    who = document(WHO, "a").model_copy(update={"industry_rankings": [nul]})
    batch = [
        ClientResults("a", {HOW: document(HOW, "a"), WHO: who}, outcomes("a"), "f"),
        ClientResults("gone", {}, [], "f"),
        ClientResults("b", {WHO: document(WHO, "b")}, outcomes("b"), "f"),
    ]
    report = repository.store_clients(batch, refresh)
    assert report.stored == ["b"]
    assert "holds a NUL" in report.errors["a"]
    assert report.errors["gone"] == "there is no client 'gone'"
    # Nothing half-written stays: not even the document before the bad one.
    with pytest.raises(NotFoundError):
        repository.current("a")
    assert repository.outcomes(["a"]).height == 0


def test_a_transient_fault_is_tried_again(repository, engine):
    faults = [2]

    def break_off(connection, cursor, statement, *_):
        if "INTO pattern_outcomes" in statement and faults[0]:
            faults[0] -= 1
            # The class counts on PostgreSQL, the text on SQLite.
            raise OperationalError(statement, None, sqlite3.OperationalError("database is locked"))

    event.listen(engine, "before_cursor_execute", break_off)
    store(repository)
    assert repository.pauses == [0.4, 0.8]
    assert len(repository.current("a")) == 4
    faults[0] = 99
    with pytest.raises(UnreachableError):
        store(repository, "b")
    assert repository.pauses[2:] == [0.4, 0.8, 1.6]
    event.remove(engine, "before_cursor_execute", break_off)
    with pytest.raises(NotFoundError):
        repository.current("b")


def test_a_backend_killed_in_mid_transaction_is_tried_again(postgresql_url):
    engine = create_database_engine(postgresql_url)
    with write_transaction(engine) as connection:
        connection.execute(insert(tables.clients), {"id": "a", "created_at": CREATED})
    other = create_database_engine(postgresql_url)
    kills = [1]

    def kill(connection, cursor, statement, *_):
        if "INTO pattern_outcomes" in statement and kills[0]:
            kills[0] -= 1
            pid = connection.connection.driver_connection.info.backend_pid
            with other.connect() as rival:
                rival.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

    event.listen(engine, "before_cursor_execute", kill)
    repository = PatternRepository(engine, sleep=lambda _: None)
    store(repository)
    assert kills == [0]
    assert len(repository.current("a")) == 4
    engine.dispose()
    other.dispose()


def test_a_killed_process_leaves_the_old_state(database_url, tmp_path):
    engine = create_database_engine(database_url)
    with write_transaction(engine) as connection:
        connection.execute(insert(tables.clients), {"id": "a", "created_at": CREATED})
    repository = PatternRepository(engine)
    store(repository, documents={WHO: recommending()})
    before = everything(engine)
    script = textwrap.dedent("""
        import os, signal, sys
        from sqlalchemy import event
        from conversion_assets.storage.database import create_database_engine
        from conversion_assets.storage.patterns import PatternRepository
        from conversion_assets_tests.integration.storage.test_patterns import store
        engine = create_database_engine(sys.argv[1])
        def kill(connection, cursor, statement, *_):
            if "INTO pattern_outcomes" in statement:
                os.kill(os.getpid(), signal.SIGKILL)
        event.listen(engine, "after_cursor_execute", kill)
        store(PatternRepository(engine), code_version="2")
    """)
    done = subprocess.run([sys.executable, "-c", script, database_url], check=False)
    assert done.returncode == -9
    time.sleep(0.1)
    assert everything(engine) == before
    store(repository, code_version="2")
    assert repository.current("a", WHO)[WHO].code_version == "2"
    engine.dispose()


def test_confidence_outside_of_its_range_is_refused(repository, engine):
    store(repository, documents={WHO: document(WHO, "a")})
    with pytest.raises(DBAPIError), engine.begin() as connection:
        connection.execute(update(tables.conversion_patterns).values(confidence=1.01))


@pytest.mark.parametrize("value", [r"a\u0000b", "-0.0", "x-0.0 y"])
def test_texts_that_look_like_trouble_are_kept(value):
    how = document(HOW, "a").model_copy(update={"first_touch": [estimate(value)]})
    assert parse_document(HOW, canonical_json(how)) == how


def test_minus_zero_is_zero():
    reversed_ = estimate("x").model_copy(update={"interval": [-0.0, -0.05]})
    how = document(HOW, "a").model_copy(update={"first_touch": [reversed_]})
    assert '"interval":[0.0,-0.05]' in canonical_json(how)


finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
share = st.floats(0, 1)
# What JSON text may hold in either database; a NUL is refused, half a surrogate is no text.
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@st.composite
def estimates(draw):
    return Estimate(
        value=draw(st.one_of(words, st.integers(-(2**53), 2**53), st.booleans(), st.lists(words))),
        n=draw(st.integers(0, 10**9)), k=draw(st.integers(0, 10**9)), unit="touch",
        rate=draw(share), shrunk_rate=draw(share), interval=[draw(finite), draw(finite)],
        lift=draw(positive), lift_interval=[draw(finite), draw(finite)], p_lift=draw(share),
        q_value=draw(share), own_weight=draw(share), borrowed_weight=draw(share), verdict="act",
        naive_lift=draw(st.none() | positive),
        explained_by=draw(st.none() | st.lists(words, max_size=2)),
    )  # fmt: skip


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(estimates(), max_size=3), words, words,
    st.datetimes(datetime(2, 1, 3), datetime(9999, 12, 1), timezones=st.timezones()),  # noqa: DTZ001
)  # fmt: skip
def test_any_document_has_the_same_bytes_on_the_way_back(repository, rows, channel, note, as_of):
    how = document(HOW, "a", as_of)
    how = how.model_copy(update={"channel_by_tier": {channel: rows, note: []}, "first_touch": rows})
    sent = canonical_json(how)
    assert canonical_json(parse_document(HOW, sent)) == sent
    with repository._engine.connect() as connection:
        values = {
            "client_id": "a", "pattern_type": "how", "patterns": sent, "sample_size": 0,
            "confidence": 0.5, "code_version": "1", "input_fingerprint": "f", "run_id": "r",
            "as_of": as_of, "computed_at": as_of, "valid_until": as_of,
        }  # fmt: skip
        connection.execute(insert(tables.conversion_patterns), values)
        row = connection.execute(select(tables.conversion_patterns)).one()
        connection.rollback()
    assert canonical_json(parse_document(row.pattern_type, row.patterns)) == sent
    assert row.as_of == as_of.astimezone(UTC)
    assert row.as_of.tzinfo is UTC


def claiming(as_of, *values):
    who = document(WHO, "a", as_of)
    claims = [Claim(dimension="source_rankings", value=value) for value in values]
    return {WHO: who.model_copy(update={"claims": claims})}


def test_claims_before_are_those_of_the_last_earlier_documents(repository):
    """A refresh starts from what stood before it: never from itself, later ones or others'."""
    for days, values in ((0, ("old",)), (7, ("new", "with \x1f and ü")), (14, ())):
        as_of = AS_OF + timedelta(days=days)
        store(repository, "a", claiming(as_of, *values), as_of=as_of)

    def before(days):
        found = repository.claims_before(["a", "b"], AS_OF + timedelta(days=days))
        return {c: [(kind, claim.value) for kind, claim in claims] for c, claims in found.items()}

    assert before(0) == {}
    assert before(7) == {"a": [(WHO, "old")]}
    assert before(14) == {"a": [(WHO, "new"), (WHO, "with \x1f and ü")]}
    assert before(15) == {"a": []}
    assert repository.claims_before(["b"], AS_OF + timedelta(days=15)) == {}
