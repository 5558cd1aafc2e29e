"""The incremental store against one computed from nothing, whatever happened in between."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, insert, update

from conversion_assets.domain.content import load_vocabulary
from conversion_assets.domain.errors import SuspiciousReadError
from conversion_assets.features import build_features, finish_features
from conversion_assets.refresh import features as feature_refresh
from conversion_assets.refresh.features import refresh_features
from conversion_assets.storage import tables
from conversion_assets.storage.columnar import writer as writing
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine
from conversion_assets.storage.sources import open_snapshot
from conversion_assets_tests.unit.features.reference import utc

CLIENTS = ["c1", "c2", "c3"]
LEADS = ["l1", "l2", "l3"]
TABLES = ("lead_features", "touch_features", "bookings")
START = utc(2024, 3, 30)

client_ids = st.sampled_from(CLIENTS)
moments = st.integers(0, 200).map(lambda hours: START + timedelta(hours=hours))
lead_values = st.fixed_dictionaries(
    {},
    optional={
        "first_name": st.sampled_from([None, "Anna", "Will"]),
        "company_name": st.sampled_from([None, "Acme Inc."]),
        "title": st.sampled_from([None, "CEO"]),
        "timezone": st.sampled_from([None, "Asia/Kolkata", "nowhere"]),
        "status": st.sampled_from(["new", "converted", "dead"]),
        "converted_at": st.none() | moments,
        "deleted_at": st.sampled_from([None, None, START]),
        "source": st.sampled_from([None, "web"]),
    },
)
activity_values = st.fixed_dictionaries(
    {
        "lead_id": st.sampled_from(LEADS),
        "action": st.sampled_from(["email_sent", "sms_sent", "meeting_booked", "email_opened"]),
        "occurred_at": moments,
    },
    optional={
        "content_snapshot": st.sampled_from(
            [None, "{}", '{"body": "Hi Anna, Acme? Worth 15 minutes?"}', '{"subject": "leads"}']
        ),
        "metadata": st.sampled_from([None, '{"message": "hi Will"}']),
        "led_to_booking": st.sampled_from([None, True]),
    },
)
steps = st.one_of(
    st.tuples(st.just("client"), client_ids, st.sampled_from([None, "Europe/Berlin", "UTC"])),
    st.tuples(st.just("client gone"), client_ids, st.sampled_from([None, START])),
    st.tuples(st.just("lead"), client_ids, st.sampled_from(LEADS), lead_values),
    st.tuples(st.just("lead removed"), client_ids, st.sampled_from(LEADS)),
    *[st.tuples(st.just("activity"), client_ids, st.integers(0, 12), activity_values)] * 3,
    st.tuples(st.just("activity removed"), client_ids, st.integers(0, 12)),
    st.just(("refresh",)),
    st.just(("refresh",)),
)


@contextmanager
def world(template: Path) -> Iterator[tuple[Engine, FeatureStore, Path]]:
    with TemporaryDirectory() as folder:
        database = Path(folder) / "conversion.db"
        shutil.copyfile(template, database)
        engine = create_database_engine(f"sqlite:///{database}")
        yield engine, FeatureStore(Path(folder) / "store"), Path(folder)
        engine.dispose()


def put(engine: Engine, table: Any, key: dict[str, Any], values: dict[str, Any]) -> None:
    """Insert a row or change it."""
    with engine.begin() as connection:
        where = [table.c[name] == value for name, value in key.items()]
        changed = connection.execute(update(table).where(*where).values(**(values or key)))
        if changed.rowcount == 0:
            connection.execute(insert(table).values(**key, **values))


def remove(engine: Engine, table: Any, key: dict[str, Any]) -> None:
    with engine.begin() as connection:
        where = [table.c[name] == value for name, value in key.items()]
        connection.execute(delete(table).where(*where))


def set_up(engine: Engine) -> None:
    for client_id in CLIENTS:
        put(engine, tables.clients, {"id": client_id}, {"created_at": START})
        for lead_id in LEADS:
            add_lead(engine, client_id, lead_id, {})


def add_lead(engine: Engine, client_id: str, lead_id: str, values: dict[str, Any]) -> None:
    values = {"status": "new", "created_at": START, **values}
    put(engine, tables.leads, {"client_id": client_id, "id": lead_id}, values)


def apply(engine: Engine, step: tuple[Any, ...]) -> None:
    kind, client_id, *rest = step
    if kind == "client":
        put(engine, tables.clients, {"id": client_id}, {"timezone": rest[0]})
    elif kind == "client gone":
        put(engine, tables.clients, {"id": client_id}, {"deleted_at": rest[0]})
    elif kind == "lead":
        add_lead(engine, client_id, *rest)
    elif kind == "lead removed":
        remove(engine, tables.leads, {"client_id": client_id, "id": rest[0]})
    elif kind == "activity":
        number, values = rest
        add_missing_lead(engine, client_id, values["lead_id"])
        put(engine, tables.activities, {"client_id": client_id, "id": f"a{number}"}, values)
    elif kind == "activity removed":
        remove(engine, tables.activities, {"client_id": client_id, "id": f"a{rest[0]}"})


def add_missing_lead(engine: Engine, client_id: str, lead_id: str) -> None:
    with engine.connect() as connection:
        key = (tables.leads.c.client_id == client_id, tables.leads.c.id == lead_id)
        known = connection.execute(tables.leads.select().where(*key)).first()
    if known is None:
        add_lead(engine, client_id, lead_id, {})


def contents(store: FeatureStore) -> dict[str, Any]:
    manifest = store.load_manifest()
    return {
        "clients": manifest.clients,
        "zones": manifest.zones,
        **{name: store.read(name).to_dicts() for name in TABLES},  # type: ignore[arg-type]
    }


def check_equals_full_rebuild(engine: Engine, store: FeatureStore, folder: Path) -> None:
    fresh = FeatureStore(folder / "fresh")
    refresh_features(engine, fresh, force=True)
    assert contents(store) == contents(fresh)
    with open_snapshot(engine) as snapshot:
        clients = snapshot.clients()
        leads = snapshot.changes("leads", None).rows
        activities = snapshot.changes("activities", None).rows
    features = build_features(clients, leads, activities)
    assert store.read("lead_features").equals(features.leads)
    assert store.read("touch_features").equals(features.touches)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    story=st.lists(steps, min_size=3, max_size=25),
    whole_share=st.sampled_from([0.25, 99.0, 99.0]),
    most_segments=st.sampled_from([2, 7, 99]),
)
def test_incremental_equals_full_whatever_happened(
    sqlite_template: Path, story: list[tuple[Any, ...]], whole_share: float, most_segments: int
) -> None:
    with (
        world(sqlite_template) as (engine, store, folder),
        pytest.MonkeyPatch.context() as patch,
    ):
        # Small changes beside the buckets, buckets whole, and segments that pile up.
        patch.setattr(feature_refresh, "WHOLE_SHARE", whole_share)
        patch.setattr(writing, "MEAN_SEGMENTS", most_segments)
        patch.setattr(writing, "MOST_SEGMENTS", most_segments)
        set_up(engine)
        refresh_features(engine, store)
        for step in story:
            if step[0] == "refresh":
                if enough(engine, store):
                    refresh_features(engine, store)
            else:
                apply(engine, step)
        if enough(engine, store):
            report = refresh_features(engine, store)
            assert not report.is_full
        else:
            refresh_features(engine, store, force=True)
        check_equals_full_rebuild(engine, store, folder)
        assert refresh_features(engine, store).changed_client_ids == []


def enough(engine: Engine, store: FeatureStore) -> bool:
    """Whether a refresh without force will go through: small worlds easily lose half."""
    with open_snapshot(engine) as snapshot:
        features = build_features(
            snapshot.clients(),
            snapshot.changes("leads", None).rows,
            snapshot.changes("activities", None).rows,
        )
    manifest = store.load_manifest()
    return 2 * features.leads.height >= manifest.rows(
        "lead_features"
    ) and 2 * features.touches.height >= manifest.rows("touch_features")


def fill(engine: Engine, touches: int = 4) -> None:
    set_up(engine)
    for client_id in CLIENTS:
        for number in range(touches):
            values = {
                "lead_id": LEADS[number % 3],
                "action": "email_sent",
                "occurred_at": START + timedelta(days=number),
                "content_snapshot": json.dumps({"body": f"Hi Anna, leads {number}"}),
            }
            key = {"client_id": client_id, "id": f"a{number}"}
            put(engine, tables.activities, key, values)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store")


def test_a_story_on_both_databases(engine: Engine, store: FeatureStore, tmp_path: Path) -> None:
    fill(engine)
    first = refresh_features(engine, store)
    assert (first.is_full, first.reason) == (True, "the store is empty")
    assert first.changed_client_ids == CLIENTS
    booking = {"lead_id": "l1", "action": "meeting_booked", "occurred_at": START}
    key = {"client_id": "c2", "id": "booked"}
    for change in (
        lambda: put(engine, tables.activities, key, booking),
        lambda: put(engine, tables.activities, key, {"lead_id": "l2"}),
        lambda: remove(engine, tables.activities, key),
        lambda: put(engine, tables.clients, {"id": "c2"}, {"timezone": "Asia/Kathmandu"}),
        lambda: add_lead(engine, "c2", "l1", {"first_name": "Anna"}),
        lambda: put(engine, tables.activities, {"client_id": "c2", "id": "a0"}, {"lead_id": "l3"}),
        lambda: remove(engine, tables.leads, {"client_id": "c2", "id": "l3"}),
        lambda: put(engine, tables.clients, {"id": "c2"}, {"deleted_at": START}),
        lambda: put(engine, tables.clients, {"id": "c2"}, {"deleted_at": None}),
    ):
        change()
        report = refresh_features(engine, store)
        assert not report.is_full
        assert report.changed_client_ids == ["c2"]
        check_equals_full_rebuild(engine, store, tmp_path)


@pytest.mark.parametrize("whole_share", [0.0, 99.0])
def test_a_story_by_leads_and_by_buckets(
    sqlite_url: str,
    store: FeatureStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole_share: float,
) -> None:
    engine = create_database_engine(sqlite_url)
    monkeypatch.setattr(feature_refresh, "WHOLE_SHARE", whole_share)
    fill(engine)
    refresh_features(engine, store)
    names = [f.path for f in store.load_manifest().files["touch_features"]]
    for number in range(12):
        key = {"client_id": CLIENTS[number % 3], "id": f"a{number % 4}"}
        values = {"lead_id": LEADS[number % 2], "occurred_at": START + timedelta(hours=number)}
        put(engine, tables.activities, key, {**values, "action": "sms_sent"})
        if number % 4 == 3:
            remove(engine, tables.activities, {**key, "id": f"a{(number + 2) % 4}"})
        refresh_features(engine, store)
        manifest = store.load_manifest()
        counts = [b for segment in manifest.segments for b in segment.buckets]
        assert max(map(counts.count, counts), default=0) <= writing.MOST_SEGMENTS + 1
        if number < 3:
            kept = names == [f.path for f in manifest.files["touch_features"]]
            assert kept == (whole_share > 0)
        check_equals_full_rebuild(engine, store, tmp_path)
        store.verify()
        for client_id in CLIENTS:
            one = store.read("touch_features", [client_id], ["activity_id", "occurred_at"])
            rows = store.read("touch_features").filter(pl.col("client_id") == client_id)
            assert one.equals(rows.select("activity_id", "occurred_at"))
    engine.dispose()


def test_nothing_new_writes_nothing(engine: Engine, store: FeatureStore) -> None:
    fill(engine)
    refresh_features(engine, store)
    before = store.load_manifest()
    report = refresh_features(engine, store)
    assert report.changed_client_ids == []
    assert store.load_manifest().files == before.files
    assert store.load_manifest().segments == before.segments


def test_unchanged_content_is_not_decoded_again(
    sqlite_url: str, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_database_engine(sqlite_url)
    fill(engine, touches=9)
    refresh_features(engine, store)
    decoded: list[int] = []
    usual = finish_features

    def watched(begun: Any, *others: Any) -> Any:
        decoded.append(begun.content.height)
        return usual(begun, *others)

    monkeypatch.setattr(feature_refresh, "finish_features", watched)
    values = {"lead_id": "l1", "action": "sms_sent", "occurred_at": START}
    put(engine, tables.activities, {"client_id": "c1", "id": "new"}, values)
    report = refresh_features(engine, store)
    assert sum(decoded) == 1
    assert report.rows_read == 1 + 4
    decoded.clear()
    put(engine, tables.clients, {"id": "c1"}, {"timezone": "Asia/Kolkata"})
    refresh_features(engine, store)
    assert sum(decoded) == 0
    engine.dispose()


def test_another_vocabulary_computes_anew(engine: Engine, store: FeatureStore) -> None:
    fill(engine)
    refresh_features(engine, store)
    own = load_vocabulary("pain_points: {greeting: [hi]}")
    report = refresh_features(engine, store, vocabulary=own)
    assert report.reason == "the feature code or vocabulary changed"
    assert store.read("touch_features")["pain__greeting"].all()
    assert not refresh_features(engine, store, vocabulary=own).is_full


def test_a_small_read_stops(engine: Engine, store: FeatureStore) -> None:
    fill(engine)
    refresh_features(engine, store)
    before = contents(store)
    for client_id in ("c1", "c2"):
        put(engine, tables.clients, {"id": client_id}, {"deleted_at": START})
    with pytest.raises(SuspiciousReadError, match="from 9 to 3 rows"):
        refresh_features(engine, store)
    assert contents(store) == before
    report = refresh_features(engine, store, force=True)
    assert report.changed_client_ids == ["c1", "c2"]


def test_an_empty_home_has_empty_features(engine: Engine, store: FeatureStore) -> None:
    report = refresh_features(engine, store)
    assert report.rows_written == 0
    assert store.read("touch_features").is_empty()
    assert refresh_features(engine, store).is_full is False


def test_large_clients_are_read_in_parts(
    sqlite_url: str, store: FeatureStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = create_database_engine(sqlite_url)
    fill(engine, touches=9)
    monkeypatch.setattr(feature_refresh, "LEADS_PER_READ", 1)
    seen: list[tuple[int, int]] = []
    refresh_features(engine, store, progress=lambda done, whole: seen.append((done, whole)))
    assert seen[-1] == (len(seen), len(seen))
    check_equals_full_rebuild(engine, store, tmp_path)
    engine.dispose()


# Ends itself at the given step of the disk: the n-th opening of something in the store for
# writing, or of a folder to settle it, or the renaming of the manifest, or the one after that.
KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from conversion_assets.refresh import features
    from conversion_assets.storage.columnar.store import FeatureStore
    from conversion_assets.storage.database import create_database_engine

    features.WHOLE_SHARE = 99.0
    url, folder, step = sys.argv[1:]
    seen = []

    def watch(event, details):
        if event not in ("open", "os.rename") or not str(details[0]).startswith(folder):
            return
        if event == "open" and details[1] != "xb" and not os.path.isdir(details[0]):
            return
        seen.append(event)
        if step in (str(len(seen)), seen[-1]) or (step == "renamed" and "os.rename" in seen[:-1]):
            os.kill(os.getpid(), signal.SIGKILL)

    engine = create_database_engine(url)
    sys.addaudithook(watch)
    features.refresh_features(engine, FeatureStore(folder))
    """
)


