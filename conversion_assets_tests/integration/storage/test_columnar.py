"""The columnar store on a real folder and on a real S3 protocol, with killed and rival writers."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import boto3
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from conversion_assets.domain.errors import (
    ConflictError,
    InputError,
    NotFoundError,
    SuspiciousReadError,
)
from conversion_assets.storage.columnar.manifest import bucket_of
from conversion_assets.storage.columnar.rows import compute_fingerprints
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.columnar.writer import ORPHAN_SECONDS
from conversion_assets.storage.fingerprints import sum_tables
from conversion_assets_tests.feature_rows import leads_of, rows_of, touches_of
from conversion_assets_tests.feature_rows import write_rows as write

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    if request.param == "folder":
        return FeatureStore(tmp_path / "store")
    endpoint = request.getfixturevalue("s3_endpoint")
    name = f"bucket-{random.randrange(10**9)}"
    boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    ).create_bucket(Bucket=name)
    options = {key.lower(): value for key, value in KEYS.items()}
    options["aws_endpoint_url"] = endpoint
    return FeatureStore(f"s3://{name}/features", options)


def test_a_store_never_written_says_so(store: FeatureStore) -> None:
    assert store.load_manifest().revision == 0
    with pytest.raises(NotFoundError, match="no features yet"):
        store.read("lead_features")


def test_what_is_written_is_read_sorted(store: FeatureStore) -> None:
    manifest = write(store, {"b": 5, "a": 3, "empty": 0})
    assert store.load_manifest() == manifest
    assert sorted(manifest.clients) == ["a", "b"]
    whole = store.read("lead_features")
    assert whole.equals(pl.concat([leads_of("a", 3), leads_of("b", 5)]))
    assert store.read("lead_features", ["b"]).equals(leads_of("b", 5))
    assert store.read("touch_features", ["a"], ["touch_number"])["touch_number"].to_list() == [
        0,
        1,
        2,
    ]
    assert store.read("lead_features", ["nobody"]).schema == whole.schema
    assert store.read("lead_features", []).height == 0
    store.verify()


def test_a_change_leaves_other_clients_as_they_were(store: FeatureStore) -> None:
    write(store, {f"c{number}": 4 for number in range(30)})
    before = store.load_manifest()
    after = write(store, {"c3": 6}, value=1)
    changed = {c for c in after.clients if after.clients[c] != before.clients.get(c)}
    assert changed == {"c3"}
    assert store.read("lead_features").height == 29 * 4 + 6
    kept = {f.path for f in before.files["lead_features"] if f.bucket != bucket_of("c3")}
    assert kept <= {f.path for f in after.files["lead_features"]}


def test_a_client_without_rows_disappears(store: FeatureStore) -> None:
    write(store, {"a": 3, "b": 5})
    after = write(store, {"a": 0})
    assert sorted(after.clients) == ["b"]
    assert store.read("lead_features")["client_id"].unique().to_list() == ["b"]


def test_a_small_read_stops_unless_forced(store: FeatureStore) -> None:
    write(store, {"a": 10})
    with pytest.raises(SuspiciousReadError, match="from 10 to 4 rows; nothing was overwritten"):
        write(store, {"a": 4})
    assert store.read("lead_features").height == 10
    assert write(store, {"a": 5}).rows("lead_features") == 5
    assert write(store, {"a": 1}, force=True).rows("lead_features") == 1


def test_of_two_writers_one_wins(store: FeatureStore) -> None:
    write(store, {"a": 10})
    with store.write() as slow:
        slow.replace_clients(bucket_of("a"), ["a"], rows_of("a", 8))
        if store.url.startswith("s3://"):
            write(store, {"a": 9})
        else:
            with pytest.raises(ConflictError, match="another process is writing"):
                write(store, {"a": 9})
            # A writer on another machine does not see the lock: the manifest decides.
            path = Path(store.url) / "manifest.json"
            path.write_text(path.read_text().replace('"revision":1', '"revision":2'))
        with pytest.raises(ConflictError, match="changed by another writer"):
            slow.commit(feature_version="v", watermark=None)
    assert store.load_manifest().revision == 2
    assert store.read("lead_features").height in (9, 10)


def test_a_writer_that_does_not_commit_leaves_no_trace(store: FeatureStore) -> None:
    write(store, {"a": 10})
    before = set(path for path, _ in store._files.listed())

    def fail() -> None:
        with store.write() as writer:
            writer.replace_clients(bucket_of("a"), ["a"], rows_of("a", 8))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        fail()
    with store.write() as writer:
        writer.replace_clients(bucket_of("a"), ["a"], rows_of("a", 8))
    assert set(path for path, _ in store._files.listed()) == before
    assert store.read("lead_features").height == 10


def test_orphans_are_collected_and_files_in_use_are_not(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    write(store, {"a": 10})
    orphan = tmp_path / "lead_features" / "b00-dead.parquet"
    young = tmp_path / "lead_features" / "b00-young.parquet"
    for path in (orphan, young):
        path.write_bytes(b"x")
    old = time.time() - ORPHAN_SECONDS - 1
    for path in (orphan, *tmp_path.glob("*/*.parquet")):
        if path != young:
            os.utime(path, (old, old))
    # The one booking stays the same, and so does its file.
    first = {file.path for file in store.load_manifest().files["touch_features"]}
    write(store, {"a": 11})
    assert not orphan.exists()
    assert young.exists()
    assert all((tmp_path / path).exists() for path in first)
    write(store, {"a": 12})
    assert not any((tmp_path / path).exists() for path in first)


def test_damage_is_named(store: FeatureStore) -> None:
    manifest = write(store, {"a": 10})
    path = manifest.files["lead_features"][0].path
    store._files.delete([path])
    with pytest.raises(InputError, match="lead_features cannot be read"):
        store.read("lead_features")
    with pytest.raises(InputError, match="missing or damaged"):
        store.verify()
    with store.write() as writer:
        writer.clear({table: rows.schema for table, rows in rows_of("a", 9).items()})
        writer.replace_clients(bucket_of("a"), ["a"], rows_of("a", 9))
        writer.commit(feature_version="v", watermark=None)
    store.verify()


def test_a_damaged_manifest_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format_version": 1, "files": 3}')
    with pytest.raises(InputError, match="damaged"):
        FeatureStore(tmp_path).read("lead_features")


def test_another_format_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format_version": 0}')
    store = FeatureStore(tmp_path)
    assert store.load_manifest().clients == {}
    write(store, {"a": 3})
    assert store.read("lead_features").height == 3


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    write(store, {"a": 1})
    with pytest.raises(InputError, match="has no column nope"):
        store.read("lead_features", columns=["nope"])
    with pytest.raises(InputError, match="no table"):
        store.read("other")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="use a folder or s3"):
        FeatureStore("ftp://x/y")


def test_a_missing_bucket_is_one_line(s3_endpoint: str) -> None:
    options = {key.lower(): value for key, value in KEYS.items()}
    options["aws_endpoint_url"] = s3_endpoint
    store = FeatureStore("s3://no-such-bucket/x", options)
    with pytest.raises(InputError, match="cannot write"):
        write(store, {"a": 1})


def test_credentials_come_from_the_environment(
    s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": s3_endpoint}.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=s3_endpoint).create_bucket(Bucket="from-environment")
    store = FeatureStore("s3://from-environment/x")
    write(store, {"a": 3})
    assert store.read("lead_features").height == 3


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_the_fingerprint_ignores_order_and_company_and_sees_content(
    seed: int, counts: list[int]
) -> None:
    leads = pl.concat([leads_of(f"c{i}", count) for i, count in enumerate(counts)])
    touches = pl.concat([touches_of(f"c{i}", count) for i, count in enumerate(counts)])

    def prints(leads: pl.DataFrame, touches: pl.DataFrame) -> dict[str, str]:
        return compute_fingerprints({"lead_features": leads, "touch_features": touches})

    whole = prints(leads, touches)
    shuffled = prints(
        leads.sample(fraction=1, shuffle=True, seed=seed).select(reversed(leads.columns)),
        touches.sample(fraction=1, shuffle=True, seed=seed),
    )
    assert shuffled == whole
    for i, count in enumerate(counts):
        alone = prints(leads_of(f"c{i}", count), touches_of(f"c{i}", count))
        assert alone == {c: v for c, v in whole.items() if c == f"c{i}"}
        if count:
            other = touches_of(f"c{i}", count).with_columns(
                touch_number=pl.when(pl.col("activity_id") == "a00000")
                .then(None)
                .otherwise("touch_number")
            )
            assert prints(leads_of(f"c{i}", count), other) != alone


def test_the_fingerprint_is_the_same_in_every_release() -> None:
    prints = compute_fingerprints(
        {"lead_features": leads_of("c", 3), "touch_features": touches_of("c", 2)}
    )
    # Another text here is another format of the store: FORMAT_VERSION moves with it.
    assert prints == {"c": "a1a41e2929540b1046e0fd346d087775d0d8a5cd9289cb70f31cad832a3fe1c1"}


def replace(store: FeatureStore, client_id: str, leads: list[int], value: int) -> None:
    """Give some leads other rows, beside the buckets; the first touch moves with lead 0."""
    names = [f"lead-{number:05d}" for number in leads]
    keys = pl.DataFrame({"client_id": [client_id] * len(leads), "lead_id": names})
    bucket = [bucket_of(client_id)]
    chosen = pl.col("lead_id").is_in(names)
    after = {table: rows.filter(chosen) for table, rows in rows_of(client_id, 10, value).items()}
    with store.write() as writer:
        before = {table: writer.read_leads(table, bucket, keys) for table in after}
        writer.replace_leads(keys, sum_tables(before), after)
        writer.commit(feature_version="v", watermark={"at": value})


def test_segments_stand_in_place_of_what_was(store: FeatureStore) -> None:
    write(store, {"a": 10, "b": 10})
    whole = store.load_manifest()
    replace(store, "a", [0, 3], 100)
    replace(store, "a", [3, 4], 200)
    manifest = store.load_manifest()
    assert manifest.files == whole.files
    assert len(manifest.segments) == 2
    assert manifest.clients["b"] == whole.clients["b"]
    worth = {0: 100, 3: 203, 4: 204}
    expected = leads_of("a", 10).with_columns(
        authority=pl.Series([float(worth.get(number, number)) for number in range(10)])
    )
    for read in (store.read("lead_features", ["a"]), store.read("lead_features").head(10)):
        assert read.equals(expected)
    assert store.read("touch_features", ["a"]).equals(touches_of("a", 10))
    rows = {"lead_features": expected, "touch_features": touches_of("a", 10)}
    assert manifest.clients["a"].fingerprint == compute_fingerprints(rows)["a"]
    counted = store.count_clients(manifest, "lead_features")
    sums = dict(counted.group_by("client_id").agg(pl.col("rows").sum()).iter_rows())
    assert sums == {"a": 10, "b": 10}
    with store.write() as writer:
        writer.absorb(bucket_of("a"))
        absorbed = writer.commit(feature_version="v", watermark=None)
    assert absorbed.segments == []
    assert absorbed.clients == manifest.clients
    assert store.read("lead_features", ["a"]).equals(expected)


def test_the_same_rows_again_are_no_segment(store: FeatureStore) -> None:
    write(store, {"a": 10})
    replace(store, "a", [0, 3], 0)
    assert store.load_manifest().segments == []


def test_leads_without_rows_are_gone(store: FeatureStore) -> None:
    write(store, {"a": 3})
    keys = leads_of("a", 3).select("client_id", "lead_id").head(2)
    none = {table: rows.clear() for table, rows in rows_of("a", 1).items()}
    with store.write(force=True) as writer:
        before = {table: writer.read_leads(table, [bucket_of("a")], keys) for table in none}
        writer.replace_leads(keys, sum_tables(before), none)
        writer.commit(feature_version="v", watermark=None)
    assert store.read("lead_features")["lead_id"].to_list() == ["lead-00002"]
    assert store.read("touch_features").is_empty()
    assert (store.load_manifest().clients["a"].leads, store.load_manifest().rows("bookings")) == (
        1,
        1,
    )
    with store.write() as writer:
        writer.absorb(bucket_of("a"))
        writer.commit(feature_version="v", watermark=None)
    assert store.read("lead_features")["lead_id"].to_list() == ["lead-00002"]
    assert store.load_manifest().files["touch_features"] == []


@pytest.mark.parametrize("lead_ids", [["lead-00003"], ["lead-00007"], None])
def test_the_erased_are_in_no_file(store: FeatureStore, lead_ids: list[str] | None) -> None:
    write(store, {"a": 10, "b": 10})
    for value, leads in ((100, [0, 3]), (200, [3, 4]), (300, [3, 7])):
        replace(store, "a", leads, value)
        replace(store, "b", leads, value)
    before = store.read("lead_features")
    store.erase("a", lead_ids)
    gone = pl.col("client_id") == "a"
    if lead_ids is not None:
        gone &= pl.col("lead_id").is_in(lead_ids)
    assert store.read("lead_features").equals(before.filter(~gone))
    for path in store.list_files():
        assert store.scan_file(path).filter(gone).collect().is_empty(), path
    store.verify()


def test_damage_of_a_segment_is_named(store: FeatureStore) -> None:
    write(store, {"a": 10})
    replace(store, "a", [0], 100)
    manifest = store.load_manifest()
    path = manifest.segments[0].keys[0].path
    store._files.delete([path])
    assert store.find_damaged(manifest) == {path: "missing"}
    with pytest.raises(InputError, match="cannot be read"):
        store.read("lead_features")
    with pytest.raises(InputError, match="missing or damaged"):
        replace(store, "a", [1], 100)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c"]),
            st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
            st.sampled_from(["beside", "beside", "absorb", "whole"]),
        ),
        max_size=10,
    )
)
def test_segments_and_buckets_come_to_the_same(story: list[tuple[str, list[int], str]]) -> None:
    with TemporaryDirectory() as folder:
        store = FeatureStore(folder)
        write(store, dict.fromkeys("abc", 10))
        now = {c: dict(enumerate(leads_of(c, 10)["authority"].to_list())) for c in "abc"}
        for value, (client_id, leads, how) in enumerate(story, start=1):
            if how == "whole":
                write(store, {client_id: 10}, value=value)
                now[client_id] = {number: float(value + number) for number in range(10)}
                continue
            replace(store, client_id, leads, value)
            now[client_id] |= {number: float(value + number) for number in leads}
            if how == "absorb":
                with store.write() as writer:
                    writer.absorb(bucket_of(client_id))
                    writer.commit(feature_version="v", watermark=None)
        expected = pl.concat(
            leads_of(c, 10).with_columns(authority=pl.Series([now[c][n] for n in range(10)]))
            for c in "abc"
        )
        assert store.read("lead_features").equals(expected)
        rows = {
            "lead_features": expected,
            "touch_features": pl.concat(touches_of(c, 10) for c in "abc"),
        }
        stored = store.load_manifest().clients
        assert {c: one.fingerprint for c, one in stored.items()} == compute_fingerprints(rows)


WRITER = textwrap.dedent(
    """
    import sys
    from conversion_assets.storage.columnar.store import FeatureStore
    from conversion_assets_tests.feature_rows import write_rows as write

    store = FeatureStore(sys.argv[1])
    print("ready", flush=True)
    value = int(sys.argv[2])
    while True:
        value += 1
        write(store, {f"c{n}": 40 for n in range(12)}, value=value)
    """
)


@pytest.mark.slow
def test_a_killed_writer_leaves_one_whole_version(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store")
    write(store, {f"c{number}": 40 for number in range(12)}, value=0)
    random_delays = random.Random(7)
    seen = set()
    for _ in range(8):
        last = store.load_manifest().revision
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "store"), str(last)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(random_delays.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        manifest = store.load_manifest()
        assert manifest.watermark is not None
        value = manifest.watermark["at"]
        seen.add(manifest.revision)
        expected = pl.concat([leads_of(f"c{n}", 40, value) for n in range(12)])
        assert store.read("lead_features").equals(expected.sort("client_id", "lead_id")), (
            "a reader saw a mixture"
        )
        store.verify()
        write(store, {f"c{n}": 40 for n in range(12)}, value=manifest.revision + 1)
    assert len(seen) > 1
