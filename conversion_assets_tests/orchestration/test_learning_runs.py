"""Chosen clients are one run; only those that succeeded are materialized."""

import json
import sqlite3
from contextlib import contextmanager

import dagster as dg
import pytest
from sqlalchemy import text

from conversion_assets.assets.features import features
from conversion_assets.assets.patterns import patterns
from conversion_assets.assets.sources import SOURCES
from conversion_assets.cli.launching import launch_learning
from conversion_assets.cli.locking import hold_home
from conversion_assets.definitions import defs
from conversion_assets.domain.errors import ConflictError, NotFoundError
from conversion_assets.orchestration.instance import open_instance
from conversion_assets.partitions import covering_range, sync_partitions
from conversion_assets.settings import load_settings
from conversion_assets.storage.database import create_database_engine, write_transaction
from conversion_assets_tests.homes import AS_OF, CLIENTS, cure, dump_learned, poison

ASSETS = [dg.AssetKey(f"{kind}_patterns") for kind in ("who", "what", "when", "how")]


@contextmanager
def opened():
    with open_instance(load_settings()) as instance:
        sync_partitions(instance, CLIENTS)
        yield instance


def execute(instance, tags, client_ids=()):
    config = {"as_of": AS_OF.isoformat(), "client_ids": list(client_ids)}
    return defs.resolve_job_def("learn_patterns").execute_in_process(
        instance=instance,
        tags=tags,
        run_config={
            "ops": {"patterns": {"config": config}},
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        },
        raise_on_error=False,
    )


def materialized(instance):
    return {frozenset(instance.get_materialized_partitions(key)) for key in ASSETS}


def test_a_partition_a_range_and_a_sparse_set_are_one_run_each(home):
    with opened() as instance:
        assert execute(instance, {"dagster/partition": CLIENTS[1]}).success
        assert materialized(instance) == {frozenset(CLIENTS[1:2])}

        sparse = [CLIENTS[3], CLIENTS[0]]
        assert execute(instance, covering_range(CLIENTS, sparse), sparse).success
        assert materialized(instance) == {frozenset([CLIENTS[0], CLIENTS[1], CLIENTS[3]])}

        assert execute(instance, covering_range(CLIENTS, CLIENTS[2:])).success
        assert materialized(instance) == {frozenset(CLIENTS)}
        assert instance.get_runs_count() == 3
        assert {row[0] for row in dump_learned(home)["conversion_patterns"]} == set(CLIENTS)


def test_a_client_outside_of_the_range_is_refused(home):
    with opened() as instance:
        result = execute(instance, {"dagster/partition": CLIENTS[1]}, [CLIENTS[2]])
    assert not result.success
    [failure] = [e for e in result.all_events if e.is_step_failure]
    assert "not among the partitions of this run" in failure.step_failure_data.error_display_string


def test_a_subset_of_assets_stores_only_its_types(home):
    selection = ["lead_features", "touch_features", "who_patterns"]
    with opened() as instance:
        result = dg.materialize(
            [*SOURCES, features, patterns],
            selection=selection,
            resources=defs.resources,
            instance=instance,
            tags={"dagster/partition": CLIENTS[0]},
            run_config={"ops": {"patterns": {"config": {"as_of": AS_OF.isoformat()}}}},
        )
        assert result.success
        assert materialized(instance) == {frozenset(CLIENTS[:1]), frozenset()}
    assert {row[1] for row in dump_learned(home)["conversion_patterns"]} == {"who"}


def test_one_asset_can_be_launched_with_its_checks_as_the_ui_does(home):
    with opened() as instance:
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            asset_selection=[ASSETS[0]],
            tags={"dagster/partition": CLIENTS[0]},
            raise_on_error=False,
        )
        # No features were computed yet: the run starts, and says what is missing.
        [failure] = [event for event in result.all_events if event.is_step_failure]
    assert "no features yet" in failure.step_failure_data.user_failure_data.description