def test_a_refresh_killed_while_it_writes_a_segment_changed_nothing(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_refresh, "WHOLE_SHARE", 99.0)
    engine = create_database_engine(sqlite_url)
    fill(engine, touches=9)
    base = tmp_path / "base"
    refresh_features(engine, FeatureStore(base))
    before = contents(FeatureStore(base))
    for client_id in CLIENTS:
        booked = {"lead_id": "l1", "action": "meeting_booked", "occurred_at": START}
        put(engine, tables.activities, {"client_id": client_id, "id": "booked"}, booked)
    shutil.copytree(base, tmp_path / "undisturbed")
    undisturbed = FeatureStore(tmp_path / "undisturbed")
    refresh_features(engine, undisturbed)
    after = contents(undisturbed)
    assert len(undisturbed.load_manifest().segments) == 1
    assert after != before
    # The first and a later file of the segment, the manifest not yet in force, and in force.
    for step in ("1", "5", "os.rename", "renamed"):
        folder = tmp_path / f"killed-{step}"
        shutil.copytree(base, folder)
        command = [sys.executable, "-c", KILLED, sqlite_url, str(folder), step]
        ended = subprocess.run(command, check=False)
        assert ended.returncode == -signal.SIGKILL, step
        store = FeatureStore(folder)
        assert contents(store) == (after if step == "renamed" else before)
        store.verify()
        refresh_features(engine, store)
        assert contents(store) == after
        store.verify()
        assert hashes(store) == hashes(undisturbed)
    engine.dispose()


def hashes(store: FeatureStore) -> list[str]:
    return sorted(file.sha256 for file in store.load_manifest().all_files())
