"""Backfills on both databases: what they write, what they leave, kills, rivals, other tenants."""

import json
import random
import shutil
import signal
import sys
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

import polars as pl
import pytest
from sqlalchemy import insert, text, update

from conversion_assets.domain.backfills import BackfillStage, BackfillState
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.errors import ConflictError, InputError, NotFoundError
from conversion_assets.domain.terms import PatternType
from conversion_assets.refresh import backfill as backfills
from conversion_assets.refresh.backfill import BackfillTools, backfill_client, plan_backfill
from conversion_assets.refresh.features import refresh_features
from conversion_assets.refresh.patterns import refresh_patterns
from conversion_assets.refresh.scoring import score_leads
from conversion_assets.storage import tables
from conversion_assets.storage.backfills import LEASE, BackfillLedger, BackfillRequest
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine, write_transaction
from conversion_assets_tests.backfilling import (
    CLIENT,
    describe_result,
    generate_half_complete,
    import_agency,
    is_past,
    run_child,
)
from conversion_assets_tests.homes import AS_OF

OTHER = "client-0002"
ALL = list(BackfillStage)
CONTENT, SCORE, DETECTORS = ALL


@pytest.fixture(scope="session")
def agency():
    return generate_half_complete(220, clients=2)


@pytest.fixture
def world(engine, agency, tmp_path):
    """Engine and store of two clients without snapshots and scores."""
    import_agency(engine, agency, tmp_path / "quarantine")
    return engine, FeatureStore(tmp_path / "store")


def tools_of(world, **more):
    return BackfillTools(
        *world, LearningConfig(), partial(datetime.now, UTC), page_activities=300, **more
    )


def backfill(world, client_id=CLIENT, stages=ALL, **more):
    return backfill_client(
        tools_of(world, **more), client_id=client_id, stages=stages, run_id="r", as_of=AS_OF
    )


def count(engine, condition, table="activities"):
    with engine.connect() as connection:
        return connection.execute(
            text(f"SELECT count(*) FROM {table} WHERE {condition}")
        ).scalar_one()


def dump(engine, client_id):
    columns = {"activities": "id, content_snapshot, metadata, change_id",
               "leads": "id, als_score, change_id"}  # fmt: skip
    with engine.connect() as connection:
        return [
            connection.execute(
                text(f"SELECT {names} FROM {table} WHERE client_id = :c ORDER BY id"),
                {"c": client_id},
            ).all()
            for table, names in columns.items()
        ]


def documents(engine, client_id=CLIENT):
    query = "SELECT pattern_type, patterns FROM conversion_patterns WHERE client_id = :c ORDER BY 1"
    with engine.connect() as connection:
        return connection.execute(text(query), {"c": client_id}).all()


def test_a_backfill_does_all_that_the_plan_said_and_touches_nobody_else(world):
    engine, _ = world
    other = dump(engine, OTHER)
    plan = plan_backfill(tools_of(world), client_id=CLIENT, stages=ALL, as_of=AS_OF)
    assert count(engine, "1 = 1", "backfills") == 0
    report = backfill(world)
    record = report.record
    assert record.state is BackfillState.DONE
    content, score, detectors = (record.progress[stage] for stage in ALL)
    assert content.done == content.total == count(engine, f"client_id = '{CLIENT}'") > 1000
    planned = dict(plan[CONTENT].counts)
    assert content.counts == {"rebuilt": planned.pop("to rebuild"), **planned}
    assert set(planned) == {"no metadata", "no text"}
    assert score.counts == {"scored": plan[SCORE].total}
    assert plan[SCORE].total == count(engine, f"client_id = '{CLIENT}'", "leads")
    assert sum(detectors.counts.values()) == detectors.done == len(PatternType)
    mine = f"client_id = '{CLIENT}'"
    assert count(engine, f"{mine} AND content_snapshot IS NOT NULL") == content.counts["rebuilt"]
    assert count(engine, f"{mine} AND als_components IS NULL", "leads") == 0
    assert all(one.after is None for one in record.progress.values())
    assert dump(engine, OTHER) == other
    assert documents(engine)


