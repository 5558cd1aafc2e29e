"""Shards of clients: what each tells once its rows are read, and dropped again.

A shard's job is the only part of learning that holds rows. It reads them from the shared store, so
that it may run in this process or on any machine that sees the store.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from conversion_assets.compute.engine import ComputeEngine
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.errors import InputError
from conversion_assets.domain.facts import Drift
from conversion_assets.domain.shards import plan_shards
from conversion_assets.evaluation.drift import find_drift
from conversion_assets.refresh.forward import grade_due
from conversion_assets.storage.columnar.manifest import Manifest, bucket_of
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.survey import Survey, isolate_failures, survey_rows

UNUSED = ("activity_id", "lead_created_at", "previous_channel", "adds_channel", "sequence_id")
"""Columns of touches that no detector reads: a quarter of the memory of a large client."""

RECENT_DAYS = 84
"""Days that are "now" when they are compared with the learning window: twelve weeks, since the
outcomes of leads take weeks to be known."""

ROWS_PER_SHARD = 500_000
"""Leads and touches in memory at once. A thousand clients with 7.5 million touches took 0.74 GB at
their peak, and 1.14 GB with twice as many rows in a shard, which was no faster; much smaller shards
pay for the sixty questions that are asked of each."""


def locate_store(store: FeatureStore) -> str:
    """Address of a store that is the same on every machine; without options or credentials."""
    return store.url if "://" in store.url else str(Path(store.url).absolute())


@dataclass(frozen=True)
class Findings:
    """What shards of clients tell, without their rows.

    Attributes:
        surveys: Their counts.
        errors: Why a client could not be surveyed.
        drifts: What drifted, or why that cannot be told, of each client that is learned.
        graded: Their forecasts graded now, columns of `FORECASTS`.
        ungraded: Why a client's forecasts could not be graded.
        fingerprints: Of the rows that were read.
    """

    surveys: list[Survey] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)
    drifts: dict[str, tuple[tuple[Drift, ...], str | None]] = field(default_factory=dict)
    graded: list[pl.DataFrame] = field(default_factory=list)
    ungraded: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def add(self, other: "Findings") -> None:
        """Take in what another shard tells."""
        self.surveys.extend(other.surveys)
        self.errors.update(other.errors)
        self.drifts.update(other.drifts)
        self.graded.extend(other.graded)
        self.ungraded.update(other.ungraded)
        self.fingerprints.update(other.fingerprints)


@dataclass(frozen=True)
class SurveyJob:
    """Reads the rows of a shard and looks at them in every way that learning needs.

    Attributes:
        store: Features; it travels as its address alone, without options or credentials.
        revision: Version of the store that the clients were chosen from.
        client_ids: The clients.
        learned: Those of them to learn; the others lend to the pool.
        forecasts: Their forecasts as known at `as_of`, columns of `FORECASTS`.
        as_of: Nothing later counts.
        config: Thresholds.
    """

    store: FeatureStore
    revision: int
    client_ids: tuple[str, ...]
    learned: tuple[str, ...]
    forecasts: pl.DataFrame
    as_of: datetime
    config: LearningConfig

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "store": locate_store(self.store)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, store=FeatureStore(state["store"]))

    def __call__(self) -> Findings:
        """Read, count, compare and grade.

        Raises:
            InputError: the store cannot be read, or is another one than the clients were chosen
                from.
        """
        leads, touches, manifest = self._read()
        graded, ungraded = grade_due(
            self.forecasts, leads, touches, as_of=self.as_of, config=self.config
        )
        drifts = _find_drifts(
            leads, touches.clear(), self.learned, as_of=self.as_of, config=self.config
        )
        rows = [leads, touches]
        del leads, touches
        surveys, errors = survey_rows(rows, self.client_ids, as_of=self.as_of, config=self.config)
        return Findings(
            surveys,
            errors,
            drifts,
            [graded],
            ungraded,
            {c: manifest.clients[c].fingerprint for c in self.client_ids if c in manifest.clients},
        )

    def _read(self) -> tuple[pl.DataFrame, pl.DataFrame, Manifest]:
        seen = self.store.load_manifest().revision
        if seen < self.revision:
            raise InputError(
                f"store {self.store.url}: a worker sees version {seen or 'none'} instead of "
                f"{self.revision}; all machines must share one store (docs/cluster.md)"
            )
        return self.store.read_features(self.client_ids, without=UNUSED, in_order=False)


def survey_shards(
    store: FeatureStore,
    compute: ComputeEngine,
    *,
    client_ids: Collection[str],
    learned: Collection[str],
    forecasts: pl.DataFrame,
    as_of: datetime,
    config: LearningConfig,
    rows_per_shard: int = ROWS_PER_SHARD,
) -> Findings:
    """Survey all clients, some at a time.

    Args:
        store: Features.
        compute: Where the shards are computed.
        client_ids: Clients to survey.
        learned: Those of them to learn.
        forecasts: Forecasts of these as known at `as_of`.
        as_of: Nothing later counts.
        config: Thresholds.
        rows_per_shard: Rows in memory at once; a larger client is a shard of its own.

    Returns:
        The findings of all shards; how the clients were divided cannot be told from what is
        concluded of them.

    Raises:
        NotFoundError: nothing was ever written to the store.
        InputError: the store cannot be read.
        UnreachableError: the engine cannot be reached.
    """
    manifest = store.load_manifest()
    chosen = set(learned)
    of_client = {
        str(key): part for (key,), part in forecasts.group_by("client_id", maintain_order=True)
    }

    def make_job(shard: Sequence[str]) -> SurveyJob:
        own = [of_client[client] for client in shard if client in of_client]
        return SurveyJob(
            store,
            manifest.revision,
            tuple(shard),
            tuple(client for client in shard if client in chosen),
            pl.concat([forecasts.clear(), *own]),
            as_of,
            config,
        )

    shards = plan_shards(_measure(manifest, client_ids), rows_per_shard)
    parts: dict[str, Findings] = {}
    for done in compute.run(make_job, shards):
        found = done.result or Findings(errors=dict.fromkeys(done.client_ids, str(done.error)))
        parts[done.client_ids[0]] = found
    whole = Findings()
    # In the order of the plan, whichever came first.
    for client in (client for shard in shards for client in shard):
        if client in parts:
            whole.add(parts[client])
    return whole


def _measure(manifest: Manifest, client_ids: Collection[str]) -> Mapping[str, int]:
    """Rows of each client, those in one file of the store side by side."""
    sizes = {}
    for client in sorted(client_ids, key=lambda c: (bucket_of(c), c)):
        stored = manifest.clients.get(client)
        sizes[client] = 0 if stored is None else stored.leads + stored.touches
    return sizes


def _find_drifts(
    leads: pl.DataFrame,
    no_touches: pl.DataFrame,
    client_ids: Sequence[str],
    *,
    as_of: datetime,
    config: LearningConfig,
) -> dict[str, tuple[tuple[Drift, ...], str | None]]:
    """What drifted in each client's leads, or why that cannot be told.

    Only leads are looked at (`no_touches` is an empty `touch_features`). Touches are what the
    client chooses to send: their mix moves when somebody follows a pattern, and whether they still
    convert as learned is graded by the forward record.
    """
    recent = as_of - timedelta(days=RECENT_DAYS)
    window = timedelta(days=max(config.window_days, 2 * RECENT_DAYS))

    def compare(group: Sequence[str]) -> pl.DataFrame:
        return find_drift(
            leads,
            no_touches,
            group,
            old=(as_of - window, recent),
            new=(recent, as_of),
            as_of=as_of,
            config=config,
        )

    parts, errors = isolate_failures(compare, sorted(client_ids))
    drifted: dict[str, list[Drift]] = {}
    for part in parts:
        for client_id, drift in _list_drift(part):
            drifted.setdefault(client_id, []).append(drift)
    return {
        client: (
            tuple(drifted.get(client, ())),
            " ".join(str(errors[client]).split()) if client in errors else None,
        )
        for client in client_ids
    }


def _list_drift(found: pl.DataFrame) -> Iterator[tuple[str, Drift]]:
    names = ("question", "dimension", "n_old", "n_new", "change", "p_value", "tests")
    tests = pl.col("is_tested").sum().over("client_id", "question")
    drifted = found.with_columns(is_tested=pl.col("p_value") < 1.0).with_columns(tests=tests)
    for client_id, *values in drifted.filter("is_drift").select("client_id", *names).iter_rows():
        yield client_id, Drift(**dict(zip(names, values, strict=True)))
