"""Loading the store anew on many machines: each reads, computes and writes some buckets.

A worker reads the system of record by its own environment, so that no address with a password
travels, and writes files that nobody sees. The coordinator alone puts them in force, all at once:
a worker that dies leaves files that no version names, which a later write collects, and the buckets
are loaded again by another.

Each worker reads a state of its own, not earlier than the watermark that the store is given. What
changed in between is therefore read again by the next refresh, which takes a row twice without
harm.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from sqlalchemy import Engine

from conversion_assets.compute.engine import ComputeEngine
from conversion_assets.domain.content import ContentVocabulary
from conversion_assets.domain.errors import InputError
from conversion_assets.features.frames import CLIENT_COLUMNS
from conversion_assets.refresh.features import Loaded, load_buckets
from conversion_assets.refresh.surveys import locate_store
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.sources import open_snapshot

Connect = Callable[[], Engine]
"""Opens the system of record that the process's own environment names; a function of a module."""

Buckets = Mapping[int, list[str]]


@dataclass(frozen=True)
class LoadJob:
    """Loads some buckets anew.

    Attributes:
        store: Where to; it travels as its address alone.
        connect: Opens the system of record on the worker.
        epoch: Which database that must be.
        clients: Raw client rows of the buckets.
        buckets: Client ids by bucket.
        vocabulary: Content vocabulary.
        is_trial: Compute, but write nothing.
    """

    store: FeatureStore
    connect: Connect
    epoch: str
    clients: pl.DataFrame
    buckets: Buckets
    vocabulary: ContentVocabulary
    is_trial: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "store": locate_store(self.store)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, store=FeatureStore(state["store"]))

    def __call__(self) -> Loaded:
        """Read, compute and write.

        Raises:
            InputError: the worker's environment names another database.
        """
        engine = self.connect()
        try:
            with open_snapshot(engine) as snapshot:
                if snapshot.watermark.epoch != self.epoch:
                    raise InputError(
                        "a worker reads another database; set CONVERSION_DATABASE_URL on every "
                        "machine (docs/cluster.md)"
                    )
                return load_buckets(
                    snapshot,
                    self.store.detached_writer(),
                    self.clients,
                    self.buckets,
                    self.vocabulary,
                    is_trial=self.is_trial,
                )
        finally:
            engine.dispose()


@dataclass(frozen=True)
class ClusterLoader:
    """Loads buckets on an engine.

    Attributes:
        compute: Where.
        connect: Opens the system of record on a worker.
    """

    compute: ComputeEngine
    connect: Connect

    def load(
        self,
        store: FeatureStore,
        epoch: str,
        clients: pl.DataFrame,
        buckets: Buckets,
        vocabulary: ContentVocabulary,
    ) -> Iterator[Loaded]:
        """Load all buckets; give what was written as it comes.

        Raises:
            InputError: a client ends every process that computes it; it is named.
            UnreachableError: the engine is gone.
        """
        columns = clients.select(*CLIENT_COLUMNS)

        def make_job(shard: Sequence[str]) -> LoadJob:
            own = {bucket: buckets[bucket] for bucket in map(int, shard)}
            return self._make(store, epoch, columns, own, vocabulary, is_trial=False)

        def make_trial(shard: Sequence[str]) -> LoadJob:
            own = {bucket: [c for c in ids if c in shard] for bucket, ids in buckets.items()}
            held = {bucket: ids for bucket, ids in own.items() if ids}
            return self._make(store, epoch, columns, held, vocabulary, is_trial=True)

        # A bucket is one file: it is not divided among workers.
        for done in self.compute.run(make_job, [[str(bucket)] for bucket in buckets]):
            if done.result is None:
                suspects = [client for bucket in done.client_ids for client in buckets[int(bucket)]]
                self._name_culprits(make_trial, suspects, str(done.error))
            else:
                yield done.result

    def _make(
        self,
        store: FeatureStore,
        epoch: str,
        clients: pl.DataFrame,
        buckets: Buckets,
        vocabulary: ContentVocabulary,
        *,
        is_trial: bool,
    ) -> LoadJob:
        ids = [client_id for ids in buckets.values() for client_id in ids]
        own = clients.filter(pl.col("id").is_in(ids))
        return LoadJob(store, self.connect, epoch, own, buckets, vocabulary, is_trial)

    def _name_culprits(
        self, make_trial: Callable[[Sequence[str]], LoadJob], suspects: list[str], error: str
    ) -> None:
        """Compute the clients of a bucket that nobody could load, and name those that cannot be."""
        tried = self.compute.run(make_trial, [suspects])
        named = sorted(c for done in tried if done.error is not None for c in done.client_ids)
        if named:
            raise InputError(f"features of client {', '.join(named)}: {error}")
        raise InputError(
            f"features of clients {', '.join(sorted(suspects))}: each can be computed alone, all "
            "of them need more memory than a worker has"
        )
