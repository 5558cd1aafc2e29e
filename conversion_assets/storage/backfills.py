"""The ledger of backfills: what was done by which code, how far one is, and who is at work.

A lease keeps two from working on one client. It ends by itself, so that a killed backfill blocks
nobody for long; whoever lost it without knowing is stopped at its next write, because progress is
written in the transaction of the rows and only by the holder.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Engine, Row, insert, select, update

from conversion_assets.domain.backfills import (
    BackfillRecord,
    BackfillStage,
    BackfillState,
    StageProgress,
)
from conversion_assets.domain.errors import ConflictError, NotFoundError
from conversion_assets.storage.database import reported_connection_errors, write_transaction
from conversion_assets.storage.tables import backfills, clients

LEASE = timedelta(seconds=25)
"""Believed without a sign of life. Shorter than the waits of the retry policy together, so that a
run that is started again after a kill outwaits the lease of the killed one."""
RESUME_WITHIN = timedelta(days=1)
"""An unfinished backfill is gone on with for this long. Its scores and patterns are of the moment
it began; after a day somebody who asks again wants those of today."""

_PROGRESS = TypeAdapter(dict[BackfillStage, StageProgress])

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class BackfillRequest:
    """What is asked for.

    Attributes:
        client_id: The client.
        stages: Stages to do, in order.
        as_of: Moment of scores and patterns; None for that of an unfinished backfill, else now.
        code_version: Version of the code at work.
        run_id: Dagster run at work.
        owner: Who is at work, unlike any other.
    """

    client_id: str
    stages: Sequence[BackfillStage]
    as_of: datetime | None
    code_version: str
    run_id: str
    owner: str


@dataclass(frozen=True)
class Lease:
    """A backfill that is ours to work on.

    Attributes:
        backfill_id: Row of the ledger.
        client_id: The client.
        owner: We.
        as_of: Moment of scores and patterns.
        progress: What earlier attempts left, by stage.
    """

    backfill_id: str
    client_id: str
    owner: str
    as_of: datetime
    progress: Mapping[BackfillStage, StageProgress]


class BackfillLedger:
    """Reads and writes the table `backfills`.

    Args:
        engine: System of record.
        clock: Aware time.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def begin(
        self, request: BackfillRequest, is_dead: Callable[[str], bool] = lambda _: False
    ) -> Lease:
        """Go on with the client's unfinished backfill of the same request, or begin a new one.

        An unfinished one of another request, of other code or of more than a day ago is given up:
        what it did stays, and the new one finds it done.

        Args:
            request: What to do.
            is_dead: Whether the holder of a lease is known to be gone before it ends.

        Raises:
            NotFoundError: there is no such client.
            ConflictError: another process is at work on this client.
        """
        now = self._clock()
        with (
            reported_connection_errors(self._engine),
            write_transaction(self._engine) as connection,
        ):
            _lock_client(connection, request.client_id)
            row = _unfinished(connection, request.client_id)
            if row is not None:
                _refuse_if_held(row, now, is_dead)
                if _is_same(row, request, now):
                    return _take_over(connection, row, request, now)
                _give_up(connection, row, now)
            return _insert(connection, request, now)

    def require_free(self, client_id: str, is_dead: Callable[[str], bool]) -> None:
        """Refuse at once what `begin` would refuse; nothing is written.

        Raises:
            NotFoundError: there is no such client.
            ConflictError: another process is at work on this client.
        """
        with reported_connection_errors(self._engine), self._engine.connect() as connection:
            _require_client(connection, client_id)
            row = _unfinished(connection, client_id)
        if row is not None:
            _refuse_if_held(row, self._clock(), is_dead)

    def advance(
        self,
        connection: Connection,
        lease: Lease,
        progress: Mapping[BackfillStage, StageProgress],
    ) -> None:
        """Write the progress of all stages inside the transaction of the rows it speaks of.

        Raises:
            ConflictError: the lease is another's by now; roll back.
        """
        self._update(connection, lease, {"progress": _dump(progress), **self._extended()})

    def beat(self, lease: Lease) -> None:
        """Give a sign of life.

        Raises:
            ConflictError: the lease is another's by now.
        """
        with (
            reported_connection_errors(self._engine),
            write_transaction(self._engine) as connection,
        ):
            self._update(connection, lease, self._extended())

    def finish(self, lease: Lease, progress: Mapping[BackfillStage, StageProgress]) -> None:
        """Write that nothing is left to do, and let go.

        Raises:
            ConflictError: the lease is another's by now.
        """
        # A finished ledger names no lead.
        plain = {stage: one.model_copy(update={"after": None}) for stage, one in progress.items()}
        values = {"progress": _dump(plain), "finished_at": self._clock(), **_RELEASED}
        with (
            reported_connection_errors(self._engine),
            write_transaction(self._engine) as connection,
        ):
            self._update(connection, lease, values)

    def fail(self, lease: Lease, error: str) -> None:
        """Write why an attempt ended, and let go; the next attempt goes on from here."""
        with (
            reported_connection_errors(self._engine),
            write_transaction(self._engine) as connection,
        ):
            connection.execute(_own(lease).values({"error": error, **_RELEASED}))

    def load(self, backfill_id: str) -> BackfillRecord:
        """One row.

        Raises:
            NotFoundError: there is no such row.
        """
        query = select(backfills).where(backfills.c.backfill_id == backfill_id)
        with reported_connection_errors(self._engine), self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise NotFoundError(f"there is no backfill {backfill_id!r}")
        return self._record(row)

    def list_records(self, client_id: str | None = None) -> list[BackfillRecord]:
        """All rows, or those of a client, the latest first."""
        query = select(backfills).order_by(backfills.c.started_at.desc(), backfills.c.backfill_id)
        if client_id is not None:
            query = query.where(backfills.c.client_id == client_id)
        with reported_connection_errors(self._engine), self._engine.connect() as connection:
            return [self._record(row) for row in connection.execute(query)]

    def _extended(self) -> dict[str, Any]:
        return {"lease_until": self._clock() + LEASE}

    def _update(self, connection: Connection, lease: Lease, values: dict[str, Any]) -> None:
        done = connection.execute(
            _own(lease).values(values), execution_options={"preserve_rowcount": True}
        )
        if done.rowcount != 1:
            raise ConflictError(
                f"another process has taken over the backfill of client {lease.client_id!r}; "
                "this one stops, nothing of its last step was stored"
            )

    def _record(self, row: Row[Any]) -> BackfillRecord:
        return BackfillRecord(
            backfill_id=row.backfill_id,
            client_id=row.client_id,
            stages=json.loads(row.stages),
            as_of=row.as_of,
            code_version=row.code_version,
            run_id=row.run_id,
            started_at=row.started_at,
            finished_at=row.finished_at,
            progress=_PROGRESS.validate_json(row.progress),
            error=row.error,
            state=_state(row, self._clock()),
        )


