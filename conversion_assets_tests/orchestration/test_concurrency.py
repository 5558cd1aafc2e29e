"""What may run at once, what is started again, and how old assets may grow: on both instances."""

from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.instance.config import PoolGranularity
from dagster._core.op_concurrency_limits_counter import GlobalOpConcurrencyLimitsCounter
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

from conversion_assets.definitions import defs
from conversion_assets.orchestration.instance import EMBEDDED_CONFIG
from conversion_assets.orchestration.pools import LEARNING_POOL
from conversion_assets.partitions import RANGE_END_TAG, RANGE_START_TAG

DEPLOYED_CONFIG = (Path(__file__).parents[2] / "dagster.yaml").read_text()
CONFIGS = {"embedded": EMBEDDED_CONFIG, "deployed": DEPLOYED_CONFIG}
# Where the two differ on purpose: storage, and what only a deployment has.
STORAGE = ("run_storage", "event_log_storage", "schedule_storage", "run_coordinator")
RANGE = {RANGE_START_TAG: "a", RANGE_END_TAG: "a"}


@pytest.fixture(params=list(CONFIGS))
def instance(request, tmp_path, monkeypatch):
    """An instance with the settings of one form, on SQLite: limits do not depend on the storage."""
    config = yaml.safe_load(CONFIGS[request.param])
    kept = {key: value for key, value in config.items() if key not in STORAGE}
    kept["run_coordinator"] = {
        "module": "dagster._core.run_coordinator",
        "class": "QueuedRunCoordinator",
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(kept))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.add_dynamic_partitions("clients", ["a"])
        yield instance


def create_run(instance, job, status, tags):
    definition = defs.resolve_job_def(job)
    return instance.create_run_for_job(definition, status=status, tags=tags)


def is_blocked(instance, run):
    """As the daemon decides when it looks at its queue."""
    records = instance.get_run_records(dg.RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES))
    config = instance.get_concurrency_config()
    counter = GlobalOpConcurrencyLimitsCounter(
        instance,
        [run],
        records,
        {LEARNING_POOL},
        instance.event_log_storage.get_pool_limits(),
        slot_count_offset=config.run_queue_config.op_concurrency_slot_buffer,
        pool_granularity=config.pool_config.pool_granularity,
    )
    return counter.is_blocked(run)


def test_steps_that_write_features_or_patterns_share_a_pool():
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        is_source = key.to_user_string() in {"clients", "leads", "activities"}
        assert graph.get(key).pools == (set() if is_source else {LEARNING_POOL}), key


def test_a_second_learning_run_waits_and_a_health_check_does_not(instance):
    config = instance.get_concurrency_config()
    assert config.pool_config.pool_granularity == PoolGranularity.RUN
    assert config.pool_config.default_pool_limit == 1
    assert config.run_queue_config.max_concurrent_runs > 1
    second = create_run(instance, "learn_patterns", dg.DagsterRunStatus.NOT_STARTED, RANGE)
    assert not is_blocked(instance, second)
    first = create_run(instance, "learn_patterns", dg.DagsterRunStatus.STARTED, RANGE)
    assert is_blocked(instance, second)
    health = create_run(instance, "check_pattern_health", dg.DagsterRunStatus.NOT_STARTED, {})
    assert not is_blocked(instance, health)
    # A slot belongs to its run: it is free as soon as the run has ended, however that happened.
    instance.report_run_failed(first, "killed")
    assert not is_blocked(instance, second)


def test_a_killed_run_is_started_again_and_one_that_failed_by_its_data_is_not(instance):
    run = create_run(instance, "learn_patterns", dg.DagsterRunStatus.STARTED, RANGE)
    instance.report_run_failed(run, "the process ended")
    failed = instance.get_run_by_id(run.run_id)
    assert auto_reexecution_should_retry_run(instance, failed, None)
    assert auto_reexecution_should_retry_run(instance, failed, RunFailureReason.RUN_EXCEPTION)
    assert not auto_reexecution_should_retry_run(instance, failed, RunFailureReason.STEP_FAILURE)
    by_hand = create_run(
        instance,
        "learn_patterns",
        dg.DagsterRunStatus.FAILURE,
        {**RANGE, "dagster/max_retries": "0"},
    )
    assert not auto_reexecution_should_retry_run(instance, by_hand, None)
    assert instance.run_monitoring_enabled


def test_both_forms_differ_in_what_they_must():
    embedded, deployed = (yaml.safe_load(text) for text in CONFIGS.values())
    for key in ("run_retries", "freshness", "telemetry"):
        assert embedded[key] == deployed[key], key
    assert embedded["concurrency"]["pools"] == deployed["concurrency"]["pools"]


def test_every_weekly_asset_has_a_freshness_policy_that_a_missed_week_breaks():
    for spec in defs.resolve_all_asset_specs():
        policy = spec.freshness_policy
        if spec.key.to_user_string() == "backfills":  # made by hand, when there is something to do
            assert policy is None
            continue
        assert 7 < policy.fail_window.to_timedelta().days <= 8, spec.key
        assert policy.warn_window.to_timedelta() < policy.fail_window.to_timedelta()
