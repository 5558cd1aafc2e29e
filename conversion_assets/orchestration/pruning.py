"""Old runs and events of Dagster, removed without taking anybody's present state with them.

Dagster keeps every event for ever, and deleting a run takes the state of each partition whose
latest materialization it holds. Here a run goes as a whole only when nothing points to it any more;
of one that still holds somebody's latest (a client that left, an asset made by hand) everything
else goes. Works on Dagster's own tables, which its pinned version declares, and deletes in small
transactions: killed at any moment it leaves a smaller history, and the next call goes on.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import sqlalchemy as sa
from dagster import AssetKey, DagsterEventType, DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.storage.event_log import SqlEventLogStorage, SqliteEventLogStorage
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable as Checks,
)
from dagster._core.storage.event_log.schema import (
    AssetEventTagsTable as Tags,
)
from dagster._core.storage.event_log.schema import (
    SqlEventLogStorageTable as Events,
)

from conversion_assets.domain.errors import InputError

RUNS_PER_READ = 100
"""Run records in memory at once; each holds its config and tags."""
EVENTS_PER_DELETE = 5_000
"""Events that go in one transaction, with some seven tags each: about half a second."""

Connect = Callable[[], AbstractContextManager[sa.Connection]]

_FINISHED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]
_MATERIALIZATION = DagsterEventType.ASSET_MATERIALIZATION.value


@dataclass(frozen=True)
class Pruned:
    """What went, or would go.

    Attributes:
        runs: Runs deleted with everything they said.
        thinned: Runs that stay because they hold the latest of some partition or check.
        materializations: Superseded materializations deleted, of both kinds of runs.
        checks: Superseded evaluations of checks deleted.
    """

    runs: int = 0
    thinned: int = 0
    materializations: int = 0
    checks: int = 0


def prune_history(instance: DagsterInstance, before: datetime, *, dry_run: bool = False) -> Pruned:
    """Delete what finished runs created before a time left behind and newer ones superseded.

    Every partition keeps its latest materialization and every check its latest evaluation, with
    their runs. Runs that are not finished stay, however old.

    Args:
        instance: The instance.
        before: Aware time; runs created later are not looked at.
        dry_run: Only count.

    Raises:
        InputError: the instance keeps its event log elsewhere than in a database.
    """
    storage = _storage_of(instance)
    latest = _find_latest(storage, instance.all_asset_keys())
    needed = _runs_of_checks(storage)
    runs = thinned = materializations = 0
    for run_id in _list_old_runs(instance, before):
        with storage.index_connection() as connection:
            own = _materializations_of(connection, run_id)
        superseded = [event_id for event_id in own if event_id not in latest]
        stays = len(superseded) < len(own) or run_id in needed
        runs += not stays
        thinned += stays
        materializations += len(superseded)
        if dry_run:
            continue
        _delete_events(storage.index_transaction, superseded)
        if not stays:
            _delete_run(instance, storage, run_id)
    checks = _prune_checks(storage, before, dry_run=dry_run)
    return Pruned(runs, thinned, materializations, checks)


def _storage_of(instance: DagsterInstance) -> SqlEventLogStorage:
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise InputError(
            f"the event log is a {type(storage).__name__}; only one in a database is pruned"
        )
    return storage


def _list_old_runs(instance: DagsterInstance, before: datetime) -> list[str]:
    """Ids of finished runs, oldest first; all of them before any is deleted."""
    old = RunsFilter(statuses=_FINISHED, created_before=before)
    ids: list[str] = []
    while records := instance.get_run_records(
        old, limit=RUNS_PER_READ, cursor=ids[-1] if ids else None, ascending=True
    ):
        ids += [record.dagster_run.run_id for record in records]
    return ids


def _find_latest(storage: SqlEventLogStorage, keys: Iterable[AssetKey]) -> set[int]:
    """Ids of the latest materialization of every asset and partition."""
    found: set[int] = set()
    for key in keys:
        by_partition = storage.get_latest_storage_id_by_partition(
            key, DagsterEventType.ASSET_MATERIALIZATION
        )
        found.update(by_partition.values())
        found.update(_latest_without_partition(storage, key))
    return found


def _latest_without_partition(storage: SqlEventLogStorage, key: AssetKey) -> Iterator[int]:
    latest = sa.select(sa.func.max(Events.c.id)).where(
        Events.c.asset_key == key.to_string(),
        Events.c.dagster_event_type == _MATERIALIZATION,
        Events.c.partition.is_(None),
    )
    with storage.index_connection() as connection:
        event_id = connection.execute(latest).scalar()
    if event_id is not None:
        yield event_id


def _runs_of_checks(storage: SqlEventLogStorage) -> set[str]:
    """Ids of the runs that hold the latest evaluation of some check."""
    latest = sa.select(Checks.c.run_id).where(Checks.c.id.in_(_latest_checks()))
    with storage.index_connection() as connection:
        return set(connection.execute(latest).scalars())


def _latest_checks() -> sa.Select[tuple[int]]:
    one_each = (Checks.c.asset_key, Checks.c.check_name, Checks.c.partition)
    return sa.select(sa.func.max(Checks.c.id)).group_by(*one_each)


def _materializations_of(connection: sa.Connection, run_id: str) -> list[int]:
    own = sa.select(Events.c.id).where(
        Events.c.run_id == run_id, Events.c.dagster_event_type == _MATERIALIZATION
    )
    return list(connection.execute(own).scalars())


def _delete_events(connect: Connect, ids: Sequence[int]) -> None:
    """Delete events with their tags, some in each transaction."""
    for start in range(0, len(ids), EVENTS_PER_DELETE):
        some = ids[start : start + EVENTS_PER_DELETE]
        with connect() as connection:
            connection.execute(Tags.delete().where(Tags.c.event_id.in_(some)))
            connection.execute(Events.delete().where(Events.c.id.in_(some)))


def _delete_run(instance: DagsterInstance, storage: SqlEventLogStorage, run_id: str) -> None:
    """Delete a run, what it logged first: killed on the way, the run is found again."""
    # SQLite keeps a run's events in a file of its own too, where they have other ids.
    with storage.run_connection(run_id) as connection:
        rest = _materializations_of(connection, run_id)
    _delete_events(partial(storage.run_connection, run_id), rest)
    storage.delete_events(run_id)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    instance.delete_run(run_id)
    if isinstance(storage, SqliteEventLogStorage):
        path = storage.path_for_shard(run_id)
        for name in (path, f"{path}-wal", f"{path}-shm"):
            Path(name).unlink(missing_ok=True)


def _prune_checks(storage: SqlEventLogStorage, before: datetime, *, dry_run: bool) -> int:
    """Delete evaluations of checks that are old and not the latest of theirs."""
    old = sa.and_(
        # The column has no zone and holds UTC.
        Checks.c.create_timestamp < before.astimezone(UTC).replace(tzinfo=None),
        Checks.c.id.not_in(_latest_checks()),
    )
    with storage.index_transaction() as connection:
        if dry_run:
            counted = sa.select(sa.func.count()).select_from(Checks).where(old)
            return int(connection.execute(counted).scalar_one())
        return int(connection.execute(Checks.delete().where(old)).rowcount)
