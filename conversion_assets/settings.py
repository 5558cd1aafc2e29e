"""Typed settings: the only reader of the environment.

Everything has a default, so that an empty environment is a working embedded installation. Secrets
and addresses that may carry a password are `SecretStr`: they never show in a repr, a log line, a
run's config or the UI.
"""

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from conversion_assets.domain.config import HealthConfig, LearningConfig
from conversion_assets.domain.errors import InputError

LEARNING_PREFIX = "CONVERSION_LEARNING_"
"""`CONVERSION_LEARNING_WINDOW_DAYS=180` sets `LearningConfig.window_days`."""
HEALTH_PREFIX = "CONVERSION_HEALTH_"
"""`CONVERSION_HEALTH_ALERT_SEVERITY=high` sets `HealthConfig.alert_severity`."""


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


def _one_of(*schemes: str) -> AfterValidator:
    def check(value: SecretStr) -> SecretStr:
        scheme = urlsplit(value.get_secret_value()).scheme
        if scheme not in schemes:
            kinds = " or ".join(f"{name}://" if name else "a folder" for name in schemes)
            raise ValueError(f"must be {kinds}")
        return value

    return AfterValidator(check)


def _is_email(value: str) -> str:
    if not re.fullmatch(r"[^@\s,]+@[^@\s,]+", value):
        raise ValueError("must be one e-mail address, name@host")
    return value


def _is_scheduler(value: str) -> str:
    if not re.fullmatch(r"(tcp|tls)://[^\s/@]+:[0-9]{1,5}", value):
        raise ValueError("must be tcp://host:port or tls://host:port of a dask scheduler")
    return value


# Spellings of the two databases; storage gives each its one driver.
DatabaseUrl = Annotated[
    SecretStr,
    _one_of("sqlite", "postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2"),
]
StoreUrl = Annotated[SecretStr, _one_of("file", "s3", "")]
ComputeUrl = Annotated[str, AfterValidator(_is_scheduler)]
HttpUrl = Annotated[SecretStr, _one_of("https", "http")]
SmtpUrl = Annotated[SecretStr, _one_of("smtp", "smtps")]
HomePath = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """Where this installation keeps its data and whom it may reach.

    Read it with `load_settings`, which turns a bad value into one line that names the variable.

    Example:
        >>> Settings(CONVERSION_HOME="/srv/conversion").database_url.get_secret_value()
        'sqlite:////srv/conversion/conversion.db'
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    home: HomePath = Field(
        default=Path(".conversion"), validation_alias="CONVERSION_HOME", validate_default=True
    )
    configured_database_url: DatabaseUrl | None = Field(
        default=None, validation_alias="CONVERSION_DATABASE_URL"
    )
    configured_store_url: StoreUrl | None = Field(
        default=None, validation_alias="CONVERSION_STORE_URL"
    )
    compute_url: ComputeUrl | None = Field(default=None, validation_alias="CONVERSION_COMPUTE_URL")
    configured_dagster_home: HomePath | None = Field(default=None, validation_alias="DAGSTER_HOME")
    slack_webhook_url: HttpUrl | None = Field(default=None, validation_alias="SLACK_WEBHOOK_URL")
    sentry_dsn: HttpUrl | None = Field(default=None, validation_alias="SENTRY_DSN")
    alert_email: Annotated[str, AfterValidator(_is_email)] | None = Field(
        default=None, validation_alias="ALERT_EMAIL"
    )
    smtp_url: SmtpUrl | None = Field(default=None, validation_alias="SMTP_URL")
    environment: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = Field(
        default="local", validation_alias="ENVIRONMENT"
    )
    learning: LearningConfig = Field(
        default_factory=LearningConfig, validation_alias="CONVERSION_LEARNING"
    )
    health: HealthConfig = Field(default_factory=HealthConfig, validation_alias="CONVERSION_HEALTH")
    run_history_days: float = Field(
        # As long as Dagster keeps the ticks of schedules. Two weeks are the least: the sensors look
        # back at the last run of a weekly schedule.
        default=90,
        ge=14,
        le=36_500,
        validation_alias="CONVERSION_RUN_HISTORY_DAYS",
        description="Runs and events of Dagster are kept this long; what is current always",
    )
    ui_url: Annotated[str, Field(pattern=r"^https?://[^\s<>|]+$")] = Field(
        default="http://127.0.0.1:3000", validation_alias="CONVERSION_UI_URL"
    )

    @property
    def database_url(self) -> SecretStr:
        """SQLAlchemy URL of the system of record; SQLite in the home unless configured."""
        return self.configured_database_url or SecretStr(f"sqlite:///{self.home}/conversion.db")

    @property
    def store_url(self) -> SecretStr:
        """URL or folder of the columnar store; a folder in the home unless configured."""
        return self.configured_store_url or SecretStr(str(self.home / "store"))

    @property
    def dagster_home(self) -> Path:
        """Folder of Dagster's own files."""
        return self.configured_dagster_home or self.home / "dagster"

    @property
    def quarantine(self) -> Path:
        """Folder of rejected rows."""
        return self.home / "quarantine"

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """Every secret text in force, for tests and filters that must never let one through."""
        values = (
            self.configured_database_url,
            self.configured_store_url,
            self.slack_webhook_url,
            self.sentry_dsn,
            self.smtp_url,
        )
        return tuple(value.get_secret_value() for value in values if value is not None)

    @classmethod
    def from_environment(cls) -> Self:
        """Read the process environment; a validation error names the variable."""
        return cls.model_validate(
            {
                "CONVERSION_LEARNING": _overrides(LEARNING_PREFIX),
                "CONVERSION_HEALTH": _overrides(HEALTH_PREFIX),
            }
        )


def _overrides(prefix: str) -> dict[str, str]:
    return {
        name.removeprefix(prefix).lower(): value
        for name, value in os.environ.items()
        if name.startswith(prefix) and value
    }


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        InputError: a variable has a value that cannot be used; the line names the variable and
            what would be right, and never repeats the value, which may be a secret.
    """
    try:
        return Settings.from_environment()
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise InputError(f"{_variable(first['loc'])}: {_reason(first)}") from None


def _variable(location: tuple[int | str, ...]) -> str:
    name = "_".join(str(part) for part in location if part != "function-after")
    return name.upper()


def _reason(error: object) -> str:
    assert isinstance(error, dict)  # noqa: S101 - pydantic's ErrorDetails
    if error["type"] == "extra_forbidden":
        return "there is no such setting; see LearningConfig and HealthConfig for the names"
    return str(error["msg"]).removeprefix("Value error, ")


def child_environment(changes: dict[str, str]) -> dict[str, str]:
    """Return the environment for a process of ours: the current one with changes."""
    return {**os.environ, **changes}


def export_environment(changes: dict[str, str]) -> None:
    """Set variables of this process for libraries that read the environment by themselves."""
    os.environ.update(changes)