def test_a_second_backfill_changes_nothing(world):
    engine, store = world
    backfill(world)
    rows, result = dump(engine, CLIENT), describe_result(engine, store)
    second = backfill(world).record
    assert second.progress[CONTENT].counts.get("rebuilt") == 0
    assert second.progress[SCORE].total == 0
    assert dump(engine, CLIENT) == rows
    again = describe_result(engine, store)
    assert {k: v for k, v in again.items() if k != "ledger"} == {
        k: v for k, v in result.items() if k != "ledger"
    }


def test_existing_snapshots_and_rows_changed_meanwhile_are_left_alone(world, monkeypatch):
    engine, _ = world
    with write_transaction(engine) as connection:
        ids = connection.execute(
            text("SELECT id FROM activities WHERE client_id = :c AND action = 'email_sent' "
                 "AND metadata IS NOT NULL ORDER BY lead_id, id LIMIT 2"), {"c": CLIENT}
        ).scalars().all()  # fmt: skip
        own = update(tables.activities).where(tables.activities.c.client_id == CLIENT)
        connection.execute(own.where(tables.activities.c.id == ids[0]).values(
            content_snapshot='{"body": "mine"}'))  # fmt: skip
    rebuild = backfills.rebuild_snapshots

    def meddle(*frames):
        monkeypatch.setattr(backfills, "rebuild_snapshots", rebuild)
        with write_transaction(engine) as connection:
            connection.execute(own.where(tables.activities.c.id == ids[1]).values(
                metadata='{"body": "corrected"}'))  # fmt: skip
        return rebuild(*frames)

    monkeypatch.setattr(backfills, "rebuild_snapshots", meddle)
    record = backfill(world, stages=[CONTENT]).record
    assert record.progress[CONTENT].counts["changed meanwhile"] == 1
    query = "SELECT content_snapshot FROM activities WHERE client_id = :c AND id = :i"
    with engine.connect() as connection:
        kept, left = (
            connection.execute(text(query), {"c": CLIENT, "i": one}).scalar_one() for one in ids
        )
    assert "mine" in str(kept)
    assert left is None
    assert backfill(world, stages=[CONTENT]).record.progress[CONTENT].counts["rebuilt"] == 1


def test_each_stage_can_be_left_out(world):
    engine, _ = world
    backfill(world, stages=[SCORE])
    assert count(engine, "content_snapshot IS NOT NULL") == 0
    assert count(engine, f"client_id = '{CLIENT}' AND scored_at IS NULL", "leads") == 0
    assert not documents(engine)
    with pytest.raises(InputError, match="nothing to do"):
        backfill(world, stages=[])
    with pytest.raises(NotFoundError, match="nobody"):
        backfill(world, client_id="nobody")
    with pytest.raises(NotFoundError, match="nobody"):
        plan_backfill(tools_of(world), client_id="nobody", stages=ALL)


def test_full_and_incremental_learning_and_a_backfill_give_the_same_documents(world, tmp_path):
    engine, store = world
    first = FeatureStore(tmp_path / "first")
    refresh_features(engine, first)  # of the rows before the backfill
    backfill(world)
    expected = documents(engine)

    def learn(of):
        refresh_features(engine, of)
        with write_transaction(engine) as connection:
            connection.execute(text("DELETE FROM conversion_patterns"))
            connection.execute(text("DELETE FROM pattern_outcomes"))
        refresh_patterns(
            engine, of, client_ids=[CLIENT], kinds=list(PatternType), as_of=AS_OF, run_id="l",
            config=LearningConfig(), now=partial(datetime.now, UTC),
        )  # fmt: skip
        return documents(engine)

    assert learn(FeatureStore(tmp_path / "anew")) == expected
    assert learn(first) == expected
    fingerprints = {
        one.load_manifest().clients[CLIENT].fingerprint
        for one in (store, first, FeatureStore(tmp_path / "anew"))
    }
    assert len(fingerprints) == 1


