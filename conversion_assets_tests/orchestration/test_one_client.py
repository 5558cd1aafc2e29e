"""One client materialized from the UI: its event, and the checks that the UI selects with it."""

import dagster as dg
import pytest

from conversion_assets.definitions import defs
from conversion_assets.orchestration.instance import open_instance
from conversion_assets.partitions import sync_partitions
from conversion_assets.settings import load_settings
from conversion_assets_tests.homes import AS_OF, CLIENTS, poison

WHO = dg.AssetKey("who_patterns")


@pytest.fixture
def materialize(home):
    def materialize(client):
        """As the UI does: the asset, its checks, and a partition."""
        selection = dg.AssetSelection.assets("lead_features", "touch_features", WHO)
        job = dg.define_asset_job("ui", selection).resolve(
            asset_graph=defs.resolve_asset_graph(),
            resource_defs=defs.get_repository_def().get_top_level_resources(),
        )
        with open_instance(load_settings()) as instance:
            sync_partitions(instance, CLIENTS)
            result = job.execute_in_process(
                instance=instance,
                partition_key=client,
                run_config={"ops": {"patterns": {"config": {"as_of": AS_OF.isoformat()}}}},
                raise_on_error=False,
            )
            return result, instance.get_materialized_partitions(WHO)

    return materialize


def test_checks_follow_the_client_that_was_materialized(materialize):
    result, materialized = materialize(CLIENTS[0])
    assert result.success
    assert materialized == {CLIENTS[0]}
    events = result.asset_materializations_for_node("patterns")
    assert [(one.asset_key, one.partition) for one in events] == [(WHO, CLIENTS[0])]
    assert "dagster/data_version" in events[0].tags
    checked = {e.check_name for e in result.get_asset_check_evaluations() if e.asset_key == WHO}
    assert {"patterns_have_not_expired", "no_weight_is_too_high"} <= checked
    assert not [event for event in result.all_events if event.is_step_skipped]


def test_a_client_that_failed_is_neither_materialized_nor_skipped(materialize, home):
    poison(home, CLIENTS[1])
    result, materialized = materialize(CLIENTS[1])
    assert not result.success
    assert materialized == set()
    assert not [event for event in result.all_events if event.is_step_skipped]
