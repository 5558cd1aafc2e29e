"""Backfill of one client: content snapshots, scores, patterns; resumable after any instant.

Each stage works in chunks; a chunk's rows and the ledger's progress are one transaction, so a
killed backfill goes on behind the last whole chunk and counts nothing twice.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl
from sqlalchemy import Engine

from conversion_assets.compute.engine import ComputeEngine, LocalEngine
from conversion_assets.domain.backfills import BackfillRecord, BackfillStage, StageProgress
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.errors import ConflictError, ConversionError, InputError
from conversion_assets.domain.terms import PatternType
from conversion_assets.features.snapshots import SNAPSHOT_CODE, rebuild_snapshots
from conversion_assets.learning import CODE_VERSION
from conversion_assets.refresh.features import refresh_features
from conversion_assets.refresh.patterns import (
    Describe,
    PatternRefresh,
    refresh_patterns,
    say_nothing,
)
from conversion_assets.refresh.scoring import count_unscored, score_leads
from conversion_assets.scoring.lead_score import SCORE_VERSION
from conversion_assets.storage.backfills import LEASE, BackfillLedger, BackfillRequest, Lease
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import reported_connection_errors, write_transaction
from conversion_assets.storage.snapshots import (
    PAGE_ACTIVITIES,
    LeadPage,
    count_activities,
    read_page,
    write_snapshots,
)
from conversion_assets.storage.sources import open_snapshot

BACKFILL_VERSION = f"{CODE_VERSION}/snapshots-{SNAPSHOT_CODE}/{SCORE_VERSION}"
"""What a backfill was done by: snapshots, scores, features and detection."""

BEATS = 5
"""Signs of life within one lease, so that a few may be lost."""

REBUILT = "rebuilt"
CHANGED_MEANWHILE = "changed meanwhile"
"""Left to the next backfill: somebody wrote the row between reading and storing it."""

Progress = Callable[[BackfillStage, StageProgress], None]


@dataclass(frozen=True)
class BackfillReport:
    """What a backfill came to.

    Attributes:
        record: Its row of the ledger.
        patterns: What was learned; None without that stage.
    """

    record: BackfillRecord
    patterns: PatternRefresh | None


@dataclass(frozen=True)
class BackfillTools:
    """What a backfill works with.

    Attributes:
        engine: System of record.
        store: Features.
        learning: Thresholds of detection.
        clock: Aware time.
        progress: Called after each chunk.
        timer: Seconds, for rates.
        page_activities: Activities in memory at once.
        compute: Where shards of clients are computed.
        describe: See `refresh_patterns`.
    """

    engine: Engine
    store: FeatureStore
    learning: LearningConfig
    clock: Callable[[], datetime]
    progress: Progress = lambda _stage, _progress: None
    timer: Callable[[], float] = time.monotonic
    page_activities: int = PAGE_ACTIVITIES
    compute: ComputeEngine = field(default_factory=LocalEngine)
    describe: Describe = say_nothing


def backfill_client(
    tools: BackfillTools,
    *,
    client_id: str,
    stages: Sequence[BackfillStage],
    run_id: str,
    as_of: datetime | None = None,
) -> BackfillReport:
    """Do the stages asked for, or what an earlier attempt left of them.

    Args:
        tools: Databases, thresholds, clock.
        client_id: The client.
        stages: What to do; the order is always that of `BackfillStage`.
        run_id: Kept in the ledger and beside what is learned.
        as_of: Moment of scores and patterns; None for that of an unfinished backfill, else now.

    Returns:
        The ledger's row. It is not finished where a detector failed; the next attempt learns again.

    Raises:
        InputError: no stage was chosen.
        NotFoundError: there is no such client.
        ConflictError: another process is at work on this client, or writes features.
        UnreachableError: the database broke off; what was committed stays.
    """
    if not stages:
        raise InputError("nothing to do: leave at least one of content, score and detectors on")
    request = BackfillRequest(
        client_id=client_id,
        stages=[stage for stage in BackfillStage if stage in stages],
        as_of=as_of,
        code_version=BACKFILL_VERSION,
        run_id=run_id,
        owner=name_owner(),
    )
    ledger = BackfillLedger(tools.engine, tools.clock)
    lease = ledger.begin(request, is_gone)
    with _kept_alive(ledger, lease):
        work = _Work(tools, ledger, lease)
        try:
            patterns = work.run(request)
        except Exception as error:
            ledger.fail(lease, _one_line(error))
            raise
        if patterns is not None and patterns.failures:
            lines = [f"{one.pattern_type}: {one.error}" for one in patterns.failures]
            ledger.fail(lease, "; ".join(lines))
        else:
            ledger.finish(lease, work.progress)
    return BackfillReport(ledger.load(lease.backfill_id), patterns)


def plan_backfill(
    tools: BackfillTools,
    *,
    client_id: str,
    stages: Sequence[BackfillStage],
    as_of: datetime | None = None,
) -> dict[BackfillStage, StageProgress]:
    """What the stages would do; nothing is written.

    Args:
        tools: Databases, clock.
        client_id: The client.
        stages: What to look at.
        as_of: Moment of scores; None for now.

    Raises:
        NotFoundError: there is no such client.
        ConflictError: a backfill is at work on this client.
    """
    BackfillLedger(tools.engine, tools.clock).require_free(client_id, is_gone)
    plan: dict[BackfillStage, StageProgress] = {}
    for stage in stages:
        if stage == BackfillStage.CONTENT:
            plan[stage] = _plan_content(tools, client_id)
        elif stage == BackfillStage.SCORE:
            missing = count_unscored(tools.engine, client_id, as_of or tools.clock())
            plan[stage] = StageProgress(total=missing, counts={"to score": missing})
        else:
            plan[stage] = StageProgress(
                total=len(PatternType), counts={"to learn": len(PatternType)}
            )
    return plan


def _plan_content(tools: BackfillTools, client_id: str) -> StageProgress:
    progress = StageProgress()
    with open_snapshot(tools.engine) as snapshot:
        progress = progress.model_copy(update={"total": count_activities(snapshot, client_id)})
        while page := read_page(
            snapshot, client_id, progress.after, most_activities=tools.page_activities
        ):
            started = tools.timer()
            rows, counts = _rebuild(page)
            counts = {"to rebuild": rows.height, **counts}
            seconds = tools.timer() - started
            progress = progress.add(page.rows, counts, seconds, page.last_lead_id)
            tools.progress(BackfillStage.CONTENT, progress)
    return progress


def _rebuild(page: LeadPage) -> tuple[pl.DataFrame, dict[str, int]]:
    """Snapshots to store with the change id of their row as read, and skipped ones by reason."""
    rebuilt = rebuild_snapshots(page.activities, page.leads)
    read = page.activities.select("client_id", "id", "change_id")
    rows = rebuilt.rows.join(read, on=["client_id", "id"])
    return rows, dict(rebuilt.skipped.group_by("reason").len().sort("reason").iter_rows())


@dataclass
class _Work:
    """One attempt: the stages in turn, and how far each is."""

    tools: BackfillTools
    ledger: BackfillLedger
    lease: Lease
    progress: dict[BackfillStage, StageProgress] = field(init=False)

    def __post_init__(self) -> None:
        self.progress = dict(self.lease.progress)

    def run(self, request: BackfillRequest) -> PatternRefresh | None:
        patterns = None
        for stage in request.stages:
            if self.progress.get(stage, StageProgress()).is_finished:
                continue
            if stage == BackfillStage.CONTENT:
                self._rebuild_content()
            elif stage == BackfillStage.SCORE:
                self._score()
            else:
                patterns = self._learn(request)
        return patterns

    def _rebuild_content(self) -> None:
        stage, client_id = BackfillStage.CONTENT, self.lease.client_id
        if stage not in self.progress:
            with open_snapshot(self.tools.engine) as snapshot:
                self._set(stage, StageProgress(total=count_activities(snapshot, client_id)))
        while True:
            started = self.tools.timer()
            after = self.progress[stage].after
            with open_snapshot(self.tools.engine) as snapshot:
                page = read_page(
                    snapshot, client_id, after, most_activities=self.tools.page_activities
                )
            if page is None:
                break
            self._store_page(page, started)
        self._end(stage)

    def _store_page(self, page: LeadPage, started: float) -> None:
        stage = BackfillStage.CONTENT
        rows, counts = _rebuild(page)
        engine = self.tools.engine
        with reported_connection_errors(engine), write_transaction(engine) as connection:
            stored = write_snapshots(connection, rows)
            counts[REBUILT] = stored
            if stored < rows.height:
                counts[CHANGED_MEANWHILE] = rows.height - stored
            seconds = self.tools.timer() - started
            now = self.progress[stage].add(page.rows, counts, seconds, page.last_lead_id)
            self.ledger.advance(connection, self.lease, {**self.progress, stage: now})
        self.progress[stage] = now
        self.tools.progress(stage, now)

    def _score(self) -> None:
        stage, engine = BackfillStage.SCORE, self.tools.engine
        missing = count_unscored(engine, self.lease.client_id, self.lease.as_of)
        before = self.progress.get(stage, StageProgress(total=missing))
        # Scored ones are told from the rows themselves: a chunk may have been stored untold.
        earlier = max(before.total - missing, 0)
        started = self.tools.timer()

        def tell(done: int, total: int) -> None:
            self._set(
                stage,
                before.model_copy(
                    update={
                        "done": earlier + done,
                        "total": earlier + total,
                        "counts": {"scored": earlier + done},
                        "seconds": before.seconds + self.tools.timer() - started,
                    }
                ),
            )

        tell(0, missing)
        score_leads(
            engine,
            [self.lease.client_id],
            now=self.lease.as_of,
            only_missing=True,
            progress=tell,
        )
        self._end(stage)

    def _learn(self, request: BackfillRequest) -> PatternRefresh:
        stage, tools = BackfillStage.DETECTORS, self.tools
        started = tools.timer()
        kinds = list(PatternType)
        self._set(stage, StageProgress(total=len(kinds)))
        refresh_features(tools.engine, tools.store)
        learned = refresh_patterns(
            tools.engine,
            tools.store,
            client_ids=[request.client_id],
            kinds=kinds,
            as_of=self.lease.as_of,
            run_id=request.run_id,
            config=tools.learning,
            now=tools.clock,
            compute=tools.compute,
            describe=tools.describe,
        )
        counts = {f"{one.pattern_type} {one.outcome}": 1 for one in learned.outcomes}
        seconds = tools.timer() - started
        done = self.progress[stage].add(len(kinds) - len(learned.failures), counts, seconds)
        self.progress[stage] = done.model_copy(update={"is_finished": not learned.failures})
        tools.progress(stage, self.progress[stage])
        return learned

    def _end(self, stage: BackfillStage) -> None:
        self._set(stage, self.progress[stage].model_copy(update={"is_finished": True}))

    def _set(self, stage: BackfillStage, now: StageProgress) -> None:
        """Write a stage's progress by itself."""
        self.progress[stage] = now
        engine = self.tools.engine
        with reported_connection_errors(engine), write_transaction(engine) as connection:
            self.ledger.advance(connection, self.lease, self.progress)
        self.tools.progress(stage, now)


@contextmanager
def _kept_alive(ledger: BackfillLedger, lease: Lease) -> Iterator[None]:
    """Give signs of life while the block runs, also within a chunk that takes long."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(LEASE.total_seconds() / BEATS):
            try:
                ledger.beat(lease)
            except ConflictError:
                return  # the next write of the work itself says so
            except ConversionError:
                continue  # busy or away for a moment; the lease outlives some lost beats

    thread = threading.Thread(target=beat, name="backfill-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def name_owner() -> str:
    """Name this process as the holder of a lease."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def is_gone(owner: str) -> bool:
    """Whether a holder is a process of this machine that no longer runs.

    A mistake (a container of the same host name) costs nothing but the other's next chunk: whoever
    lost a lease stores nothing more.
    """
    host, pid, _ = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