def test_snapshots_change_no_feature_and_events_change_only_their_lead(world):
    engine, store = world
    score_leads(engine, now=AS_OF)
    refresh_features(engine, store)
    before = store.load_manifest().clients
    backfill(world, stages=[CONTENT])
    assert not refresh_features(engine, store).changed_client_ids
    activities, leads = tables.activities.c, tables.leads.c
    touches = store.read("touch_features", [CLIENT])
    lead, gone = touches["lead_id"].unique().sort()[:2]
    late = {"id": "late", "client_id": CLIENT, "lead_id": lead, "action": "sms_sent",
            "occurred_at": AS_OF, "metadata": '{"body": "late"}'}  # fmt: skip
    corrected = touches.filter(touches["lead_id"] == lead)["activity_id"][0]
    for statement, moved in (
        (insert(tables.activities).values(late), lead),
        (update(tables.activities).where(activities.client_id == CLIENT, activities.id == corrected)
         .values(channel="fax"), lead),
        (update(tables.leads).where(leads.client_id == CLIENT, leads.id == gone)
         .values(deleted_at=AS_OF), gone),
    ):  # fmt: skip
        old = store.read("touch_features", [CLIENT])
        with write_transaction(engine) as connection:
            connection.execute(statement)
        backfill(world, stages=[CONTENT])
        assert refresh_features(engine, store).changed_client_ids == [CLIENT]
        new = store.read("touch_features", [CLIENT])
        changed = {row[1] for row in set(old.rows()).symmetric_difference(new.rows())}
        assert changed == {moved}
    after = store.load_manifest().clients
    assert after[OTHER] == before[OTHER]


def learn(world):
    """Documents of both clients after an incremental refresh."""
    engine, store = world
    refresh_features(engine, store)
    refresh_patterns(
        engine, store, client_ids=[CLIENT, OTHER], kinds=list(PatternType), as_of=AS_OF,
        run_id="l", config=LearningConfig(), now=partial(datetime.now, UTC),
    )  # fmt: skip
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT client_id, pattern_type, patterns FROM conversion_patterns")
        )
        return {
            (client, kind): json.loads(found) if isinstance(found, str) else found
            for client, kind, found in rows
        }


def cells_of(found, counts=("n", "k")):
    """Counts of every estimate of a document, by its place."""
    cells = {}

    def walk(part, place):
        if isinstance(part, dict) and "lift_interval" in part:
            cells[(*place, str(part["value"]))] = tuple(part[name] for name in counts)
        elif isinstance(part, dict):
            for name, inner in part.items():
                walk(inner, (*place, name))
        elif isinstance(part, list):
            for inner in part:
                walk(inner, place)

    walk(found, ())
    return cells


def test_events_change_the_documents_only_where_they_should(world, tmp_path):
    """A late touch, a corrected one, a deleted lead: as if each had been known from the start."""
    engine, store = world
    backfill(world, stages=[CONTENT])
    before = learn(world)
    old = AS_OF - timedelta(days=150)
    touches = store.read("touch_features", [CLIENT]).filter(
        pl.col("lead_converted_at").is_null(), pl.col("occurred_at").is_between(
            AS_OF - timedelta(days=300), old))  # fmt: skip
    lead, gone = touches["lead_id"].unique().sort()[:2]
    last = touches.filter(pl.col("lead_id") == lead)["occurred_at"].max()
    corrected = touches.filter(pl.col("lead_id") == lead)["activity_id"][0]
    activities, leads = tables.activities.c, tables.leads.c
    of_client = activities.client_id == CLIENT
    events = {
        "late": insert(tables.activities).values(
            id="late", client_id=CLIENT, lead_id=lead, action="linkedin_sent",
            channel="linkedin", occurred_at=last + timedelta(days=2),
        ),
        "corrected": update(tables.activities).where(of_client, activities.id == corrected)
        .values(channel="fax"),
        "deleted": update(tables.leads).where(leads.client_id == CLIENT, leads.id == gone)
        .values(deleted_at=AS_OF),
    }  # fmt: skip
    changed = {}
    for name, statement in events.items():
        with write_transaction(engine) as connection:
            connection.execute(statement)
        after = learn(world)
        assert after == learn((engine, FeatureStore(tmp_path / name)))  # all computed anew
        for kind in PatternType:
            assert after[OTHER, kind] == before[OTHER, kind]
        cells = {
            kind: (cells_of(before[CLIENT, kind]), cells_of(after[CLIENT, kind]))
            for kind in PatternType
        }
        changed[name] = {
            kind: {place for place in was.keys() | now.keys() if was.get(place) != now.get(place)}
            for kind, (was, now) in cells.items()
        }
        sizes = before[CLIENT, "who"]["sample_size"], after[CLIENT, "who"]["sample_size"]
        assert sizes[1] - sizes[0] == (-1 if name == "deleted" else 0)
        before = after
    # A touch says nothing of who a lead is, nor has this one content.
    assert not changed["late"][PatternType.WHO]
    assert not changed["late"][PatternType.WHAT]
    assert changed["late"][PatternType.WHEN]
    assert ("multi_channel",) in {place[:1] for place in changed["late"][PatternType.HOW]}
    assert not changed["corrected"][PatternType.WHO]
    # Its day and hour stay; what is stratified by channel is compared with others, not recounted.
    days = {place for place in changed["corrected"][PatternType.WHEN] if place[0] == "best_days"}
    assert not days
    assert any("fax" in place[-1] for place in changed["corrected"][PatternType.HOW])
    assert changed["deleted"][PatternType.WHO]


