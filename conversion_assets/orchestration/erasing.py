"""What Dagster keeps of a client, and how much of it can be removed.

Dagster has a door for deleting a run with its events and a partition key; it has none for one
partition's events in a run of many (`wipe_asset_partitions` is not implemented by its storages).
Runs of the client alone are deleted; of runs it shared with others remain the client's id and the
aggregates that the UI shows of its patterns, unless the whole runs may go.
"""

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRun

from conversion_assets.partitions import CLIENTS, partition_key

_RUNS_PER_READ = 200
"""Run records in memory at once; each holds its config and tags."""


@dataclass(frozen=True)
class DagsterTraces:
    """Runs that name a client.

    Attributes:
        own: Runs of the client alone.
        shared: Runs of the client and others.
        has_partition: Whether the client is a partition.
    """

    own: list[str]
    shared: list[str]
    has_partition: bool


def find_client(instance: DagsterInstance, client_id: str) -> DagsterTraces:
    """Find the runs whose config or tags name a client, and its partition."""
    keys = list(instance.get_dynamic_partitions(str(CLIENTS.name)))
    key = partition_key(client_id)
    names = {client_id, key}
    others = set(keys) - {key}
    own: list[str] = []
    shared: list[str] = []
    for run in _all_runs(instance):
        words = set(_words(run.run_config)) | set(run.tags.values())
        if words & names:
            is_shared = bool({partition_key(word) for word in words if word} & others)
            (shared if is_shared else own).append(run.run_id)
    return DagsterTraces(own, shared, key in keys)


def erase_client(
    instance: DagsterInstance, client_id: str, *, with_shared_runs: bool = False
) -> DagsterTraces:
    """Delete a client's partition and runs; returns what was found before.

    Args:
        instance: The instance.
        client_id: The client.
        with_shared_runs: Also runs of other clients; their materializations go with them, until
            they are learned again.
    """
    found = find_client(instance, client_id)
    gone = [*found.own, *(found.shared if with_shared_runs else [])]
    for run_id in gone:
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.delete_dynamic_partition(str(CLIENTS.name), partition_key(client_id))
    return found


def shrink_storage(folder: Path, run_ids: Collection[str] = ()) -> list[str]:
    """Give up the free space of Dagster's SQLite files; returns those that are in use.

    Args:
        folder: DAGSTER_HOME.
        run_ids: Deleted runs, whose own event files go.
    """
    busy = []
    for path in sorted(folder.rglob("*.db")):
        if path.stem in run_ids:
            for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
                name.unlink(missing_ok=True)
            continue
        try:
            with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as database:
                database.execute("VACUUM")
                if database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    busy.append(str(path))
        except sqlite3.OperationalError:
            busy.append(str(path))
    return busy


def _all_runs(instance: DagsterInstance) -> Iterator[DagsterRun]:
    cursor = None
    while runs := instance.get_runs(cursor=cursor, limit=_RUNS_PER_READ):
        yield from runs
        cursor = runs[-1].run_id


def _words(value: Any) -> Iterator[str]:
    """Every text in a run's config."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _words(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _words(item)
