"""Erasure of a lead or a client everywhere this installation keeps something of them.

The order makes it safe to kill at any instant: first it is written down that the ids are erased,
so that no import brings them back; then go the copies outside of the system of record, which are
found by what its rows say; then the rows; then the columnar store, whose next refresh could only
read what is left; last the bytes. The same command again finishes whatever was begun.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl
from sqlalchemy import Engine

from conversion_assets.domain.errors import ConflictError, NotFoundError
from conversion_assets.storage import erasures, quarantine, reconciliation, traces
from conversion_assets.storage.columnar.manifest import TABLES
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.erasures import Erasure
from conversion_assets.storage.traces import Identity, Searched

STORE_WAIT_S = 60.0
"""How long a refresh of the features may take to end: a fleet's incremental one takes seconds."""
_PAUSE_S = 0.2


@dataclass(frozen=True)
class ErasurePlan:
    """What an erasure would remove.

    Attributes:
        rows: Rows of the system of record by table.
        features: Rows in files of the columnar store, earlier versions included.
        quarantined: Refused rows.
        identity: What tells the erased apart; read before the rows go.
    """

    rows: dict[str, int]
    features: int
    quarantined: int
    identity: Identity


@dataclass(frozen=True)
class ErasureReport:
    """What an erasure removed, and the search for what is left.

    Attributes:
        rows: Rows of the system of record by table.
        features: Rows of the current version of the columnar store, by table.
        quarantined: Refused rows.
        database: How far the bytes of deleted rows are gone.
        searched: Every place that was looked through.
    """

    rows: dict[str, int]
    features: dict[str, int]
    quarantined: int
    database: str
    searched: list[Searched]

    @property
    def is_proven(self) -> bool:
        """Whether nothing was found."""
        return traces.total(self.searched) == 0


def plan_erasure(
    engine: Engine,
    store: FeatureStore,
    quarantine_folder: Path,
    erasure: Erasure,
    *,
    learned: bool = False,
    more: Iterable[str] = (),
) -> ErasurePlan:
    """Count what an erasure would remove; changes nothing.

    Args:
        engine: System of record.
        store: Columnar store.
        quarantine_folder: Where refused rows are kept.
        erasure: Whom.
        learned: Also the client's patterns and what belongs to them.
        more: Further texts that name the erased.

    Raises:
        NotFoundError: there is no such client or lead, and none was erased before.
        InputError: something cannot be read.
    """
    erasures.require_known(engine, erasure)
    identity = traces.identify(erasure, erasures.load_identities(engine, erasure), more)
    is_meant = traces.make_row_test(identity)
    return ErasurePlan(
        rows=erasures.count_footprint(engine, erasure, learned=learned),
        features=traces.search_store(store, erasure).found,
        quarantined=sum(quarantine.find_rows(quarantine_folder, is_meant).values()),
        identity=identity,
    )


def erase(
    engine: Engine,
    store: FeatureStore,
    quarantine_folder: Path,
    plan: ErasurePlan,
    *,
    learned: bool = False,
    elsewhere: Callable[[Identity], list[Searched]] = lambda _: [],
    now: Callable[[], datetime],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> ErasureReport:
    """Remove what a plan counted, and search for what is left.

    Args:
        engine: System of record.
        store: Columnar store.
        quarantine_folder: Where refused rows are kept.
        plan: Result of `plan_erasure` of just now.
        learned: Also the client's patterns and what belongs to them.
        elsewhere: Removes and looks for what other programs keep; told once the rows are gone.
        now: Clock.
        sleep: Waits while another process writes features.
        clock: Seconds, for that wait.

    Raises:
        ConflictError: another process holds the store or the database's log; the erasure is begun
            and the same command again finishes it.
        InputError: something cannot be read or written; the same holds.
    """
    erasure = plan.identity.erasure
    is_meant = traces.make_row_test(plan.identity)
    erasures.record_erasure(engine, erasure, now())
    quarantined = quarantine.erase_rows(quarantine_folder, is_meant)
    rows = erasures.delete_rows(engine, erasure, learned=learned)
    features = _erase_features(store, erasure, sleep, clock)
    erasures.forget_deletions(engine, erasure)
    outside = elsewhere(plan.identity)
    database = erasures.scrub_database(engine)
    searched = [
        *traces.search_database(engine, plan.identity),
        traces.search_free_space(engine, plan.identity),
        traces.search_store(store, erasure),
        _search_quarantine(quarantine_folder, is_meant),
        *outside,
    ]
    if traces.total(searched) == 0:
        erasures.finish_erasure(engine, erasure, now())
    return ErasureReport(
        rows=rows,
        features={table: rows for table, rows in features.items() if rows},
        quarantined=quarantined,
        database=database,
        searched=searched,
    )


def find_unfinished(engine: Engine, store: FeatureStore, client_id: str) -> list[str]:
    """Leads of a client whose erasure stands and of which something is still there.

    They are recognised by their hash among the leads that the system of record, its notes of
    deletions and the columnar store hold.

    Raises:
        InputError: database or store cannot be read.
    """
    standing = erasures.read_erasures(engine)
    keys = [reconciliation.read_lead_ids(engine, client_id).select("client_id", "lead_id")]
    for table in TABLES:
        with suppress(NotFoundError):
            keys.append(store.read(table, [client_id], ["client_id", "lead_id"]))
    return sorted(erasures.match_erased(standing, pl.concat(keys))["lead_id"].drop_nulls())


def finish_unfinished(engine: Engine, client_id: str, now: datetime) -> int:
    """Close erasures of leads of which no row is left anywhere; returns how many.

    Their texts are no longer known, so only the bytes are given up; nothing is searched.
    """
    erasures.scrub_database(engine)
    return erasures.finish_open(engine, client_id, now)


def _erase_features(
    store: FeatureStore,
    erasure: Erasure,
    sleep: Callable[[float], None],
    clock: Callable[[], float],
) -> dict[str, int]:
    deadline = clock() + STORE_WAIT_S
    while True:
        try:
            removed = store.erase(erasure.client_id, erasure.lead_ids)
        except ConflictError as error:
            if clock() > deadline:
                raise ConflictError(
                    f"{error}; the rows are gone, the features are not: run the same command again"
                ) from None
            sleep(_PAUSE_S)
        else:
            return {str(table): rows for table, rows in removed.items()}


def _search_quarantine(folder: Path, is_meant: Callable[[str, str], bool]) -> Searched:
    rows = sum(quarantine.count_rows(folder).values())
    searched = Searched("quarantine", f"{rows:,} rows")
    for name, found in quarantine.find_rows(folder, is_meant).items():
        searched.found += found
        searched.where.append(f"{name}: {found} rows")
    return searched