def test_two_at_once_one_is_refused_until_the_lease_ends(world):
    engine, _ = world
    now = [datetime(2026, 2, 1, tzinfo=UTC)]
    ledger = BackfillLedger(engine, lambda: now[0])

    def request(owner, **more):
        given = {"client_id": CLIENT, "stages": ALL, "as_of": None, "code_version": "v",
                 "run_id": owner} | more  # fmt: skip
        return BackfillRequest(**given, owner=owner)

    lease = ledger.begin(request("a:1:x"))
    with pytest.raises(ConflictError, match="is at work since 2026-02-01 00:00:00 UTC"):
        ledger.begin(request("b:1:x"))
    ledger.begin(request("b:1:y", client_id=OTHER))
    now[0] += LEASE - timedelta(seconds=1)
    ledger.beat(lease)
    now[0] += timedelta(seconds=2)
    with pytest.raises(ConflictError, match="wait for it to end"):
        ledger.require_free(CLIENT, lambda _: False)
    taken = ledger.begin(request("b:1:x"), lambda owner: owner == "a:1:x")
    assert (taken.backfill_id, taken.as_of) == (lease.backfill_id, lease.as_of)
    # Whoever lost the lease can store nothing more.
    for late in (
        lambda: ledger.beat(lease),
        lambda: ledger.finish(lease, {}),
    ):
        with pytest.raises(ConflictError, match="taken over"):
            late()
    ledger.fail(lease, "too late to be told")
    assert ledger.load(lease.backfill_id).state is BackfillState.RUNNING
    ledger.fail(taken, "broke")
    assert ledger.load(taken.backfill_id).state is BackfillState.FAILED
    # Other options, other code, another moment, or a day later: a new one.
    other = ledger.begin(request("c:1:x", stages=[CONTENT]))
    assert other.backfill_id != taken.backfill_id
    assert ledger.load(taken.backfill_id).state is BackfillState.GIVEN_UP
    now[0] += LEASE
    assert ledger.load(other.backfill_id).state is BackfillState.INTERRUPTED
    newer = ledger.begin(request("d:1:x", stages=[CONTENT], code_version="w"))
    now[0] += timedelta(days=1, seconds=1)
    newest = ledger.begin(request("e:1:x", stages=[CONTENT], code_version="w"))
    assert len({other.backfill_id, newer.backfill_id, newest.backfill_id}) == 3
    ledger.finish(newest, newest.progress)
    states = [one.state for one in ledger.list_records(CLIENT)]
    assert states == [BackfillState.DONE] + [BackfillState.GIVEN_UP] * 3
    assert [one.client_id for one in ledger.list_records(OTHER)] == [OTHER]


