"""Scoring of stored leads: the same however it is cut, killed or met by others."""

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from sqlalchemy import insert, select, text, update

from conversion_assets.domain.errors import ConflictError, InputError, NotFoundError
from conversion_assets.refresh import scoring
from conversion_assets.refresh.changes import find_changed_clients
from conversion_assets.refresh.features import refresh_features
from conversion_assets.refresh.scoring import count_unscored, score_leads
from conversion_assets.scoring.lead_score import SCORE_COLUMNS
from conversion_assets.storage import tables
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine, write_transaction
from conversion_assets.storage.importer import import_files
from conversion_assets.storage.sources import open_snapshot, source_version

NOW = datetime(2026, 3, 1, tzinfo=UTC)
T0 = datetime(2025, 1, 1, tzinfo=UTC)
WEIGHTS = {"data_quality": 0.1, "authority": 0.4, "company_fit": 0.2, "timing": 0.15}
PROFILE = '{"industries": ["SaaS"], "countries": ["AU"], "employees": {"highest": 100}}'
TITLES = ["CEO", "VP Sales", None, "Analyst", "Senior Manager"]


@pytest.fixture
def filled(engine):
    """Three clients with 7, 40 and 1 leads."""
    with write_transaction(engine) as connection:
        connection.execute(
            insert(tables.clients),
            [
                {"id": "a", "created_at": T0, "ideal_profile": PROFILE,
                 "als_learned_weights": None},
                {"id": "b", "created_at": T0, "ideal_profile": None,
                 "als_learned_weights": json.dumps(WEIGHTS)},
                {"id": "ü'", "created_at": T0, "ideal_profile": '{"industries": "all"}',
                 "als_learned_weights": None},
            ],
        )  # fmt: skip
        connection.execute(
            insert(tables.leads),
            [
                {"client_id": client, "id": f"l{n}", "status": "new", "created_at": T0,
                 "updated_at": T0, "title": TITLES[n % 5], "industry": "saas",
                 "employee_count": n * 7, "country": "Australia", "is_hiring": n % 2 == 0}
                for client, count in (("a", 7), ("b", 40), ("ü'", 1))
                for n in range(count)
            ],
        )  # fmt: skip
    return engine


def stored(engine, *more):
    """Score columns of all leads, JSON as values."""
    leads = tables.leads.c
    columns = [leads.client_id, leads.id, *(leads[name] for name in (*SCORE_COLUMNS, *more))]
    with engine.connect() as connection:
        rows = connection.execute(select(*columns)).mappings().all()
    return {
        (row["client_id"], row["id"]): {
            name: json.loads(value) if name in ("als_components", "als_weights_used") and value
            else value
            for name, value in row.items()
        }
        for row in rows
    }  # fmt: skip


def change_leads(engine, where, **values):
    with write_transaction(engine) as connection:
        connection.execute(update(tables.leads).where(where).values(**values))


def test_every_lead_gets_its_score_with_weights_and_time(filled):
    report = score_leads(filled, now=NOW)
    assert (report.scored, report.written) == (48, 48)
    assert report.sources == {"client": 1, "default": 2}
    assert report.faults.keys() == {"ü'"}
    assert report.faults["ü'"].startswith(
        "ideal profile: industries: Input should be a valid array"
    )
    rows = stored(filled, "updated_at", "status")
    ceo = rows["a", "l0"]
    assert ceo["als_components"] == {
        "data_quality": 0, "authority": 25, "company_fit": 20, "timing": 5, "risk": 15,
    }  # fmt: skip
    assert ceo["als_weights_used"]["authority"] == 0.25
    assert (ceo["als_score"], ceo["als_tier"], ceo["scored_at"]) == (65.0, "warm", NOW)
    assert rows["b", "l0"]["als_weights_used"] == {**WEIGHTS, "risk": 0.15}
    # No profile: another English-speaking country, and no range.
    assert rows["b", "l0"]["als_components"]["company_fit"] == 7
    # When a failed lead failed, and what state it is in, is not scoring's to say.
    assert {(row["updated_at"], row["status"]) for row in rows.values()} == {(T0, "new")}


