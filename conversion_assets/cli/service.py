"""Commands about the installation: migrate, check, list, ui."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import urlopen

import click

from conversion_assets.cli.output import json_option, print_json, print_table, say
from conversion_assets.cli.session import open_settings
from conversion_assets.cli.statuses import EXIT_ERROR
from conversion_assets.domain.errors import ConversionError, InputError
from conversion_assets.settings import Settings, child_environment

CODE_LOCATION = "conversion_assets.definitions"
"""The module Dagster loads, as in workspace.yaml."""

_CONNECT_TIMEOUT_S = 5.0
_DEFAULT_PORT = 3000
# A cold start of webserver, daemon and code server on a busy two-core machine.
_START_TIMEOUT_S = 180.0
# Dagster waits up to 60 s for each of its two services; nearly always it is 2 s.
_STOP_TIMEOUT_S = 130.0
# A run in progress notes that it was interrupted; that takes it a moment.
_GROUP_TIMEOUT_S = 15.0
_PORTS = {"https": 443, "http": 80, "smtp": 25, "smtps": 465}


@click.command("migrate")
@json_option
def migrate_command(as_json: bool) -> None:
    """Bring the database to the schema of this version; safe to repeat."""
    from conversion_assets.storage.database import (  # noqa: PLC0415
        create_database_engine,
        migrate,
        public_name,
    )

    engine = create_database_engine(open_settings().database_url.get_secret_value())
    revision = migrate(engine)
    if as_json:
        print_json({"database": public_name(engine), "revision": revision})
    else:
        click.echo(f"{public_name(engine)} is at revision {revision}")


class Finding(NamedTuple):
    """What `check` says of one service: `message` is where it is, or what is wrong."""

    service: str
    ok: bool
    message: str


@click.command("check")
@json_option
def check_command(as_json: bool) -> int:
    """Reach every configured service and say what is wrong; exit status 1 if anything is."""
    try:
        findings = _check_services(open_settings())
    except InputError as error:
        findings = [Finding("settings", False, str(error))]
    is_healthy = all(finding.ok for finding in findings)
    if as_json:
        print_json({"ok": is_healthy, "services": [finding._asdict() for finding in findings]})
    else:
        rows = [[f.service, "ok" if f.ok else "WRONG", f.message] for f in findings]
        print_table(["service", "state", "where, or what is wrong"], rows)
    return 0 if is_healthy else EXIT_ERROR


def _check_services(settings: Settings) -> list[Finding]:
    findings = [
        Finding("settings", True, f"home {settings.home}, environment {settings.environment}"),
        _probe("database", lambda: _reach_database(settings)),
        _probe("store", lambda: _reach_store(settings)),
        _probe("dagster", lambda: _reach_dagster(settings)),
    ]
    addresses = {
        "slack": settings.slack_webhook_url,
        "sentry": settings.sentry_dsn,
        "smtp": settings.smtp_url,
    }
    for service, secret in addresses.items():
        if secret is None:
            findings.append(Finding(service, True, "not configured"))
        else:
            url = secret.get_secret_value()
            findings.append(_probe(service, partial(_reach_host, url)))
    if settings.alert_email and not settings.smtp_url:
        findings.append(Finding("smtp", False, "ALERT_EMAIL is set but SMTP_URL is not"))
    return findings


def _probe(service: str, reach: Callable[[], str]) -> Finding:
    try:
        return Finding(service, True, reach())
    except ConversionError as error:
        return Finding(service, False, str(error))
    except Exception as error:  # noqa: BLE001 - a check reports whatever stands in the way
        return Finding(service, False, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _reach_database(settings: Settings) -> str:
    from conversion_assets.storage.database import (  # noqa: PLC0415
        create_database_engine,
        public_name,
        require_current_schema,
    )

    engine = create_database_engine(settings.database_url.get_secret_value())
    require_current_schema(engine)
    return public_name(engine)


def _reach_store(settings: Settings) -> str:
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415

    store = FeatureStore(settings.store_url.get_secret_value())
    manifest = store.load_manifest()
    return f"features of {len(manifest.clients):,} clients, revision {manifest.revision}"


def _reach_dagster(settings: Settings) -> str:
    from conversion_assets.orchestration.instance import open_instance  # noqa: PLC0415

    with open_instance(settings) as instance:
        runs = instance.get_runs_count()
    return f"{settings.dagster_home}, {runs:,} runs"


def _reach_host(url: str) -> str:
    """Open a connection and send nothing: a test message would be somebody's alert."""
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    if not parts.hostname:
        raise InputError("the URL names no host")
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise InputError(f"{parts.hostname}:{port} cannot be reached: {error}") from None
    return f"{parts.hostname}:{port} answers"


