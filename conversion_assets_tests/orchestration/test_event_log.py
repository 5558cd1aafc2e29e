"""The batching storages and the batched events say exactly what the stock ones say."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.event_log import SqliteEventLogStorage

from conversion_assets.orchestration import events
from conversion_assets.orchestration.event_log import BatchingSqliteEventLogStorage
from conversion_assets.orchestration.events import Materialization, record_materializations
from conversion_assets.partitions import CLIENTS, covering_range, sync_partitions

KEYS = [f"c{number}" for number in range(12)]
BATCHING = """\
telemetry: {enabled: false}
event_log_storage:
  module: conversion_assets.orchestration.event_log
  class: BatchingSqliteEventLogStorage
  config: {dagster_home: {env: DAGSTER_HOME}}
"""
STOCK = "telemetry: {enabled: false}\n"


@dg.asset(code_version="f1")
def rows() -> dg.MaterializeResult:
    return dg.MaterializeResult(data_version=dg.DataVersion("rows-1"))


@dg.multi_asset(
    specs=[
        dg.AssetSpec(name, deps=[rows], partitions_def=CLIENTS, skippable=True, code_version="p1")
        for name in ("who", "how")
    ],
    can_subset=True,
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def learned(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
    for asset_key in sorted(context.selected_asset_keys):
        good = [key for key in context.partition_keys if key != "c3"]
        record_materializations(
            context,
            asset_key,
            {key: Materialization({"n": len(key)}, f"{key}-version") for key in good},
            code_version="p1",
        )
    yield from ()


@pytest.fixture(autouse=True)
def fast_events(monkeypatch):
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "5")
    monkeypatch.setenv("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "1")


def open_instance(folder: Path, config: str, monkeypatch) -> dg.DagsterInstance:
    folder.mkdir()
    (folder / "dagster.yaml").write_text(config)
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    return dg.DagsterInstance.from_config(str(folder))


def run_twice(instance: dg.DagsterInstance) -> None:
    sync_partitions(instance, KEYS)
    ranges = [covering_range(KEYS, KEYS), covering_range(KEYS, ["c2", "c5"])]
    for tags in ranges:
        result = dg.materialize([rows, learned], instance=instance, tags=tags)
        assert result.success


def describe(instance: dg.DagsterInstance) -> dict:
    """Everything a reader can ask, without ids and times."""
    storage = instance.event_log_storage
    described: dict = {}
    for name in ("who", "how"):
        key = dg.AssetKey(name)
        latest = storage.get_latest_storage_id_by_partition(
            key, dg.DagsterEventType.ASSET_MATERIALIZATION
        )
        records = instance.fetch_materializations(key, limit=1000).records
        described[name] = {
            "partitions": instance.get_materialized_partitions(key),
            "order of latest": sorted(latest, key=latest.get),
            "history": [
                (
                    r.partition_key,
                    r.asset_materialization.metadata,
                    {
                        tag: value
                        for tag, value in r.asset_materialization.tags.items()
                        if "pointer" not in tag
                    },
                )
                for r in records
            ],
            "last": instance.get_latest_materialization_event(key).asset_materialization.partition,
            "versions": {
                partition: tags["dagster/data_version"]
                for partition, tags in storage.get_latest_tags_by_partition(
                    key,
                    dg.DagsterEventType.ASSET_MATERIALIZATION,
                    tag_keys=["dagster/data_version"],
                ).items()
            },
            "tags": sorted({tag for one in storage.get_event_tags_for_asset(key) for tag in one}),
        }
    described["events"] = [
        sorted(
            entry.dagster_event.event_type_value
            for entry in instance.all_logs(run.run_id)
            if entry.is_dagster_event
        )
        for run in instance.get_runs()
    ]
    return described


def test_batching_sqlite_agrees_with_the_stock_class(tmp_path, monkeypatch):
    described = []
    for name, config, kind in (
        ("stock", STOCK, SqliteEventLogStorage),
        ("batching", BATCHING, BatchingSqliteEventLogStorage),
    ):
        with open_instance(tmp_path / name, config, monkeypatch) as instance:
            assert type(instance.event_log_storage) is kind
            run_twice(instance)
            described.append(describe(instance))
    assert described[0] == described[1]
    assert described[0]["who"]["partitions"] == set(KEYS) - {"c3"}
    assert described[0]["who"]["versions"]["c5"] == "c5-version"


def test_a_home_can_change_from_one_class_to_the_other(tmp_path, monkeypatch):
    with open_instance(tmp_path / "home", STOCK, monkeypatch) as instance:
        run_twice(instance)
        before = describe(instance)
    (tmp_path / "home" / "dagster.yaml").write_text(BATCHING)
    with dg.DagsterInstance.from_config(str(tmp_path / "home")) as instance:
        assert describe(instance) == before


def test_the_public_way_says_the_same_when_private_parts_have_moved(tmp_path, monkeypatch):
    with open_instance(tmp_path / "private", BATCHING, monkeypatch) as instance:
        run_twice(instance)
        expected = describe(instance)

    def moved(context):
        raise AttributeError("get_step_execution_context")

    monkeypatch.setattr(events, "_step_of", moved)
    with open_instance(tmp_path / "public", BATCHING, monkeypatch) as instance:
        run_twice(instance)
        described = describe(instance)
    # Only the versions of the inputs are lost.
    for name in ("who", "how"):
        for _, _, tags in expected[name]["history"]:
            assert tags.pop("dagster/input_data_version/rows") == "rows-1"
    assert described == expected


def test_events_of_other_kinds_go_to_the_stock_class(tmp_path, monkeypatch):
    with open_instance(tmp_path / "home", BATCHING, monkeypatch) as instance:
        result = dg.materialize([rows], instance=instance)
        entries = instance.all_logs(result.run_id)
        before = len(entries)
        instance.event_log_storage.store_event_batch([e for e in entries if e.is_dagster_event][:2])
        assert len(instance.all_logs(result.run_id)) == before + 2


def test_a_batch_is_written_in_two_transactions(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "1000")
    commits: list[str] = []
    storage = BatchingSqliteEventLogStorage.store_event_batch

    def counted(self, batch):
        if batch[0].dagster_event_type is dg.DagsterEventType.ASSET_MATERIALIZATION:
            commits.append(batch[0].dagster_event.asset_key.to_user_string())
        return storage(self, batch)

    with open_instance(tmp_path / "home", BATCHING, monkeypatch) as instance:
        monkeypatch.setattr(BatchingSqliteEventLogStorage, "store_event_batch", counted)
        run_twice(instance)
    assert sorted(commits) == ["how", "how", "who", "who"]
    with sqlite3.connect(tmp_path / "home" / "history" / "runs" / "index.db") as index:
        stored = index.execute(
            "SELECT count(*) FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION' "
            "AND partition IS NOT NULL"
        ).fetchone()
    assert stored == (2 * (11 + 3),)


def test_nothing_to_record_is_fine(tmp_path, monkeypatch):
    with open_instance(tmp_path / "home", BATCHING, monkeypatch) as instance:
        sync_partitions(instance, ["c3"])
        result = dg.materialize(
            [rows, learned], instance=instance, tags=covering_range(["c3"], ["c3"])
        )
        assert result.success
        assert instance.get_materialized_partitions(dg.AssetKey("who")) == set()