_RELEASED: dict[str, Any] = {"lease_owner": None, "lease_until": None}


def _own(lease: Lease) -> Any:
    return update(backfills).where(
        backfills.c.backfill_id == lease.backfill_id, backfills.c.lease_owner == lease.owner
    )


def _state(row: Row[Any], now: datetime) -> BackfillState:
    if row.finished_at is not None:
        return BackfillState.GIVEN_UP if row.error else BackfillState.DONE
    if row.lease_until is not None and row.lease_until > now:
        return BackfillState.RUNNING
    return BackfillState.FAILED if row.error else BackfillState.INTERRUPTED


def _require_client(connection: Connection, client_id: str, *, lock: bool = False) -> None:
    query = select(clients.c.id).where(clients.c.id == client_id, clients.c.deleted_at.is_(None))
    if connection.execute(query.with_for_update() if lock else query).first() is None:
        raise NotFoundError(f"there is no client {client_id!r}")


def _lock_client(connection: Connection, client_id: str) -> None:
    # On SQLite the transaction holds the only write lock already.
    _require_client(connection, client_id, lock=True)


def _unfinished(connection: Connection, client_id: str) -> Row[Any] | None:
    query = select(backfills).where(
        backfills.c.client_id == client_id, backfills.c.finished_at.is_(None)
    )
    return connection.execute(query).one_or_none()


def _refuse_if_held(row: Row[Any], now: datetime, is_dead: Callable[[str], bool]) -> None:
    if row.lease_until is None or row.lease_until <= now or is_dead(row.lease_owner):
        return
    raise ConflictError(
        f"a backfill of client {row.client_id!r} is at work since "
        f"{row.started_at:%Y-%m-%d %H:%M:%S} UTC (run {row.run_id}); wait for it to end. If it was "
        f"killed, its place is free after {row.lease_until:%H:%M:%S} UTC"
    )


def _is_same(row: Row[Any], request: BackfillRequest, now: datetime) -> bool:
    return (
        json.loads(row.stages) == [str(stage) for stage in request.stages]
        and row.code_version == request.code_version
        and request.as_of in (None, row.as_of)
        and (request.as_of is not None or now - row.started_at <= RESUME_WITHIN)
    )


def _take_over(
    connection: Connection, row: Row[Any], request: BackfillRequest, now: datetime
) -> Lease:
    connection.execute(
        update(backfills)
        .where(backfills.c.backfill_id == row.backfill_id)
        .values(
            lease_owner=request.owner, lease_until=now + LEASE, run_id=request.run_id, error=None
        )
    )
    return Lease(
        backfill_id=row.backfill_id,
        client_id=row.client_id,
        owner=request.owner,
        as_of=row.as_of,
        progress=_PROGRESS.validate_json(row.progress),
    )


def _give_up(connection: Connection, row: Row[Any], now: datetime) -> None:
    connection.execute(
        update(backfills)
        .where(backfills.c.backfill_id == row.backfill_id)
        .values(finished_at=now, error="another backfill was begun instead", **_RELEASED)
    )


def _insert(connection: Connection, request: BackfillRequest, now: datetime) -> Lease:
    lease = Lease(secrets.token_hex(8), request.client_id, request.owner, request.as_of or now, {})
    connection.execute(
        insert(backfills).values(
            backfill_id=lease.backfill_id,
            client_id=request.client_id,
            stages=json.dumps([str(stage) for stage in request.stages]),
            as_of=lease.as_of,
            code_version=request.code_version,
            run_id=request.run_id,
            started_at=now,
            progress=_dump({}),
            lease_owner=request.owner,
            lease_until=now + LEASE,
        )
    )
    return lease


def _dump(progress: Mapping[BackfillStage, StageProgress]) -> str:
    return _PROGRESS.dump_json(dict(progress)).decode()