@click.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List jobs, schedules and sensors with their state."""
    settings = open_settings()
    from conversion_assets.orchestration.instance import open_instance  # noqa: PLC0415

    with open_instance(settings) as instance:
        from conversion_assets.definitions import defs  # noqa: PLC0415 - after the environment
        from conversion_assets.orchestration.inventory import list_definitions  # noqa: PLC0415

        inventory = list_definitions(defs, instance)
    if as_json:
        print_json(inventory)
        return
    rows = [
        [kind.rstrip("s"), item["name"], item.get("cron") or "", item.get("state") or ""]
        for kind, items in inventory.items()
        for item in items
    ]
    print_table(["kind", "name", "when (UTC)", "state"], rows)


@click.command("ui")
@click.option("--port", default=_DEFAULT_PORT, show_default=True, type=click.IntRange(1, 65535))
@click.option("--host", default="127.0.0.1", show_default=True, help="The UI has no login.")
def ui_command(port: int, host: str) -> int:
    """Open the Dagster UI and daemon on this home until Ctrl-C."""
    settings = open_settings()
    _require_free_port(host, port)
    from conversion_assets.orchestration.instance import (  # noqa: PLC0415
        dagster_environment,
        prepare_instance_folder,
    )

    prepare_instance_folder(settings)
    return _serve(
        [
            *(sys.executable, "-W", "ignore", "-m", "dagster", "dev"),
            *("-m", CODE_LOCATION, "--host", host, "--port", str(port)),
            *("--log-level", "warning", "--code-server-log-level", "warning"),
        ],
        dagster_environment(settings),
        cwd=settings.dagster_home,
        url=f"http://{host}:{port}",
    )


def _require_free_port(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise InputError(
            f"port {port} on {host} cannot be used ({error.strerror}); give another with --port"
        ) from None


def _serve(command: list[str], environment: dict[str, str], *, cwd: Path, url: str) -> int:
    """Run Dagster's services until they end or a signal asks them to."""
    stopping: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopping.append(number)

    # A signal that is handled here is back to its default in the child, even where the shell
    # that started us had it ignored; Dagster needs the default to shut down in order.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    say("starting the Dagster webserver and daemon ...")
    with subprocess.Popen(  # noqa: S603 - our own interpreter
        command, env=child_environment(environment), cwd=cwd, start_new_session=True
    ) as child:
        is_announced = False
        deadline = time.monotonic() + _START_TIMEOUT_S
        while child.poll() is None and not stopping:
            if not is_announced and (is_announced := _answers(url)):
                say(f"Dagster UI: {url}   (Ctrl-C stops it)")
            if not is_announced and time.monotonic() > deadline:
                say(f"error: the UI did not answer within {_START_TIMEOUT_S:.0f} s")
                stopping.append(signal.SIGTERM)
            time.sleep(0.3)
        if child.poll() is None:
            say("stopping ...")
            child.send_signal(signal.SIGINT)
            _wait(child)
    return 0 if stopping and is_announced else EXIT_ERROR


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/server_info", timeout=1):  # noqa: S310 - our own http address
            return True
    except OSError:
        return False


def _wait(child: "subprocess.Popen[bytes]") -> None:
    """Wait for the services and whatever they started; all are in the child's own group."""
    try:
        child.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        say("Dagster does not stop; killing it")
        child.kill()
        child.wait()
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _GROUP_TIMEOUT_S
        while _signal_group(child.pid, number) and time.monotonic() < deadline:
            time.sleep(0.2)


def _signal_group(group: int, number: int) -> bool:
    """Signal what is left of a process group; False when nothing is."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
