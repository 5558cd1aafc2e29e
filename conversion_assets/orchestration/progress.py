"""How far a backfill is, for those who watch its run: log lines, tags and metadata."""

import time
from collections.abc import Callable, Mapping

from dagster import AssetExecutionContext
from dagster._core.definitions.metadata import RawMetadataValue

from conversion_assets.domain.backfills import BackfillStage, StageProgress

PROGRESS_TAG = "conversion/progress"

TELL_EVERY_S = 10.0
"""Between two lines of one stage: a log entry is a row of the event log."""


class ProgressLog:
    """Tells a run's log and tags of progress, every few seconds and at the end of a stage.

    Args:
        context: Of the step at work.
        timer: Seconds.
    """

    def __init__(
        self, context: AssetExecutionContext, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._context = context
        self._timer = timer
        self._told: dict[BackfillStage, float] = {}

    def __call__(self, stage: BackfillStage, progress: StageProgress) -> None:
        """Tell if it is time."""
        now = self._timer()
        if not progress.is_finished and now < self._told.get(stage, now) + TELL_EVERY_S:
            self._told.setdefault(stage, now)
            return
        self._told[stage] = now
        line = f"{stage} {describe_progress(progress)}"
        self._context.log.info(line)
        self._context.instance.add_run_tags(self._context.run.run_id, {PROGRESS_TAG: line})


def describe_progress(progress: StageProgress) -> str:
    """Done of total, share and rate.

    Example:
        >>> describe_progress(StageProgress(done=1500, total=6000, seconds=0.5))
        '1,500 of 6,000 (25 %), 3,000/s'
    """
    share = f" ({progress.done / progress.total:.0%})" if progress.total else ""
    done = f"{progress.done:,} of {progress.total:,}{share.replace('%', ' %')}"
    return f"{done}, {progress.rate:,.0f}/s" if progress.seconds > 0 else done


def describe_stages(
    stages: Mapping[BackfillStage, StageProgress],
) -> dict[str, RawMetadataValue]:
    """Metadata of a backfill: per stage done, total, rate and what became of the rows."""
    described: dict[str, RawMetadataValue] = {}
    for stage, progress in stages.items():
        described[f"{stage}"] = describe_progress(progress)
        described[f"{stage}/done"] = progress.done
        described[f"{stage}/total"] = progress.total
        described[f"{stage}/seconds"] = round(progress.seconds, 3)
        described |= {f"{stage}/{name}": count for name, count in progress.counts.items()}
    return described
