"""The Dagster instance of a home, and the environment Dagster must find before it loads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from conversion_assets.settings import Settings, export_environment

if TYPE_CHECKING:
    from dagster import DagsterInstance

EMBEDDED_CONFIG = """\
# Written by conversion-assets for an embedded home: everything in SQLite beside this file.
# Change it freely; it is not written again while it exists.
telemetry: {enabled: false}
event_log_storage:
  # Writes the events of a run over many clients in batches: 2 s instead of 46 s for 1,000 clients.
  module: conversion_assets.orchestration.event_log
  class: BatchingSqliteEventLogStorage
  config: {dagster_home: {env: DAGSTER_HOME}}
run_coordinator:
  module: dagster._core.run_coordinator
  class: QueuedRunCoordinator
  # A code server that restarts is waited for; without it a run that is due meanwhile would fail.
  config:
    dequeue_interval_seconds: 1
    max_user_code_failure_retries: 30
    user_code_failure_retry_delay: 10
# One run at a time that learns (pool "learning"): two would only wait for each other's write locks.
# The second place is for the health check, which must not wait for a long learning run.
concurrency:
  runs: {max_concurrent_runs: 2}
  pools: {granularity: run, default_limit: 1}
# A run whose process was killed is started again; one that failed because of its data is not.
run_monitoring:
  enabled: true
  start_timeout_seconds: 180
  cancel_timeout_seconds: 60
  max_runtime_seconds: 14400
run_retries: {enabled: true, max_retries: 2, retry_on_asset_or_op_failure: false}
# Ages of assets, see assets/freshness.py.
freshness: {enabled: true}
# A cold start of the code location on a busy two-core machine.
code_servers: {local_startup_timeout: 180}
"""

# One planned event per asset instead of one per client, and events stored in batches: without
# them a run over 1,000 clients takes tens of seconds longer. The first is read where the run is
# created, both in the run's process, always from the environment.
_DAGSTER_ENVIRONMENT = {
    "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1",
    "DAGSTER_EVENT_BATCH_SIZE": "1000",
    "DAGSTER_DISABLE_TELEMETRY": "1",
    # Read when Polars loads. By default its freed pages stay with the process until the machine
    # runs short: what features used would count beside what detection uses.
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:500,muzzy_decay_ms:0",
}


def dagster_environment(settings: Settings) -> dict[str, str]:
    """Return the variables every process of this installation needs, also child processes.

    The home is passed as an absolute path, because a child may run in another directory.
    """
    return {
        **_DAGSTER_ENVIRONMENT,
        "CONVERSION_HOME": str(settings.home),
        "DAGSTER_HOME": str(settings.dagster_home),
    }


def prepare_instance_folder(settings: Settings) -> Path:
    """Make DAGSTER_HOME with a dagster.yaml if there is none, and return it."""
    folder = settings.dagster_home
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "dagster.yaml"
    if not config.exists():
        temporary = folder / f".dagster.yaml.{os.getpid()}"
        temporary.write_text(EMBEDDED_CONFIG, encoding="utf-8")
        temporary.replace(config)
    return folder


@contextmanager
def open_instance(settings: Settings) -> Iterator["DagsterInstance"]:
    """Open the persistent instance of the home; sets the environment before Dagster loads."""
    export_environment(dagster_environment(settings))
    folder = prepare_instance_folder(settings)
    from dagster import DagsterInstance  # noqa: PLC0415 - after the environment is set

    with DagsterInstance.from_config(str(folder)) as instance:
        yield instance
