"""What a learning run says of itself: whom it learned, how it went, how long it took."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from dagster import AssetExecutionContext, Failure
from dagster._core.storage.tags import RETRY_NUMBER_TAG

from conversion_assets.domain.errors import InputError
from conversion_assets.domain.patterns import Outcome
from conversion_assets.domain.terms import OutcomeKind, PatternType
from conversion_assets.partitions import client_id_of

STAGES_TAG = "conversion/stages"
CLIENTS_TAG = "conversion/clients"
FAILED_TAG = "conversion/failed_clients"
OUTCOMES_TAG = "conversion/outcomes"
LAUNCHER_TAG = "conversion/launcher"

_LISTED_FAILURES = 20  # what a person reads; the table of outcomes has them all


def choose_clients(partition_keys: Sequence[str], client_ids: Sequence[str]) -> list[str]:
    """Return the ids of the run's clients, or those of them that the config names.

    Raises:
        InputError: a named client lies outside of the run's partitions.
    """
    of_run = [client_id_of(key) for key in partition_keys]
    if not client_ids:
        return of_run
    outside = sorted(set(client_ids) - set(of_run))
    if outside:
        raise InputError(
            f"client {outside[0]!r} is not among the partitions of this run; "
            "the run's range must cover every client in client_ids"
        )
    wanted = set(client_ids)
    return [client_id for client_id in of_run if client_id in wanted]


def get_run_moment(context: AssetExecutionContext) -> datetime:
    """Return when the run was created: the same for every attempt of it.

    A run that Dagster started again by itself is an attempt of the one that failed: what that one
    stored already is then the same, and not stored twice.
    """
    run_id = context.run.run_id
    while True:
        record = context.instance.get_run_record_by_id(run_id)
        if record is None:
            raise InputError(f"run {run_id} is not known to this instance")
        parent_id = record.dagster_run.parent_run_id
        if RETRY_NUMBER_TAG not in record.dagster_run.tags or parent_id is None:
            created: datetime = record.create_timestamp
            return created
        run_id = parent_id


def record_stage(context: AssetExecutionContext, seconds: Mapping[str, float]) -> None:
    """Add wall seconds of stages to the run's tags."""
    run = context.instance.get_run_by_id(context.run.run_id)
    before = json.loads(run.tags.get(STAGES_TAG, "{}")) if run else {}
    stages = before | {stage: round(value, 3) for stage, value in seconds.items()}
    context.instance.add_run_tags(context.run.run_id, {STAGES_TAG: json.dumps(stages)})


def count_outcomes(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Return clients by pattern type and outcome, zeros included."""
    counted = Counter((str(one.pattern_type), str(one.outcome)) for one in outcomes)
    return {
        str(kind): {str(outcome): counted[str(kind), str(outcome)] for outcome in OutcomeKind}
        for kind in PatternType
    }


def summarize_run(
    context: AssetExecutionContext, outcomes: Sequence[Outcome], seconds: Mapping[str, float]
) -> None:
    """Write the summary of a learning run to its log and its tags, where the runs page shows it."""
    counts = count_outcomes(outcomes)
    clients = len({one.client_id for one in outcomes})
    failed = len({one.client_id for one in outcomes if one.outcome == OutcomeKind.FAILED})
    record_stage(context, seconds)
    context.instance.add_run_tags(
        context.run.run_id,
        {
            CLIENTS_TAG: str(clients),
            FAILED_TAG: str(failed),
            OUTCOMES_TAG: json.dumps(counts),
        },
    )
    context.log.info(f"{clients} clients processed, {failed} failed")
    for kind, by_outcome in counts.items():
        words = ", ".join(f"{outcome} {count}" for outcome, count in by_outcome.items())
        context.log.info(f"{kind}: {words}")
    for stage, value in seconds.items():
        context.log.info(f"{stage}: {value:.2f}")


def raise_failures(failures: Sequence[Outcome]) -> None:
    """Mark the run as failed with the list; whoever succeeded is stored and recorded by now.

    Raises:
        Failure: there are failures; not retried, since the same data would fail again.
    """
    if not failures:
        return
    lines = [f"{one.client_id} {one.pattern_type}: {one.error}" for one in failures]
    clients = len({one.client_id for one in failures})
    raise Failure(
        description=f"{clients} clients failed, all others are stored. "
        + "; ".join(lines[:_LISTED_FAILURES]),
        metadata={"failed_clients": clients, "failures": "\n".join(lines)},
        allow_retries=False,
    )
