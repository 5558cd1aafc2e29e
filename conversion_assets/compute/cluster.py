"""An engine on other machines: a dask.distributed cluster that somebody else runs.

What may break, and what then happens

=============================  ====================================================================
a worker is killed             the scheduler gives its shards to others
all workers are killed         the shards wait for new workers, as long as `Patience` allows
the scheduler is restarted     everything unfinished is submitted again to the new one
a client's data end a worker   the shard is tried alone, then halved until the culprit stands alone
everything is gone for good    UnreachableError; nothing was written, the next run starts again
=============================  ====================================================================

A shard whose worker died several times may have been the victim of another one beside it. It is
therefore suspected only, and tried again when nothing else runs.
"""

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic

from conversion_assets.compute.engine import Done, MakeJob, Result, Shard
from conversion_assets.compute.parcels import (
    Parcel,
    Reply,
    Versions,
    describe_versions,
    open_parcel,
)
from conversion_assets.domain.errors import InputError, UnreachableError

Piece = tuple[str, ...]

_GRACE_S = 5.0
"""For a client's own message about a timeout to come first."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for what may come back.

    Attributes:
        connect_s: For a scheduler at the beginning: a wrong address should be told soon.
        reconnect_s: For a scheduler that was there: a service that is restarted on another machine.
        workers_s: For the first of any workers, while there is none.
        losses: Connections lost in a row without a finished shard before that counts as for good.
        heartbeat_s: Between looks at the cluster while no shard ends.
        result_s: For the result of a finished shard to arrive.
    """

    connect_s: float = 10.0
    reconnect_s: float = 120.0
    workers_s: float = 300.0
    losses: int = 3
    heartbeat_s: float = 5.0
    result_s: float = 60.0


class _LostError(Exception):
    """The connection broke; what was submitted over it is forgotten."""


class _LateError(Exception):
    """A worker died with a result that was ready: it is computed again, and will tell."""


class DaskEngine:
    """Runs the jobs on the workers of a scheduler.

    Args:
        address: tcp:// or tls:// address of the scheduler. Certificates for tls are read as dask
            reads them, from its configuration.
        patience: How long to wait for what.

    Raises:
        InputError: dask.distributed is not installed.
    """

    def __init__(self, address: str, patience: Patience | None = None) -> None:
        self.address = address
        self._patience = patience or Patience()
        self._dask = _import_distributed()
        # Now, before files might be replaced under this process.
        self._versions = describe_versions()

    def run(self, make_job: MakeJob[Result], shards: Sequence[Shard]) -> Iterator[Done[Result]]:
        """See `ComputeEngine.run`; all shards are submitted at once."""
        cluster = _Cluster(self._dask, self.address, self._versions, self._patience)
        try:
            yield from _Run(cluster, make_job, [tuple(shard) for shard in shards]).results()
        finally:
            cluster.disconnect()


class _Run(Generic[Result]):
    """The shards of one `run`, and what is known of each."""

    def __init__(self, cluster: "_Cluster", make_job: MakeJob[Result], shards: list[Piece]) -> None:
        self._cluster = cluster
        self._make_job = make_job
        self._waiting = shards
        self._suspects: list[Piece] = []

    def results(self) -> Iterator[Done[Result]]:
        while self._waiting or self._suspects:
            try:
                yield from self._attempt()
            except _LostError as error:
                self._cluster.lose(error, len(self._waiting) + len(self._suspects))

    def _attempt(self) -> Iterator[Done[Result]]:
        """Everything that waits; or one suspect, alone."""
        batch = list(self._waiting) or self._suspects[:1]
        jobs = {piece: self._make_job(piece) for piece in batch}
        for piece, reply in self._cluster.run(jobs):
            if reply is not None:
                (self._waiting if self._waiting else self._suspects).remove(piece)
                yield Done(piece, reply.result)
            elif self._waiting:
                self._waiting.remove(piece)
                self._suspects.append(piece)
            elif len(piece) > 1:
                middle = len(piece) // 2
                self._suspects[:1] = [piece[:middle], piece[middle:]]
            else:
                self._suspects.remove(piece)
                yield Done(piece, error=_CULPRIT)


_CULPRIT = (
    "every worker that computed this client alone was killed or ran out of memory; "
    "the workers' logs tell by what"
)


