"""The code location loads alone, and its graph is the one that was meant."""

import subprocess
import sys

import dagster as dg
import pytest
import yaml
from dagster._core.remote_representation.external_data import RepositorySnap

from conversion_assets.definitions import defs
from conversion_assets.orchestration.workers import named_in_process_executor

GRAPH = {
    "clients": [],
    "leads": [],
    "activities": [],
    "lead_features": ["activities", "clients", "leads"],
    "touch_features": ["activities", "clients", "leads"],
    "who_patterns": ["lead_features", "touch_features"],
    "what_patterns": ["lead_features", "touch_features"],
    "when_patterns": ["lead_features", "touch_features"],
    "how_patterns": ["lead_features", "touch_features"],
    "backfills": [],
}


def test_definitions_load_in_a_fresh_interpreter():
    code = (
        "from conversion_assets.definitions import defs; from dagster import Definitions;"
        "Definitions.validate_loadable(defs); print(len(defs.resolve_all_asset_keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "10"), done.stderr


def test_a_webserver_could_load_it():
    """What the code server describes to the others; it is stricter than loading."""
    described = RepositorySnap.from_def(defs.get_repository_def())
    assert described.name == "__repository__"


def test_the_graph_is_the_one_that_was_meant():
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    graph = {
        name: sorted(dep.asset_key.to_user_string() for dep in spec.deps)
        for name, spec in specs.items()
    }
    assert graph == GRAPH
    partitioned = {
        name: spec.partitions_def.name for name, spec in specs.items() if spec.partitions_def
    }
    by_client = {name for name in GRAPH if name.endswith("_patterns")} | {"backfills"}
    assert partitioned == dict.fromkeys(by_client, "clients")
    assert {name for name, spec in specs.items() if not spec.code_version} == {
        "clients",
        "leads",
        "activities",
        "backfills",
    }
    assert {spec.group_name for spec in specs.values()} == {
        "sources",
        "features",
        "patterns",
        "backfill",
    }


def test_every_asset_says_its_grain():
    for spec in defs.resolve_all_asset_specs():
        assert spec.description.startswith("One row per client"), spec.key


def test_all_chosen_clients_are_one_run():
    asset_graph = defs.resolve_asset_graph()
    for kind in ("who", "what", "when", "how"):
        node = asset_graph.get(dg.AssetKey(f"{kind}_patterns"))
        assert node.backfill_policy == dg.BackfillPolicy.single_run()


def test_the_job_runs_everything_in_one_process():
    job = defs.resolve_job_def("learn_patterns")
    assert job.executor_def is named_in_process_executor
    keys = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert keys == set(GRAPH) - {"backfills"}


def test_no_resource_takes_config():
    for name, resource in defs.get_repository_def().get_top_level_resources().items():
        assert resource.config_schema.as_field().default_provided, name
        assert "config" not in str(resource.config_schema.default_value or {}), name


@pytest.mark.parametrize("path", ["workspace.yaml"])
def test_the_workspace_names_the_code_location(path, pytestconfig):
    loaded = yaml.safe_load((pytestconfig.rootpath / path).read_text())
    assert loaded == {"load_from": [{"python_module": "conversion_assets.definitions"}]}
