"""dagster.yaml and docker-compose.yml of a deployment: they load, and a run goes through them."""

import os
from pathlib import Path

import dagster as dg
import yaml
from dagster_postgres.event_log import PostgresEventLogStorage
from sqlalchemy import make_url

from conversion_assets.orchestration.event_log import (
    BatchingSqliteEventLogStorage,
    PooledPostgresEventLogStorage,
)
from conversion_assets.orchestration.instance import open_instance
from conversion_assets.settings import load_settings
from conversion_assets_tests.orchestration.test_event_log import describe, run_twice

ROOT = Path(__file__).parents[2]


def open_deployed(folder, monkeypatch, config):
    folder.mkdir()
    (folder / "dagster.yaml").write_text(config)
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    return dg.DagsterInstance.from_config(str(folder))


def test_the_deployed_form_stores_what_the_stock_class_stores(
    tmp_path, monkeypatch, postgres_databases
):
    monkeypatch.setenv("DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS", "1")
    monkeypatch.setenv("DAGSTER_EVENT_BATCH_SIZE", "1000")
    config = (ROOT / "dagster.yaml").read_text()
    stock = config.replace(
        "conversion_assets.orchestration.event_log", "dagster_postgres.event_log"
    ).replace("PooledPostgresEventLogStorage", "PostgresEventLogStorage")
    described = []
    for name, text, kind in (
        ("pooled", config, PooledPostgresEventLogStorage),
        ("stock", stock, PostgresEventLogStorage),
    ):
        with postgres_databases.fresh(migrated=False) as url:
            export(monkeypatch, url)
            with open_deployed(tmp_path / name, monkeypatch, text) as instance:
                assert type(instance.event_log_storage) is kind
                run_twice(instance)
                described.append(describe(instance))
    assert described[0] == described[1]


def export(monkeypatch, url):
    parsed = make_url(url)
    parts = {
        "USER": parsed.username,
        "PASSWORD": parsed.password,
        "HOST": parsed.host,
        "PORT": parsed.port,
        "DB": parsed.database,
    }
    for name, value in parts.items():
        monkeypatch.setenv(f"DAGSTER_PG_{name}", str(value or ""))


def test_the_embedded_form_is_written_once_and_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVERSION_HOME", str(tmp_path / "a home: #1"))
    monkeypatch.setenv("DAGSTER_HOME", "")
    for _ in range(2):
        monkeypatch.delenv("DAGSTER_HOME")
        with open_instance(load_settings()) as instance:
            assert type(instance.event_log_storage) is BatchingSqliteEventLogStorage
            assert not instance.telemetry_enabled
        config = tmp_path / "a home: #1" / "dagster" / "dagster.yaml"
        changed = config.read_text() + "# mine\n"
        config.write_text(changed)
    assert config.read_text() == changed
    assert os.environ["DAGSTER_HOME"] == str(config.parent)


def test_the_compose_file_starts_what_its_services_need():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    environment = compose["services"]["code"]["environment"]
    deployed = (ROOT / "dagster.yaml").read_text()
    assert {name for name in environment if name.startswith("DAGSTER_PG_")} == {
        part.split("}")[0] for part in deployed.split("{env: ")[1:]
    }
    for service in ("code", "webserver", "daemon"):
        assert compose["services"][service]["environment"] == environment
    assert compose["services"]["webserver"]["ports"] == ["127.0.0.1:3000:3000"]