def test_metadata_and_versions_are_on_each_materialization(home):
    with opened() as instance:
        execute(instance, {"dagster/partition": CLIENTS[0]})
        for key in ASSETS:
            event = instance.get_latest_materialization_event(key).asset_materialization
            metadata = {name: value.value for name, value in event.metadata.items()}
            assert event.partition == CLIENTS[0]
            assert metadata["client_id"] == CLIENTS[0]
            assert metadata["outcome"] in ("found", "none_found")
            assert metadata["sample_size"] > metadata["conversions"] > 0
            assert metadata["base_rate"] == pytest.approx(
                metadata["conversions"] / metadata["sample_size"], abs=1e-4
            )
            assert "| verdict |" in metadata["top_findings"]
            assert "data:image/svg+xml" in metadata["lift_plot"]
            assert event.tags["dagster/code_version"]
            assert event.tags["dagster/input_data_version/lead_features"]
        first = event.tags["dagster/data_version"]
        execute(instance, {"dagster/partition": CLIENTS[0]})
        again = instance.get_latest_materialization_event(key).asset_materialization
        assert again.tags["dagster/data_version"] == first


def test_a_source_version_moves_only_with_its_content(home):
    leads = dg.AssetKey("leads")

    def version(instance):
        execute(instance, {"dagster/partition": CLIENTS[0]})
        event = instance.get_latest_materialization_event(leads).asset_materialization
        return event.tags["dagster/data_version"], event.metadata["dagster/row_count"].value

    with opened() as instance:
        before = version(instance)
        assert version(instance) == before
        engine = create_database_engine(load_settings().database_url.get_secret_value())
        with write_transaction(engine) as connection:
            connection.execute(
                text("UPDATE leads SET title = 'CEO' WHERE id = (SELECT min(id) FROM leads)")
            )
        after = version(instance)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_a_poisoned_client_fails_alone_and_is_learned_once_cured(home):
    settings = load_settings()
    poison(home, CLIENTS[2])
    report = launch_learning(settings, as_of=AS_OF)
    assert {error["client_id"] for error in report.errors} == {CLIENTS[2]}
    assert all("poisoned" in error["error"] for error in report.errors)
    assert all(counts["failed"] == 1 for counts in report.outcomes.values())
    assert {row[0] for row in dump_learned(home)["conversion_patterns"]} == set(CLIENTS) - {
        CLIENTS[2]
    }
    with opened() as instance:
        [run] = instance.get_runs()
        assert run.status is dg.DagsterRunStatus.FAILURE
        assert materialized(instance) == {frozenset(set(CLIENTS) - {CLIENTS[2]})}
        assert run.tags["conversion/failed_clients"] == "1"
        [failure] = [
            entry.dagster_event.step_failure_data
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        ]
        assert CLIENTS[2] in failure.user_failure_data.description
    cure(home)
    assert not launch_learning(settings, as_of=AS_OF).errors
    undisturbed = dump_learned(home)["conversion_pattern_history"]
    assert not launch_learning(settings, as_of=AS_OF).errors
    # The same computation twice leaves one row.
    assert dump_learned(home)["conversion_pattern_history"] == undisturbed


def test_a_run_tells_its_summary(home):
    report = launch_learning(load_settings(), client_ids=CLIENTS[:2], as_of=AS_OF)
    assert report.clients == 2
    assert set(report.outcomes) == {"who", "what", "when", "how"}
    assert all(sum(counts.values()) == 2 for counts in report.outcomes.values())
    assert {"features_s", "detection_s", "storage_s", "dagster_s"} <= set(report.stages)
    with opened() as instance:
        run = instance.get_run_by_id(report.run_id)
    assert json.loads(run.tags["conversion/outcomes"]) == report.outcomes
    assert run.tags["conversion/clients"] == "2"


def test_an_unknown_client_changes_nothing(home):
    before = dump_learned(home)
    with pytest.raises(NotFoundError, match="'nobody'"):
        launch_learning(load_settings(), client_ids=["nobody"])
    assert dump_learned(home) == before


def test_a_second_learn_on_the_same_home_is_refused(home):
    with hold_home(home), pytest.raises(ConflictError, match="another learn is at work"):
        launch_learning(load_settings())


def test_clients_with_awkward_ids_have_partitions_of_their_own(home):
    with sqlite3.connect(home / "conversion.db") as database:
        database.execute("PRAGMA foreign_keys = OFF")
        for table, column in (
            ("clients", "id"),
            ("leads", "client_id"),
            ("activities", "client_id"),
        ):
            database.execute(
                f"UPDATE {table} SET {column} = 'a,b|[c].d' WHERE {column} = '{CLIENTS[0]}'"
            )
    report = launch_learning(load_settings(), client_ids=["a,b|[c].d"], as_of=AS_OF)
    assert not report.errors
    with opened() as instance:
        assert instance.get_materialized_partitions(ASSETS[0]) == {"a_x2cb_x7c_x5bc_x5d_x2ed"}
