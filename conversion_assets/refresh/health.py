"""The check of health from end to end: read, judge, record, queue what must be told."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Engine

from conversion_assets.domain.config import HealthConfig, LearningConfig
from conversion_assets.domain.health import HealthFinding, find_problems
from conversion_assets.evaluation.failing import judge_records
from conversion_assets.storage.database import reported_connection_errors, write_transaction
from conversion_assets.storage.forecasts import read_forecasts
from conversion_assets.storage.health import (
    Recorded,
    forget_old,
    load_health_subjects,
    record_findings,
    record_heartbeat,
)

HEALTH_HEARTBEAT = "health"
"""Name of the heartbeat of a check over all active clients."""


@dataclass(frozen=True)
class HealthCheck:
    """What a check of health came to.

    Attributes:
        client_ids: Clients checked, sorted.
        findings: What is wrong, ordered by client.
        recorded: What that changed.
        seconds: Wall seconds.
    """

    client_ids: list[str]
    findings: list[HealthFinding]
    recorded: Recorded
    seconds: float


def check_health(
    engine: Engine,
    *,
    now: datetime,
    config: HealthConfig,
    channels: Sequence[str],
    client_ids: Collection[str] | None = None,
    learning: LearningConfig | None = None,
) -> HealthCheck:
    """Check the given clients, or all active ones, and record what was found.

    Args:
        engine: System of record.
        now: Aware time of the check.
        config: Thresholds.
        channels: Channels to queue messages for.
        client_ids: Clients to check; None for all active ones, which also closes what is open of
            clients that are no longer active.
        learning: Thresholds of learning, for what the forward record forgets.

    Raises:
        NotFoundError: a given client does not exist; nothing was recorded.
        InputError: the database cannot be used; nothing was recorded.
    """
    started = time.perf_counter()
    subjects = load_health_subjects(engine, client_ids)
    checked = subjects.inputs.clients["client_id"].to_list()
    settled = learning or LearningConfig()
    graded = read_forecasts(
        engine, checked, made_after=now - timedelta(days=settled.window_days), only_graded=True
    )
    inputs = replace(subjects.inputs, records=judge_records(graded, now, settled))
    findings = find_problems(inputs, now=now, config=config)
    with reported_connection_errors(engine), write_transaction(engine) as connection:
        recorded = record_findings(
            connection,
            checked,
            findings,
            now=now,
            config=config,
            channels=channels,
            departed=subjects.departed,
        )
        if client_ids is None:
            forget_old(connection, now - timedelta(days=config.keep_days))
            detail = {"clients": len(checked), "findings": len(findings)}
            record_heartbeat(connection, HEALTH_HEARTBEAT, now, detail)
    return HealthCheck(checked, findings, recorded, time.perf_counter() - started)
