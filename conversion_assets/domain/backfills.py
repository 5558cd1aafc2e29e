"""Backfills: the stages of one, how far each is, and what the ledger says of it."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class BackfillStage(StrEnum):
    """What a backfill does, in this order."""

    CONTENT = "content"
    SCORE = "score"
    DETECTORS = "detectors"


class BackfillState(StrEnum):
    """Where a backfill stands. All but `done` and `given_up` go on with the next start."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    GIVEN_UP = "given up"
    DONE = "done"


class StageProgress(BaseModel):
    """How far a stage is.

    Attributes:
        done: Rows looked at: activities, leads, or buckets of features and pattern types.
        total: Rows to look at, as counted when the stage began.
        counts: What became of them: rebuilt, scored, skipped by reason, outcomes by type.
        seconds: Time at work, over all attempts.
        after: Last key that is finished with; the next attempt goes on behind it.
        is_finished: Nothing is left to do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    done: int = 0
    total: int = 0
    counts: dict[str, int] = Field(default_factory=dict)
    seconds: float = 0.0
    after: str | None = None
    is_finished: bool = False

    @property
    def rate(self) -> float:
        """Rows a second.

        Example:
            >>> StageProgress(done=300, total=900, seconds=2.0).rate
            150.0
        """
        return self.done / self.seconds if self.seconds > 0 else 0.0

    def add(
        self, rows: int, counts: dict[str, int], seconds: float, after: str | None = None
    ) -> "StageProgress":
        """Return the progress after some more rows."""
        summed = dict(self.counts)
        for name, count in counts.items():
            summed[name] = summed.get(name, 0) + count
        return self.model_copy(
            update={
                "done": self.done + rows,
                # Rows may have come since the stage began.
                "total": max(self.total, self.done + rows),
                "counts": summed,
                "seconds": self.seconds + seconds,
                "after": after if after is not None else self.after,
            }
        )


class BackfillRecord(BaseModel):
    """One row of the ledger.

    Attributes:
        backfill_id: Identity over all attempts.
        client_id: The client.
        stages: Stages asked for.
        as_of: Moment of the scores and patterns, the same in every attempt.
        code_version: Version of the code of all attempts.
        run_id: Dagster run of the last attempt.
        started_at: First attempt.
        finished_at: End of the whole; None while something is left to do.
        progress: By stage begun.
        error: Why the last attempt failed, or why it was given up.
        state: Where it stands.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backfill_id: str
    client_id: str
    stages: list[BackfillStage]
    as_of: datetime
    code_version: str
    run_id: str
    started_at: datetime
    finished_at: datetime | None
    progress: dict[BackfillStage, StageProgress]
    error: str | None
    state: BackfillState
