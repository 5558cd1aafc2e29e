"""What most commands open first: the settings and the system of record."""

from typing import TYPE_CHECKING

from conversion_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from sqlalchemy import Engine


def open_settings() -> Settings:
    """Read the environment; a bad variable is one line and exit status 2."""
    return load_settings()


def open_database(settings: Settings) -> "Engine":
    """Return an engine whose schema is current.

    An empty database and the home's own SQLite file are brought to the schema of this code at
    once. A configured database that others may use is left for `migrate`.

    Raises:
        InputError: the database cannot be reached, or is at another revision.
    """
    from conversion_assets.storage.database import (  # noqa: PLC0415 - costs 0.3 s
        create_database_engine,
        current_revision,
        migrate,
        reported_connection_errors,
        require_current_schema,
    )

    engine = create_database_engine(settings.database_url.get_secret_value())
    with reported_connection_errors(engine):
        is_new = current_revision(engine) is None
    if is_new or settings.configured_database_url is None:
        migrate(engine)
    require_current_schema(engine)
    return engine
