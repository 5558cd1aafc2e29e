"""The contract of an engine, and the one that needs nothing: this process.

Work is divided into shards of clients. For each shard the caller makes a job: a callable without
arguments whose result depends on nothing but what it carries and on the shared store. That is why
it does not matter where a job runs, in which order, or how often: an engine may run it again, and
may divide a shard whose job ends its process until the client that does it stands alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Result = TypeVar("Result")

Shard = Sequence[str]
"""Ids of the clients of one job."""

Job = Callable[[], Result]
"""Pickled where it runs elsewhere: it carries no secret, for engines log and show what they run."""

MakeJob = Callable[[Shard], Job[Result]]


@dataclass(frozen=True)
class Done(Generic[Result]):
    """What became of a shard or of a part of it.

    Attributes:
        client_ids: Its clients.
        result: What the job returned; None when there is an error.
        error: Why these clients cannot be computed at all; every try ended the process.
    """

    client_ids: tuple[str, ...]
    result: Result | None = None
    error: str | None = None


class ComputeEngine(Protocol):
    """Runs jobs over shards of clients."""

    def run(self, make_job: MakeJob[Result], shards: Sequence[Shard]) -> Iterator[Done[Result]]:
        """Run the job of every shard; give results as they come, in any order.

        A shard may come back in parts; every client comes back exactly once. What a job raises is
        raised here, for a job reports what a client's data break by itself. Leaving the iterator
        cancels what was not finished.

        Args:
            make_job: Makes the job of a shard or of a part of it.
            shards: Clients of each job; no client is in two, none is empty.

        Raises:
            UnreachableError: the engine cannot be reached, or was lost for good.
            InputError: a worker has another version of the code or another store.
        """
        ...


class LocalEngine:
    """Runs one job after the other in this process.

    Example:
        >>> engine = LocalEngine()
        >>> [d.result for d in engine.run(lambda shard: lambda: len(shard), [["a", "b"], ["c"]])]
        [2, 1]
    """

    def run(self, make_job: MakeJob[Result], shards: Sequence[Shard]) -> Iterator[Done[Result]]:
        """Run the job of every shard, in the order given."""
        for shard in shards:
            yield Done(tuple(shard), make_job(shard)())