@pytest.mark.parametrize("chunk", [1, 3, 8, 1000])
def test_how_leads_are_cut_changes_nothing(filled, chunk):
    seen = []
    report = score_leads(filled, now=NOW, chunk=chunk, progress=lambda *told: seen.append(told))
    assert (report.scored, report.written) == (48, 48)
    assert seen[-1] == (48, 48)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    cut = stored(filled)
    with write_transaction(filled) as connection:
        connection.execute(update(tables.leads).values(als_score=None, scored_at=None))
    score_leads(filled, now=NOW)
    assert stored(filled) == cut


def test_scoring_again_writes_nothing_and_moves_no_watermark(filled):
    score_leads(filled, now=NOW)
    version = source_version(filled, "leads")
    with open_snapshot(filled) as snapshot:
        watermark = snapshot.watermark
    report = score_leads(filled, now=NOW + timedelta(days=1))
    assert (report.scored, report.written) == (48, 0)
    assert source_version(filled, "leads") == version
    if filled.dialect.name == "sqlite":
        with open_snapshot(filled) as snapshot:
            assert snapshot.watermark == watermark


def test_only_what_differs_is_written_and_found_as_changed(filled):
    score_leads(filled, now=NOW)
    change_leads(
        filled, (tables.leads.c.client_id == "a") & (tables.leads.c.id == "l1"), title="CEO"
    )
    with open_snapshot(filled) as snapshot:
        between = snapshot.watermark
    later = NOW + timedelta(days=1)
    assert score_leads(filled, now=later).written == 1
    with open_snapshot(filled) as snapshot:
        changes = snapshot.changes("leads", between)
    # PostgreSQL may list rows of the last transactions again.
    assert ("a", "l1") in changes.rows.select("client_id", "id").rows()
    times = {key: row["scored_at"] for key, row in stored(filled).items()}
    assert [key for key, time in times.items() if time == later] == [("a", "l1")]


def test_new_weights_rescore_their_client_only(filled):
    score_leads(filled, now=NOW)
    before = stored(filled, "change_id")
    with write_transaction(filled) as connection:
        connection.execute(
            tables.clients.update()
            .where(tables.clients.c.id == "b")
            .values(als_learned_weights=json.dumps({**WEIGHTS, "timing": 0.1, "authority": 0.45}))
        )
    assert score_leads(filled, now=NOW).written == 40
    after = stored(filled, "change_id")
    assert all(after[key] == before[key] for key in before if key[0] != "b")


def test_tenants_are_apart(filled):
    before = stored(filled, "change_id")
    report = score_leads(filled, ["a", "a"], now=NOW)
    assert (report.scored, report.written) == (7, 7)
    after = stored(filled, "change_id")
    assert all(after[key] == before[key] for key in before if key[0] != "a")
    with pytest.raises(NotFoundError, match="there is no client 'nobody'"):
        score_leads(filled, ["b", "nobody"], now=NOW)
    assert stored(filled, "change_id") == after
    assert score_leads(filled, [], now=NOW).scored == 0


@pytest.mark.parametrize(
    "broken",
    [
        None, "{}", '{"risk": 15}',
        '{"risk": 15, "timing": 5, "authority": "25", "company_fit": 7, "data_quality": 0}',
        '{"risk": 15, "timing": null, "authority": 25, "company_fit": 7, "data_quality": 0}',
    ],
)  # fmt: skip
def test_only_leads_that_lack_a_component(filled, broken):
    score_leads(filled, now=NOW)
    assert count_unscored(filled, "b", NOW) == 0
    lacking = (tables.leads.c.client_id == "b") & (tables.leads.c.id.in_(["l3", "l5", "l9"]))
    change_leads(filled, lacking, als_components=broken)
    change_leads(filled, tables.leads.c.id == "l4", title="Owner")
    assert count_unscored(filled, "b", NOW) == 3
    report = score_leads(filled, ["b"], now=NOW, only_missing=True, chunk=2)
    assert (report.scored, report.written) == (3, 3)
    assert count_unscored(filled, "b", NOW) == 0
    assert score_leads(filled, ["b"], now=NOW, only_missing=True).scored == 0


