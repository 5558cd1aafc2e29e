"""Jobs that a worker loads from here: they count, wait, fail or kill where they run."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from conversion_assets.compute.cluster import DaskEngine, Patience
from conversion_assets.compute.engine import ComputeEngine
from conversion_assets.domain.errors import InputError
from conversion_assets.storage.database import create_database_engine
from conversion_assets_tests.clusters import Cluster

PATIENCE = Patience(connect_s=20.0, reconnect_s=60.0, workers_s=60.0, heartbeat_s=0.5)


@dataclass(frozen=True)
class Spell:
    """Returns its clients in capitals and notes in a folder that it ran, and where.

    It takes so many seconds, unless one of its clients is a quick one.
    """

    clients: tuple[str, ...]
    folder: Path
    seconds: float = 0.0
    quick: frozenset[str] = frozenset()
    deadly: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    greedy: frozenset[str] = frozenset()
    password: str = ""

    def __call__(self) -> list[str]:
        (self.folder / f"{self.clients[0]}-{os.getpid()}-{time.monotonic_ns()}").touch()
        if not self.quick & set(self.clients):
            time.sleep(self.seconds)
        if self.deadly & set(self.clients):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.greedy & set(self.clients):
            raise MemoryError
        if self.refused & set(self.clients):
            raise InputError(f"client {min(self.refused)}: its file is damaged")
        return [client.upper() for client in self.clients]


@dataclass(frozen=True)
class MakeSpell:
    """Makes the job of a shard."""

    folder: Path
    seconds: float = 0.0
    quick: frozenset[str] = frozenset()
    deadly: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    greedy: frozenset[str] = frozenset()
    password: str = ""

    def __call__(self, shard: Sequence[str]) -> Spell:
        return Spell(
            tuple(shard),
            self.folder,
            self.seconds,
            self.quick,
            self.deadly,
            self.refused,
            self.greedy,
            self.password,
        )


@dataclass(frozen=True)
class Deadly:
    """A job of the package that ends its process where one client is among its own."""

    job: Any
    client: str

    def __call__(self) -> Any:
        own = getattr(self.job, "client_ids", None)
        if own is None:
            own = [client for ids in self.job.buckets.values() for client in ids]
        if self.client in own:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.job()


@dataclass(frozen=True)
class Poisoned:
    """An engine on which the rows of one client are deadly."""

    engine: ComputeEngine
    client: str

    def run(self, make_job: Any, shards: Any) -> Any:
        return self.engine.run(lambda shard: Deadly(make_job(shard), self.client), shards)


class Killing:
    """The engine of a cluster, with a worker that is killed when the first shard is done."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.engine = DaskEngine(cluster.address, PATIENCE)

    def run(self, make_job: Any, shards: Any) -> Any:
        for number, done in enumerate(self.engine.run(make_job, shards)):
            if number == 0:
                self.cluster.computing(0).kill()
            yield done


def connect() -> Engine:
    """The database that the worker's own environment names."""
    return create_database_engine(os.environ["TEST_DATABASE_URL"])
