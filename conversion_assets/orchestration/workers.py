"""Which process works on a run, so that a run whose process vanished is noticed.

Dagster's code server watches the processes it starts, but its watch ends for good when the
database stays away for longer than it asks again (seconds), and when it is killed itself. The run
then counts as started for hours, and whatever shares its pool waits. Each run therefore carries
the name of its process, and a sensor, which works in the code server where the processes are,
looks for them.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

from dagster import (
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    Executor,
    InitExecutorContext,
    RunsFilter,
    executor,
    in_process_executor,
)
from dagster._core.events import DagsterEvent
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode

WORKER_TAG = "conversion/worker"

_PROCESSES = Path("/proc")
_STATE, _STARTED_AT = 0, 19
"""Places of a process's state and start in /proc/PID/stat, counted after its name."""


def describe_process(pid: int) -> str:
    """Return the name of a running process of this machine, unlike any other's before or after.

    Example:
        >>> describe_process(os.getpid()).split()[1] == str(os.getpid())
        True
    """
    return f"{socket.gethostname()} {pid} {_read_start(pid)}"


def is_gone(worker: str) -> bool:
    """Return whether a process of this machine has ended; of other machines nothing is known.

    Example:
        >>> is_gone(describe_process(os.getpid())), is_gone("elsewhere 17 4711")
        (False, False)
    """
    host, pid, start = worker.rsplit(" ", 2)
    return host == socket.gethostname() and _read_start(int(pid)) != start


def _read_start(pid: int) -> str | None:
    """Return when a process started, in ticks since the machine did; None when it has ended."""
    if not (_PROCESSES / "self" / "stat").exists():  # not Linux: its number must do
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        return "unknown"
    try:
        fields = (_PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # What nobody has collected yet has ended all the same.
    return None if fields[_STATE] in "ZX" else fields[_STARTED_AT]


def find_lost_runs(instance: DagsterInstance) -> Iterator[DagsterRun]:
    """Yield runs that count as started although their process has ended."""
    unfinished = [DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
    for run in instance.get_runs(RunsFilter(statuses=unfinished)):
        if WORKER_TAG in run.tags and is_gone(run.tags[WORKER_TAG]):
            # It may have come to its end between the question and the look.
            now = instance.get_run_by_id(run.run_id)
            if now is not None and not now.is_finished:
                yield now


class _NamingExecutor(Executor):
    """Writes the name of its process to the run, then works as the executor it wraps."""

    def __init__(self, wrapped: Executor) -> None:
        self._wrapped = wrapped

    @property
    def retries(self) -> RetryMode:
        """As wrapped."""
        return self._wrapped.retries

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        """Name the process and execute."""
        name = describe_process(os.getpid())
        plan_context.instance.add_run_tags(plan_context.run_id, {WORKER_TAG: name})
        return self._wrapped.execute(plan_context, execution_plan)


@executor(name="in_process", config_schema=in_process_executor.config_schema.as_field())
def named_in_process_executor(init_context: InitExecutorContext) -> Executor:
    """Return Dagster's in-process executor, whose runs carry the name of their process."""
    create = in_process_executor.executor_creation_fn
    assert create is not None  # noqa: S101 - it is a definition with a function
    return _NamingExecutor(create(init_context))