def test_leads_of_the_future_deleted_ones_and_newer_scores_are_left(filled):
    leads = tables.leads.c
    own = leads.client_id == "a"
    change_leads(filled, own & (leads.id == "l1"), created_at=NOW + timedelta(seconds=1))
    change_leads(filled, own & (leads.id == "l2"), deleted_at=T0)
    change_leads(filled, own & (leads.id == "l3"), scored_at=NOW + timedelta(days=1), als_score=1.0)
    report = score_leads(filled, ["a"], now=NOW)
    assert report.scored == 4
    rows = stored(filled)
    assert [rows["a", name]["als_score"] for name in ("l1", "l2", "l3")] == [None, None, 1.0]
    # Without components its score is worth nothing, whenever it was made.
    assert score_leads(filled, ["a"], now=NOW, only_missing=True).scored == 1


def test_a_deleted_client_is_scored_only_by_name(filled):
    with write_transaction(filled) as connection:
        connection.execute(
            tables.clients.update().where(tables.clients.c.id == "b").values(deleted_at=T0)
        )
    assert score_leads(filled, now=NOW).scored == 8


def test_a_time_without_zone_is_refused(filled):
    with pytest.raises(InputError, match="has no zone"):
        score_leads(filled, now=datetime(2026, 3, 1))  # noqa: DTZ001 - that is the point
    assert {row["als_score"] for row in stored(filled).values()} == {None}


# -- others at the same time -------------------------------------------------------------------


def test_a_lead_changed_in_between_is_scored_as_it_is_now(filled, monkeypatch):
    reads = []
    real = scoring.read_leads

    def read(*arguments, **options):
        leads = real(*arguments, **options)
        if not reads:
            change = (tables.leads.c.client_id == "a") & (tables.leads.c.id == "l2")
            change_leads(filled, change, title="Founder")
        reads.append(leads)
        return leads

    monkeypatch.setattr(scoring, "read_leads", read)
    report = score_leads(filled, ["a"], now=NOW)
    assert (report.scored, report.written, len(reads)) == (7, 7, 2)
    assert stored(filled)["a", "l2"]["als_components"]["authority"] == 25


def test_leads_that_never_rest_end_with_one_line(filled, monkeypatch):
    real = scoring.read_leads
    titles = iter(["CEO", "CFO", "VP", "Director", "Manager", "Owner"])

    def read(*arguments, **options):
        leads = real(*arguments, **options)
        change_leads(filled, tables.leads.c.client_id == "a", title=next(titles))
        return leads

    monkeypatch.setattr(scoring, "read_leads", read)
    with pytest.raises(ConflictError, match="leads of client 'a' are being changed by others"):
        score_leads(filled, ["a"], now=NOW)


def test_two_scorers_at_once_end_as_one(filled):
    errors = []

    def work():
        try:
            score_leads(filled, now=NOW, chunk=5)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    rows = stored(filled)
    assert score_leads(filled, now=NOW).written == 0
    assert stored(filled) == rows


KILLED = """
import os, signal, sys
from datetime import datetime
from conversion_assets.refresh.scoring import score_leads
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine
def progress(done, total):
    if done >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
score_leads(create_database_engine(sys.argv[1]), now=datetime.fromisoformat(sys.argv[3]), chunk=9,
            progress=progress)
"""


def test_a_killed_scoring_goes_on_and_ends_as_an_undisturbed_one(filled, database_url):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, database_url, "20", NOW.isoformat()], check=False
    )
    assert done.returncode == -9
    some = sum(row["als_score"] is not None for row in stored(filled).values())
    assert 20 <= some < 48
    report = score_leads(filled, now=NOW)
    assert (report.scored, report.written) == (48, 48 - some)
    killed = stored(filled)
    with write_transaction(filled) as connection:
        connection.execute(update(tables.leads).values(als_components=None, scored_at=None))
    score_leads(filled, now=NOW)
    assert stored(filled) == killed


# -- what comes after --------------------------------------------------------------------------


