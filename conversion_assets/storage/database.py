"""Engines, transactions and migrations of the system of record."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from conversion_assets.domain.errors import InputError, UnreachableError

BUSY_TIMEOUT_S = 30.0
"""How long SQLite waits for another writer: longer than one import batch or one client's store."""

CONNECT_TIMEOUT_S = 10
"""How long PostgreSQL may take to answer a connection before it counts as unreachable."""

MIGRATION_LOCK = 7_263_549_011
"""Key of the PostgreSQL advisory lock that lets one process migrate at a time; any fixed number."""

_POSTGRES_DRIVERS = ("postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2")
_MIGRATIONS = Path(__file__).parent / "migrations"


def parse_database_url(url: str) -> URL:
    """Read a database URL; PostgreSQL always goes through psycopg 3.

    A bare `postgresql://` means another driver to other programs, and Dagster's own files need
    `postgresql+psycopg2://`; all of them name the same server.

    Raises:
        InputError: not a URL of SQLite or PostgreSQL. The message never repeats the URL, which
            may hold a password.

    Example:
        >>> parse_database_url("postgres://u@localhost/db").drivername
        'postgresql+psycopg'
    """
    expected = "use sqlite:///path/to/file.db or postgresql://user@host:5432/database"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise InputError(f"the database URL cannot be read; {expected}") from None
    if parsed.drivername in _POSTGRES_DRIVERS:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        if parsed.database in (None, "", ":memory:"):
            raise InputError(f"the database URL names no SQLite file; {expected}")
        return parsed.set(drivername="sqlite")
    raise InputError(f"database {parsed.drivername}:// is not supported; {expected}")


def create_database_engine(url: str) -> Engine:
    """Engine for SQLite (WAL, foreign keys on) or PostgreSQL (psycopg 3, UTC session).

    A missing folder of a SQLite file is made, readable by its owner only. Nothing is connected
    yet.

    Raises:
        InputError: see `parse_database_url`; or the folder of the SQLite file cannot be made.
    """
    parsed = parse_database_url(url)
    if parsed.drivername == "sqlite":
        return _sqlite_engine(parsed)
    try:
        return create_engine(
            parsed,
            pool_pre_ping=True,
            # The parameters of a failed statement are rows of a client's data.
            hide_parameters=True,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "application_name": "conversion-assets",
                "options": "-c timezone=UTC",
            },
        )
    except (ImportError, NoSuchModuleError):
        raise InputError(
            "PostgreSQL needs its drivers: pip install 'conversion-assets[postgres]'"
        ) from None


def _sqlite_engine(url: URL) -> Engine:
    folder = Path(str(url.database)).absolute().parent
    try:
        _make_private_folder(folder)
    except OSError as error:
        raise InputError(f"folder {folder} of the database: {error.strerror}") from None
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_private_folder(folder: Path) -> None:
    missing = [folder, *folder.parents]
    for path in reversed(missing):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own implicit BEGIN leaves reads and DDL outside of transactions; ours does not.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    _enter_wal(connection)
    # A killed process loses nothing in WAL with NORMAL; a power cut may lose the last commits,
    # never the file's integrity.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _enter_wal(connection: sqlite3.Connection) -> None:
    # The first switch to WAL fails at once, busy timeout or not, while another process does it.
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes: committed at the end, rolled back on any error.

    On SQLite it takes the write lock at once, because a read that later turns into a write fails
    where another process wrote in between.
    """
    with (
        engine.connect().execution_options(sqlite_begin="IMMEDIATE") as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def read_transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction that sees one unchanging state of the whole database."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(  # noqa: PLW2901 - the same connection
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        with connection.begin():
            yield connection


def next_change_id(connection: Connection) -> int:
    """Number of this writing transaction, for the column `change_id` of every row it writes.

    Call it once in a `write_transaction`, before the first row. Rows written without it are
    numbered by triggers, which costs time per row.
    """
    if connection.dialect.name == "postgresql":
        statement = "SELECT pg_current_xact_id()::text::bigint"
    else:
        connection.execute(text("UPDATE change_counter SET value = value + 1"))
        statement = "SELECT value FROM change_counter"
    return int(connection.execute(text(statement)).scalar_one())


def _alembic_config(connection: Connection | None = None) -> Config:
    config = Config()
    # A percent sign in a path would be read as interpolation.
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    """Revision of the schema that this code needs."""
    head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    assert head is not None  # noqa: S101 - the package ships its migrations
    return head


def current_revision(engine: Engine) -> str | None:
    """Revision of the database's schema; None before the first migration."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def migrate(engine_or_url: Engine | str) -> str:
    """Bring the database to the revision of this code, in one transaction; returns the revision.

    Two processes may call it at the same time: the second waits and then finds nothing to do.

    Raises:
        UnreachableError: the database cannot be reached.
        InputError: the database is at a revision this code does not know.
    """
    if isinstance(engine_or_url, str):
        engine = create_database_engine(engine_or_url)
        try:
            return migrate(engine)
        finally:
            engine.dispose()
    engine = engine_or_url
    with reported_connection_errors(engine), write_transaction(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        found = MigrationContext.configure(connection).get_current_revision()
        script = ScriptDirectory.from_config(_alembic_config())
        if found is not None and found not in {r.revision for r in script.walk_revisions()}:
            raise InputError(_revision_message(engine, found))
        command.upgrade(_alembic_config(connection), "head")
    return head_revision()


def require_current_schema(engine: Engine) -> None:
    """Refuse a database whose schema is not the one this code was written for.

    Raises:
        UnreachableError: the database cannot be reached.
        InputError: the revision differs.
    """
    with reported_connection_errors(engine):
        found = current_revision(engine)
    if found != head_revision():
        raise InputError(_revision_message(engine, found))


def _revision_message(engine: Engine, found: str | None) -> str:
    return (
        f"database {public_name(engine)} is at revision {found or 'none'}, "
        f"this code needs {head_revision()}: run `conversion-assets migrate` with this version"
    )


def public_name(engine: Engine) -> str:
    """URL of the database without user, password and parameters, fit for a message."""
    url = engine.url
    bare = URL.create(url.get_backend_name(), host=url.host, port=url.port, database=url.database)
    return bare.render_as_string()


@contextmanager
def reported_connection_errors(engine: Engine) -> Iterator[None]:
    """Turn an error of the database into one line without secrets.

    Raises:
        UnreachableError: the database cannot be reached, is locked or broke off.
        InputError: any other refusal, for example by a constraint or a missing right.
    """
    try:
        yield
    except DBAPIError as error:
        kind = UnreachableError if isinstance(error, OperationalError) else InputError
        raise kind(describe_failure(engine, error.orig)) from None


def describe_failure(engine: Engine, error: BaseException | None) -> str:
    """One line: which database, and what it said, without the password."""
    line = " ".join(str(error).split())
    for secret in _secrets(engine.url):
        line = line.replace(secret, "***")
    return f"database {public_name(engine)}: {line}"


def _secrets(url: URL) -> list[str]:
    values: list[Any] = [url.password, *(v for k, v in url.query.items() if "pass" in k)]
    return [str(value) for value in values if value]


__all__ = [
    "create_database_engine",
    "current_revision",
    "describe_failure",
    "head_revision",
    "migrate",
    "next_change_id",
    "parse_database_url",
    "public_name",
    "read_transaction",
    "reported_connection_errors",
    "require_current_schema",
    "write_transaction",
]
