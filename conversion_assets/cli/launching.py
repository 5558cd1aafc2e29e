"""Run the learning job through Dagster in this process, and tell what came of it."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from conversion_assets.cli.locking import hold_home
from conversion_assets.cli.session import open_database
from conversion_assets.domain.errors import ConversionError, InputError, NotFoundError
from conversion_assets.domain.terms import OutcomeKind, PatternType
from conversion_assets.orchestration.instance import open_instance
from conversion_assets.settings import Settings

if TYPE_CHECKING:
    from dagster import DagsterInstance, ExecuteInProcessResult
    from sqlalchemy import Engine

_LAUNCHER = "command line"
_JOB = "learn_patterns"


@dataclass(frozen=True)
class LearnReport:
    """What a learning run came to; its JSON is what `learn --json` prints."""

    run_id: str
    clients: int
    outcomes: dict[str, dict[str, int]]
    errors: list[dict[str, str]]
    stages: dict[str, float]
    duration_s: float

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)

    @property
    def has_failures(self) -> bool:
        """Whether any client failed."""
        return bool(self.errors)


def launch_learning(
    settings: Settings,
    *,
    client_ids: Sequence[str] = (),
    as_of: datetime | None = None,
    only_stale: bool = False,
) -> LearnReport:
    """Learn the chosen clients, or all active ones, in one Dagster run.

    Args:
        settings: Of the home.
        client_ids: The clients; none for all active ones.
        as_of: Nothing later counts; None for now.
        only_stale: Of those, the ones whose features or patterns are of another version of the
            code. Without any there is no run, and `run_id` is empty.

    Raises:
        NotFoundError: a chosen client does not exist.
        InputError: there is nothing to learn from.
        ConflictError: another `learn` is at work on this home.
    """
    started = time.perf_counter()
    engine = open_database(settings)
    with hold_home(settings.home):
        chosen = _choose(engine, client_ids)
        if only_stale:
            chosen = _keep_stale(settings, engine, chosen)
            if not chosen:
                return _report_nothing(time.perf_counter() - started)
        with open_instance(settings) as instance:
            close_orphans(instance, _JOB)
            result, seconds = _execute(instance, chosen, as_of)
            startup = time.perf_counter() - started - seconds
            report = _report(engine, instance, result, chosen)
    stages = {**report.stages, "startup_s": round(startup, 3)}
    stages["dagster_s"] = round(seconds - sum(report.stages.values()), 3)
    return replace(report, stages=stages, duration_s=round(time.perf_counter() - started, 3))


def _choose(engine: "Engine", client_ids: Sequence[str]) -> list[str]:
    from conversion_assets.storage.sources import open_snapshot  # noqa: PLC0415 - polars

    with open_snapshot(engine) as snapshot:
        if not client_ids:
            active = snapshot.active_client_ids()
            if not active:
                raise InputError(
                    "no active client has a converted lead; import clients, leads and activities"
                )
            return active
        known = set(snapshot.clients(list(client_ids))["id"].to_list())
    unknown = [client_id for client_id in client_ids if client_id not in known]
    if unknown:
        raise NotFoundError(f"there is no client {unknown[0]!r}")
    return list(dict.fromkeys(client_ids))


def _keep_stale(settings: Settings, engine: "Engine", chosen: Sequence[str]) -> list[str]:
    from conversion_assets.refresh.changes import find_stale_clients  # noqa: PLC0415 - polars
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415

    store = FeatureStore(settings.store_url.get_secret_value())
    stale = set(find_stale_clients(engine, store))
    return [client_id for client_id in chosen if client_id in stale]


def _report_nothing(seconds: float) -> LearnReport:
    """The report of a run that was not needed, in the shape of any other."""
    outcomes = {str(kind): {str(one): 0 for one in OutcomeKind} for kind in PatternType}
    return LearnReport("", 0, outcomes, [], {}, round(seconds, 3))


def close_orphans(
    instance: "DagsterInstance", job_name: str, tags: Mapping[str, str] | None = None
) -> None:
    """Mark runs of a job whose process was killed as failed; a lock says that none is at work."""
    from dagster import DagsterRunStatus, RunsFilter  # noqa: PLC0415

    from conversion_assets.orchestration.runs import LAUNCHER_TAG  # noqa: PLC0415

    unfinished = [DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING, DagsterRunStatus.STARTED]
    orphans = RunsFilter(
        job_name=job_name, statuses=unfinished, tags={LAUNCHER_TAG: _LAUNCHER, **(tags or {})}
    )
    for run in instance.get_runs(orphans):
        instance.report_run_failed(run, "The process of this run ended before the run did.")


def execute_job(
    instance: "DagsterInstance", job_name: str, tags: Mapping[str, str], ops: Mapping[str, Any]
) -> "tuple[ExecuteInProcessResult, float]":
    """Return the finished run and its wall seconds, without those of loading the code."""
    from conversion_assets.definitions import defs  # noqa: PLC0415 - after the environment
    from conversion_assets.orchestration.runs import LAUNCHER_TAG  # noqa: PLC0415

    # The command line reports errors itself; Dagster's own lines would drown them.
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    job = defs.resolve_job_def(job_name)
    started = time.perf_counter()
    result = job.execute_in_process(
        instance=instance,
        tags={
            **tags,
            LAUNCHER_TAG: _LAUNCHER,
            # Whoever typed the command sees how it ends; a daemon must not start it again.
            "dagster/max_retries": "0",
        },
        run_config={
            "ops": {name: {"config": config} for name, config in ops.items()},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        raise_on_error=False,
    )
    return result, time.perf_counter() - started


def _execute(
    instance: "DagsterInstance", chosen: Sequence[str], as_of: datetime | None
) -> "tuple[ExecuteInProcessResult, float]":
    from conversion_assets.partitions import (  # noqa: PLC0415 - after the environment
        CLIENTS,
        covering_range,
        partition_key,
        sync_partitions,
    )

    sync_partitions(instance, chosen)
    keys = instance.get_dynamic_partitions(str(CLIENTS.name))
    tags = covering_range(keys, [partition_key(client) for client in chosen])
    config = {"client_ids": list(chosen), "as_of": as_of.isoformat() if as_of else None}
    return execute_job(instance, _JOB, tags, {"patterns": config})


def _report(
    engine: "Engine",
    instance: "DagsterInstance",
    result: "ExecuteInProcessResult",
    chosen: Sequence[str],
) -> LearnReport:
    from conversion_assets.orchestration.runs import OUTCOMES_TAG, STAGES_TAG  # noqa: PLC0415
    from conversion_assets.storage.patterns import PatternRepository  # noqa: PLC0415

    run = instance.get_run_by_id(result.run_id)
    tags = run.tags if run else {}
    if OUTCOMES_TAG not in tags:
        raise ConversionError(f"run {result.run_id} failed: {explain_failure(result)}")
    rows = PatternRepository(engine).outcomes(chosen).to_dicts()
    errors = [
        {
            "client_id": row["client_id"],
            "pattern_type": row["pattern_type"],
            "error": row["error"] or row["reason"],
        }
        for row in rows
        if row["outcome"] == OutcomeKind.FAILED and row["run_id"] == result.run_id
    ]
    outcomes: dict[str, dict[str, int]] = json.loads(tags[OUTCOMES_TAG])
    return LearnReport(
        run_id=result.run_id,
        clients=len(chosen),
        outcomes=outcomes,
        errors=errors,
        stages=json.loads(tags.get(STAGES_TAG, "{}")),
        duration_s=0.0,
    )


def explain_failure(result: "ExecuteInProcessResult") -> str:
    """Return the line of the first step that failed."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return data.user_failure_data.description
            if data.error:
                cause = data.error.cause or data.error
                return " ".join(cause.message.split())
    return "see the run in the Dagster UI"