def test_rescoring_asks_for_learning_once_not_for_ever(filled):
    """Learning stores weights; scoring with them changes rows; the rows ask for learning once."""
    with write_transaction(filled) as connection:
        connection.execute(
            update(tables.leads).where(tables.leads.c.id == "l0").values(
                status="converted", converted_at=NOW
            )
        )  # fmt: skip
        connection.execute(
            insert(tables.pattern_outcomes),
            [
                {"client_id": client, "pattern_type": "who", "outcome": "not_enough_data",
                 "as_of": T0, "computed_at": T0, "code_version": "1", "input_fingerprint": "f",
                 "run_id": "r"}
                for client in ("a", "b", "ü'")
            ],
        )  # fmt: skip
    _, cursor = find_changed_clients(filled, None)
    score_leads(filled, now=NOW)
    _, cursor = find_changed_clients(filled, cursor.dump())
    counted = dict(cursor.pending)
    assert counted["b"] >= 40
    # The second look at unchanged scores counts nothing new.
    score_leads(filled, now=NOW + timedelta(days=7))
    _, cursor = find_changed_clients(filled, cursor.dump())
    if filled.dialect.name == "sqlite":
        assert cursor.pending == counted


def test_profiles_come_with_the_clients_file(engine, tmp_path):
    clients = tmp_path / "clients.jsonl"
    rows = [
        {"id": "good", "ideal_profile": {"industries": ["SaaS"], "employees": {"highest": 50}}},
        {"id": "none"},
        {"id": "bad", "ideal_profile": {"employees": "many"}},
    ]
    clients.write_text("\n".join(json.dumps(row) for row in rows))
    leads = tmp_path / "leads.csv"
    leads.write_text(
        "id,client_id,created_at,industry,employee_count,email,email_verified,role_started_at\n"
        "1,good,2025-01-01T00:00:00Z,saas,50,a@b.example,yes,2026-02-01T00:00:00+01:00\n"
        "1,none,2025-01-01T00:00:00Z,saas,50,a@b.example,no,\n"
    )
    report = import_files(engine, clients=clients, leads=leads, quarantine_dir=tmp_path / "q")
    assert report.reasons == {"clients": {"unusable ideal profile": 1}}
    assert score_leads(engine, now=NOW).faults == {}
    components = {key[0]: row["als_components"] for key, row in stored(engine).items()}
    assert components["good"] == {
        "data_quality": 8, "authority": 0, "company_fit": 18, "timing": 6, "risk": 10,
    }  # fmt: skip
    assert components["none"] == {
        "data_quality": 4, "authority": 0, "company_fit": 3, "timing": 0, "risk": 10,
    }  # fmt: skip


def test_features_pick_up_new_scores_and_only_those(filled, tmp_path):
    store = FeatureStore(str(tmp_path / "store"))
    refresh_features(filled, store)
    score_leads(filled, ["a"], now=NOW)
    report = refresh_features(filled, store)
    assert report.changed_client_ids == ["a"]
    features = store.read("lead_features")
    own = features.filter(pl.col("client_id") == "a").sort("lead_id")
    assert own.select("authority", "company_fit", "timing", "tier", "scored_at").row(0) == (
        25.0, 20.0, 5.0, "warm", NOW,
    )  # fmt: skip
    assert features.filter(pl.col("client_id") != "a")["authority"].is_null().all()
    score_leads(filled, ["a"], now=NOW + timedelta(days=1))
    assert refresh_features(filled, store).changed_client_ids == []


def test_the_reader_sees_what_postgresql_and_sqlite_hold_alike(filled):
    """Stored JSON comes back in the very text that scoring writes: a score is known to be equal."""
    score_leads(filled, now=NOW)
    cast = "::text" if filled.dialect.name == "postgresql" else ""
    with filled.connect() as connection:
        rows = connection.execute(
            text(f"SELECT als_components{cast}, als_weights_used{cast} FROM leads")
        ).all()
    frame = pl.DataFrame([tuple(row) for row in rows], orient="row")
    for name in frame.columns:
        assert [json.dumps(json.loads(value)) for value in frame[name]] == frame[name].to_list()
        assert frame[name].str.starts_with('{"risk": ').all()


def test_a_database_that_cannot_be_reached_is_one_line(tmp_path):
    engine = create_database_engine(f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(InputError, match="no such table"):
        score_leads(engine, now=NOW)