def test_a_stolen_lease_stops_the_work_before_its_next_chunk_is_stored(world, monkeypatch):
    engine, _ = world
    stored = []

    def steal(connection, rows):
        if len(stored) == 2:
            connection.execute(update(tables.backfills).values(lease_owner="thief"))
        stored.append(rows.height)
        return write(connection, rows)

    write = backfills.write_snapshots
    monkeypatch.setattr(backfills, "write_snapshots", steal)
    with pytest.raises(ConflictError, match="taken over"):
        backfill(world, stages=[CONTENT])
    assert count(engine, "content_snapshot IS NOT NULL") == sum(stored[:2])


@pytest.mark.parametrize("fault_at", [0, 3])
def test_an_error_in_between_is_told_and_the_next_attempt_goes_on(
    world, tmp_path, monkeypatch, fault_at
):
    engine, store = world
    rebuild = backfills.rebuild_snapshots
    chunks = []

    def fail_once(*frames):
        if len(chunks) == fault_at:
            raise InputError("planted")
        chunks.append(1)
        return rebuild(*frames)

    with monkeypatch.context() as patch:
        patch.setattr(backfills, "rebuild_snapshots", fail_once)
        with pytest.raises(InputError):
            backfill(world, stages=[CONTENT])
    [record] = BackfillLedger(engine, partial(datetime.now, UTC)).list_records()
    assert (record.state, record.error) == (BackfillState.FAILED, "planted")
    done = backfill(world, stages=[CONTENT]).record
    assert (done.state, done.backfill_id) == (BackfillState.DONE, record.backfill_id)
    found = describe_result(engine, store)["activities"], done.progress[CONTENT].counts
    with write_transaction(engine) as connection:
        connection.execute(text("UPDATE activities SET content_snapshot = NULL"))
    undisturbed = backfill(world, stages=[CONTENT]).record
    expected = describe_result(engine, store)["activities"], undisturbed.progress[CONTENT].counts
    assert found == expected


def test_the_size_of_pages_changes_nothing(engine, tmp_path):
    world = engine, FeatureStore(tmp_path / "store")
    import_agency(engine, generate_half_complete(30), tmp_path / "quarantine")
    assert count(engine, "1 = 1") > 3 * 37
    results = set()
    for page in (1, 37, 100_000):
        tools = replace(tools_of(world), page_activities=page)
        backfill_client(tools, client_id=CLIENT, stages=[CONTENT], run_id="r", as_of=AS_OF)
        results.add(describe_result(*world)["activities"])
        with write_transaction(engine) as connection:
            connection.execute(text("UPDATE activities SET content_snapshot = NULL"))
    assert len(results) == 1


@contextmanager
def fresh(kind, template, request, path):
    """URL of a database of its own."""
    if kind == "postgresql":
        with request.getfixturevalue("postgres_databases").fresh() as url:
            yield url
    else:
        shutil.copyfile(template, path)
        yield f"sqlite:///{path}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
def test_killed_at_random_and_resumed_is_byte_identical(kind, sqlite_template, request, tmp_path):
    """Five kills of 2,000 leads; `make backfill-proof` is the full size, through Dagster."""
    history = generate_half_complete(2000)
    found = {}
    for name in ("undisturbed", "killed"):
        with fresh(kind, sqlite_template, request, tmp_path / f"{name}.db") as url:
            engine, store = create_database_engine(url), FeatureStore(tmp_path / name)
            import_agency(engine, history, tmp_path / "quarantine")
            module = "conversion_assets_tests.backfill_worker"
            command = [sys.executable, "-m", module, url, store.url, "500"]
            if name == "killed":
                moments = random.Random(20260104)
                shares = sorted(moments.uniform(0, 0.9) for _ in range(4))
                for share in [*shares, 2]:
                    code, _, _ = run_child(command, {}, kill_when=partial(is_past, engine, share))
                    assert code == -signal.SIGKILL
            code, _, _ = run_child(command, {})
            assert code == 0
            found[name] = describe_result(engine, store)
            engine.dispose()
    assert found["killed"] == found["undisturbed"]
