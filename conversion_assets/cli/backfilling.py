"""The command that backfills a client, and lists what was backfilled."""

import hashlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from conversion_assets.cli.locking import hold_home
from conversion_assets.cli.output import (
    Advance,
    json_option,
    print_json,
    print_table,
    progress_bar,
    say,
)
from conversion_assets.cli.session import open_database, open_settings
from conversion_assets.cli.statuses import EXIT_CLIENT_FAILED
from conversion_assets.domain.backfills import BackfillRecord, BackfillStage, StageProgress
from conversion_assets.domain.errors import ConversionError, InputError
from conversion_assets.domain.moments import parse_moment
from conversion_assets.settings import Settings, export_environment

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from conversion_assets.storage.backfills import BackfillLedger

_JOB = "backfill_client"
_LOOK_EVERY_S = 0.5


@click.command("backfill")
@click.argument("client_id", metavar="CLIENT", required=False)
@click.option("--no-content", is_flag=True, help="Leave content snapshots as they are.")
@click.option("--no-als", is_flag=True, help="Leave leads without score as they are.")
@click.option("--no-detectors", is_flag=True, help="Learn nothing.")
@click.option("--as-of", metavar="ISO", help="Time with zone of scores and patterns.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@click.option("--list", "list_only", is_flag=True, help="Show what was done, for all or CLIENT.")
@json_option
def backfill_command(
    *,
    client_id: str | None,
    no_content: bool,
    no_als: bool,
    no_detectors: bool,
    as_of: str | None,
    dry_run: bool,
    list_only: bool,
    as_json: bool,
) -> int:
    """Rebuild content snapshots, score leads and learn patterns of a client's whole history.

    One Dagster run. Killed at any moment, the same command again goes on where it was. Exit
    status: 0; 4 when it failed (what was done stays); 6 for an unknown client.
    """
    off = {
        BackfillStage.CONTENT: no_content,
        BackfillStage.SCORE: no_als,
        BackfillStage.DETECTORS: no_detectors,
    }
    stages = [stage for stage in BackfillStage if not off[stage]]
    if list_only:
        return _list(client_id, as_json=as_json)
    if client_id is None:
        raise InputError("name the CLIENT to backfill, or give --list to see what was done")
    if not stages:
        raise InputError("nothing to do: all three stages are switched off; leave one on")
    moment = parse_moment(as_of, "--as-of") if as_of is not None else None
    settings = open_settings()
    engine = open_database(settings)
    if dry_run:
        return _plan(settings, engine, client_id, stages, moment, as_json=as_json)
    return _run(settings, engine, client_id, stages, moment, as_json=as_json)


def _ledger(engine: "Engine") -> "BackfillLedger":
    from conversion_assets.storage.backfills import BackfillLedger  # noqa: PLC0415 - polars

    return BackfillLedger(engine, partial(datetime.now, UTC))


def _list(client_id: str | None, *, as_json: bool) -> int:
    records = _ledger(open_database(open_settings())).list_records(client_id)
    if as_json:
        print_json({"backfills": [record.model_dump(mode="json") for record in records]})
        return 0
    rows = [
        [
            record.client_id,
            str(record.state),
            f"{record.started_at:%Y-%m-%d %H:%M}",
            f"{record.finished_at:%Y-%m-%d %H:%M}" if record.finished_at else "",
            "; ".join(_word(stage, one) for stage, one in record.progress.items()),
            record.error or "",
        ]
        for record in records
    ]
    print_table(["client", "state", "started (UTC)", "finished", "done", "error"], rows)
    return 0


def _word(stage: BackfillStage, progress: StageProgress) -> str:
    counts = ", ".join(f"{name} {count:,}" for name, count in progress.counts.items())
    return f"{stage} {progress.done:,} of {progress.total:,} ({counts or 'nothing yet'})"


def _plan(
    settings: Settings,
    engine: "Engine",
    client_id: str,
    stages: Sequence[BackfillStage],
    as_of: datetime | None,
    *,
    as_json: bool,
) -> int:
    from conversion_assets.refresh.backfill import BackfillTools, plan_backfill  # noqa: PLC0415
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415

    with progress_bar("looking") as advance:
        tools = BackfillTools(
            engine,
            FeatureStore(settings.store_url.get_secret_value()),
            settings.learning,
            partial(datetime.now, UTC),
            lambda stage, progress: advance(progress.done, progress.total, str(stage)),
        )
        plan = plan_backfill(tools, client_id=client_id, stages=stages, as_of=as_of)
    if as_json:
        print_json(
            {
                "client_id": client_id,
                "dry_run": True,
                "stages": {str(stage): _numbers(one) for stage, one in plan.items()},
            }
        )
        return 0
    _print_stages(plan, title=f"{client_id}: dry run, nothing was written")
    return 0


def _run(
    settings: Settings,
    engine: "Engine",
    client_id: str,
    stages: Sequence[BackfillStage],
    as_of: datetime | None,
    *,
    as_json: bool,
) -> int:
    from conversion_assets.orchestration.instance import dagster_environment  # noqa: PLC0415

    export_environment(dagster_environment(settings))
    from conversion_assets.refresh.backfill import is_gone  # noqa: PLC0415 - polars

    started = time.perf_counter()
    ledger = _ledger(engine)
    ledger.require_free(client_id, is_gone)
    lock = f"backfill-{hashlib.sha256(client_id.encode()).hexdigest()[:16]}.lock"
    with hold_home(settings.home, f"backfill of {client_id!r}", lock):
        run_id, fault = _launch(settings, ledger, client_id, stages, as_of)
    record = next((one for one in ledger.list_records(client_id) if one.run_id == run_id), None)
    if record is None:
        raise ConversionError(f"run {run_id} failed: {fault}")
    error = record.error or fault
    if as_json:
        print_json(_report(record, error, time.perf_counter() - started))
    else:
        title = f"{client_id}: {record.state}, run {run_id}"
        _print_stages(record.progress, title=title)
        say(f"{time.perf_counter() - started:.1f} s")
    if error:
        say(f"failed: {client_id}: {error}; the same command again goes on where it was")
    return EXIT_CLIENT_FAILED if error else 0


def _launch(
    settings: Settings,
    ledger: "BackfillLedger",
    client_id: str,
    stages: Sequence[BackfillStage],
    as_of: datetime | None,
) -> tuple[str, str | None]:
    """Return the id of the finished run, and why it failed if it did."""
    from conversion_assets.cli.launching import (  # noqa: PLC0415 - dagster
        close_orphans,
        execute_job,
        explain_failure,
    )
    from conversion_assets.orchestration.instance import open_instance  # noqa: PLC0415

    config: dict[str, Any] = {str(stage): stage in stages for stage in BackfillStage}
    if as_of is not None:
        config["as_of"] = as_of.isoformat()
    with open_instance(settings) as instance:
        from conversion_assets.partitions import (  # noqa: PLC0415 - after the environment
            partition_key,
            sync_partitions,
        )

        tags = {"dagster/partition": partition_key(client_id)}
        close_orphans(instance, _JOB, tags)
        sync_partitions(instance, [client_id])
        with progress_bar("backfill") as advance, _followed(ledger, client_id, advance):
            result, _ = execute_job(instance, _JOB, tags, {"backfills": config})
    return result.run_id, None if result.success else explain_failure(result)


@contextmanager
def _followed(ledger: "BackfillLedger", client_id: str, advance: Advance) -> Iterator[None]:
    """Move the bar by what the ledger says, while a terminal watches."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            record = next(
                (r for r in ledger.list_records(client_id) if r.finished_at is None), None
            )
            if record is not None and record.progress:
                stage, progress = list(record.progress.items())[-1]
                advance(progress.done, progress.total, f"{stage} {progress.rate:,.0f}/s")

    thread = threading.Thread(target=look, name="backfill-bar", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _print_stages(stages: dict[BackfillStage, StageProgress], *, title: str) -> None:
    rows = [
        [
            str(stage),
            f"{one.done:,} of {one.total:,}",
            f"{one.rate:,.0f}/s" if one.seconds else "",
            ", ".join(f"{name} {count:,}" for name, count in one.counts.items()),
        ]
        for stage, one in stages.items()
    ]
    print_table(["stage", "done", "rate", "what became of it"], rows, title=title)


def _numbers(progress: StageProgress) -> dict[str, Any]:
    return {
        "done": progress.done,
        "total": progress.total,
        "counts": progress.counts,
        "seconds": round(progress.seconds, 3),
        "rate": round(progress.rate, 1),
        "is_finished": progress.is_finished,
    }


def _report(record: BackfillRecord, error: str | None, seconds: float) -> dict[str, Any]:
    return {
        "client_id": record.client_id,
        "run_id": record.run_id,
        "backfill_id": record.backfill_id,
        "state": str(record.state),
        "as_of": record.as_of.isoformat(),
        "stages": {str(stage): _numbers(one) for stage, one in record.progress.items()},
        "errors": [{"client_id": record.client_id, "error": error}] if error else [],
        "duration_s": round(seconds, 3),
    }