class _Cluster:
    """A connection that is opened when it is needed, and again when it was lost."""

    def __init__(self, dask: Any, address: str, versions: Versions, patience: Patience) -> None:
        self._dask = dask
        self._address = address
        self._versions = versions
        self._patience = patience
        self._client: Any = None
        self._losses = 0
        self._was_connected = False

    def run(self, jobs: dict[Piece, Any]) -> Iterator[tuple[Piece, Reply | None]]:
        """Replies as they come; None for a job whose workers died or had too little memory."""
        client = self._connect()
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        token = secrets.token_hex(4)
        pieces: dict[str, Piece] = {}
        futures: dict[str, Any] = {}
        with self._reported_losses():
            for number, (piece, job) in enumerate(jobs.items()):
                key = f"shard-{token}-{number}"
                parcel = Parcel(job, self._versions)
                futures[key] = client.submit(open_parcel, parcel, key=key, pure=False)
                pieces[key] = piece
                futures[key].add_done_callback(done.put)
        since: float | None = None
        while pieces:
            try:
                future = done.get(timeout=self._patience.heartbeat_s)
            except queue.Empty:
                since = self._look_for_workers(since, len(pieces))
                continue
            since = None
            try:
                reply = self._receive(future)
            except _LateError:
                future.add_done_callback(done.put)
                continue
            self._losses = 0
            # Dropping the future lets the worker forget the result.
            del futures[future.key]
            yield pieces.pop(future.key), reply

    def _receive(self, future: Any) -> Reply | None:
        if future.status == "error":
            self._explain(future.exception(timeout=self._patience.result_s))
            return None
        if future.status in ("cancelled", "lost"):
            raise _LostError("the scheduler forgot what was submitted")
        with self._reported_losses():
            try:
                reply: Reply = future.result(timeout=self._patience.result_s)
            except TimeoutError:
                if future.status == "pending":
                    raise _LateError from None
                raise
        if reply.mismatch is not None:
            raise InputError(
                f"compute engine {self._address}: a worker runs {reply.mismatch}; "
                "install the same versions there and restart it"
            )
        if reply.error is not None:
            raise reply.error
        return None if reply.lacks_memory else reply

    def _explain(self, error: BaseException) -> None:
        """Return for a job that ended its workers; raise whatever else the engine says."""
        if isinstance(error, self._dask.KilledWorker):
            return
        line = " ".join(str(error).split())[:300]
        if isinstance(error, ImportError) or "deserialize" in line:
            raise InputError(
                f"compute engine {self._address}: a worker cannot load the code ({line}); "
                "install this package there"
            ) from None
        raise UnreachableError(f"compute engine {self._address}: {type(error).__name__}: {line}")

    def _look_for_workers(self, since: float | None, left: int) -> float | None:
        """Return since when there is no worker; None where there is one."""
        with self._reported_losses():
            client = self._client
            if client.sync(client.scheduler.ncores, callback_timeout=self._patience.result_s):
                return None
        now = time.monotonic()
        if since is not None and now - since > self._patience.workers_s:
            raise UnreachableError(
                f"compute engine {self._address}: no worker for {now - since:.0f} s, {left} shards "
                "are left; start workers and run again"
            )
        return since or now

    def _connect(self) -> Any:
        if self._client is None:
            patience = self._patience
            seconds = patience.reconnect_s if self._was_connected else patience.connect_s
            try:
                self._client = _call_within(
                    seconds + _GRACE_S,
                    lambda: self._dask.Client(
                        self._address,
                        timeout=seconds,
                        set_as_default=False,
                        name="conversion-assets",
                    ),
                )
            except (OSError, TimeoutError, ValueError, RuntimeError, ImportError) as error:
                raise UnreachableError(
                    f"compute engine {self._address} cannot be reached within {seconds:.0f} s "
                    f"({_shorten(error)}); start a scheduler there (docs/cluster.md), or unset "
                    "CONVERSION_COMPUTE_URL to compute in this process"
                ) from None
            self._was_connected = True
        return self._client

    def lose(self, error: _LostError, left: int) -> None:
        """Close a connection that broke; UnreachableError when that happens again and again."""
        self.disconnect()
        self._losses += 1
        if self._losses > self._patience.losses:
            raise UnreachableError(
                f"compute engine {self._address}: the connection broke {self._losses} times "
                f"without a finished shard, {left} are left ({error}); run again when it is back"
            ) from None

    def disconnect(self) -> None:
        """Cancel what is unfinished and close the connection, if there is one."""
        client, self._client = self._client, None
        if client is not None:
            # Whatever it says: nobody wants anything of it any more.
            with suppress(Exception):
                client.close(timeout=self._patience.connect_s)

    @contextmanager
    def _reported_losses(self) -> Iterator[None]:
        """Turn every way in which a connection says that it broke into one."""
        try:
            yield
        except (OSError, self._dask.CancelledError) as error:
            raise _LostError(_shorten(error)) from None


def _call_within(seconds: float, call: Callable[[], Any]) -> Any:
    """Call in a thread of its own; TimeoutError when it does not come back.

    A client's own timeout ends where the connection begins: a scheduler that hangs accepts one and
    says nothing for ever.
    """
    done: Future[Any] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            done.set_exception(error)

    threading.Thread(target=work, daemon=True, name="compute-engine").start()
    return done.result(timeout=seconds)


def _shorten(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def _import_distributed() -> Any:
    try:
        import dask  # noqa: PLC0415 - an optional extra

        # The engine's own lines repeat, with a traceback, what is told in one line here.
        quiet = {"distributed": "critical", "distributed.client": "critical"}
        with dask.config.set(logging=quiet):
            import distributed  # noqa: PLC0415
    except ImportError:
        raise InputError(
            "CONVERSION_COMPUTE_URL is set, but dask.distributed is not installed; install "
            "conversion-assets[cluster], or unset it to compute in this process"
        ) from None
    return distributed
