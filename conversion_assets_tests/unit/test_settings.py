from pathlib import Path

import pytest

from conversion_assets.domain.errors import InputError
from conversion_assets.settings import Settings, load_settings

SECRET = "hunter2"
VARIABLES = (
    "CONVERSION_HOME",
    "CONVERSION_DATABASE_URL",
    "CONVERSION_STORE_URL",
    "CONVERSION_COMPUTE_URL",
    "DAGSTER_HOME",
    "SLACK_WEBHOOK_URL",
    "SENTRY_DSN",
    "ALERT_EMAIL",
    "SMTP_URL",
    "ENVIRONMENT",
)


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch, tmp_path):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_an_empty_environment_is_an_embedded_home(tmp_path):
    settings = load_settings()
    home = tmp_path / ".conversion"
    assert settings.home == home
    assert settings.database_url.get_secret_value() == f"sqlite:///{home}/conversion.db"
    assert settings.store_url.get_secret_value() == str(home / "store")
    assert settings.dagster_home == home / "dagster"
    assert settings.quarantine == home / "quarantine"
    assert settings.environment == "local"
    assert settings.secrets == ()


def test_an_empty_variable_counts_as_unset(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    assert load_settings().configured_database_url is None


def test_paths_are_absolute(monkeypatch):
    monkeypatch.setenv("CONVERSION_HOME", "some/../where")
    monkeypatch.setenv("DAGSTER_HOME", "~/dagster")
    settings = load_settings()
    assert settings.home == Path.cwd() / "where"
    assert settings.dagster_home == Path.home() / "dagster"


def test_thresholds_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("CONVERSION_LEARNING_WINDOW_DAYS", "180")
    assert load_settings().learning.window_days == 180


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("CONVERSION_DATABASE_URL", f"mysql://u:{SECRET}@h/d", "sqlite://"),
        ("CONVERSION_STORE_URL", f"ftp://u:{SECRET}@h", "s3://"),
        ("CONVERSION_COMPUTE_URL", f"tcp://u:{SECRET}@h:8786", "tcp://host:port"),
        ("CONVERSION_COMPUTE_URL", f"ray://{SECRET}:1", "tls://host:port"),
        ("SLACK_WEBHOOK_URL", f"{SECRET}", "https://"),
        ("SENTRY_DSN", f"{SECRET}", "https://"),
        ("SMTP_URL", f"http://u:{SECRET}@h", "smtp://"),
        ("ALERT_EMAIL", f"{SECRET}", "name@host"),
        ("ENVIRONMENT", f"{SECRET} {SECRET}", "pattern"),
        ("CONVERSION_LEARNING_ACT_Q", "2", "less than 1"),
        ("CONVERSION_LEARNING_NO_SUCH", "2", "no such setting"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_variable(monkeypatch, name, value, hint):
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        load_settings()
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert hint in message
    assert "\n" not in message
    assert SECRET not in message


def test_secrets_hide_from_every_rendering(monkeypatch):
    urls = {
        "CONVERSION_DATABASE_URL": f"postgresql://u:{SECRET}@h/d",
        "CONVERSION_STORE_URL": f"s3://{SECRET}/prefix",
        "SLACK_WEBHOOK_URL": f"https://hooks.example/{SECRET}",
        "SENTRY_DSN": f"https://{SECRET}@sentry.example/1",
        "SMTP_URL": f"smtps://u:{SECRET}@mail.example",
    }
    for name, url in urls.items():
        monkeypatch.setenv(name, url)
    settings = load_settings()
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        assert SECRET not in text
    assert sorted(settings.secrets) == sorted(urls.values())


def test_settings_do_not_change(monkeypatch):
    with pytest.raises(ValueError, match="frozen"):
        Settings().environment = "other"


def test_thresholds_of_health_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("CONVERSION_HEALTH_STALE_AFTER_DAYS", "30")
    monkeypatch.setenv("CONVERSION_HEALTH_ALERT_SEVERITY", "high")
    monkeypatch.setenv("CONVERSION_UI_URL", "https://dagster.example.org")
    settings = load_settings()
    assert settings.health.stale_after_days == 30
    assert settings.health.alert_severity == "high"
    assert settings.ui_url == "https://dagster.example.org"
    monkeypatch.setenv("CONVERSION_HEALTH_NONSENSE", "1")
    with pytest.raises(InputError, match="CONVERSION_HEALTH_NONSENSE"):
        load_settings()
