"""Commands about health: health, alerts, heartbeat."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from conversion_assets.cli.output import json_option, print_json, print_table, say
from conversion_assets.cli.session import open_database, open_settings
from conversion_assets.cli.statuses import EXIT_ERROR, EXIT_UNHEALTHY
from conversion_assets.domain.errors import ConversionError
from conversion_assets.domain.terms import Severity

if TYPE_CHECKING:
    from conversion_assets.domain.alerts import AlertLine


@click.command("health")
@click.option("--client", "client_ids", multiple=True, metavar="ID", help="May be repeated.")
@json_option
def health_command(client_ids: tuple[str, ...], as_json: bool) -> int:
    """Check the patterns of the chosen or all active clients.

    What is found is recorded, and whoever must hear of it is told once, as after a scheduled
    check. Exit status: 0; 5 when a finding is high; 6 for an unknown client.
    """
    settings = open_settings()
    from conversion_assets.refresh.health import check_health  # noqa: PLC0415 - polars
    from conversion_assets.resources.alerts import list_channel_names  # noqa: PLC0415

    done = check_health(
        open_database(settings),
        now=datetime.now(UTC),
        config=settings.health,
        learning=settings.learning,
        channels=list_channel_names(settings),
        client_ids=client_ids or None,
    )
    is_bad = any(finding.severity == Severity.HIGH for finding in done.findings)
    if as_json:
        findings = [
            {
                "client_id": finding.client_id,
                "pattern_type": finding.pattern_type,
                "rule": finding.rule,
                "severity": finding.severity,
                "message": finding.message,
                "finding_id": finding.finding_id,
                "numbers": finding.numbers,
            }
            for finding in done.findings
        ]
        print_json({"checked": len(done.client_ids), "findings": findings})
    else:
        rows = [
            [f.severity, f.client_id, f.pattern_type or "", f.rule, f.message]
            for f in done.findings
        ]
        title = f"{len(done.client_ids):,} clients checked, {len(done.findings):,} findings"
        print_table(["severity", "client", "pattern", "rule", "what"], rows, title=title)
    return EXIT_UNHEALTHY if is_bad else 0


@click.group("alerts")
def alerts_command() -> None:
    """List open findings, acknowledge them, deliver what waits, try the channels."""


@alerts_command.command("list")
@click.option("--client", "client_ids", multiple=True, metavar="ID", help="May be repeated.")
@json_option
def list_alerts(client_ids: tuple[str, ...], as_json: bool) -> None:
    """List the open findings, and how each channel does."""
    engine = open_database(open_settings())
    from conversion_assets.storage.health import list_open_findings  # noqa: PLC0415 - polars
    from conversion_assets.storage.outbox import Outbox  # noqa: PLC0415

    found = list_open_findings(engine, client_ids or None)
    channels = Outbox(engine).report()
    if as_json:
        print_json(
            {
                "findings": [
                    {
                        **one.line.model_dump(mode="json"),
                        "acknowledged_at": one.acknowledged_at,
                        "told_at": one.told_at,
                    }
                    for one in found
                ],
                "channels": [vars(channel) for channel in channels],
            }
        )
        return
    rows = [
        [
            one.line.finding_id,
            one.line.severity,
            one.line.client_id,
            one.line.pattern_type or "",
            f"{one.line.rule}: {one.line.message}",
            _word_state(one.line, one.acknowledged_at, one.told_at),
        ]
        for one in found
    ]
    columns = ["id", "severity", "client", "pattern", "what", "state"]
    print_table(columns, rows, title=f"{len(found):,} open findings")
    for channel in channels:
        state = f"blocked since {channel.blocked_at:%Y-%m-%d %H:%M}" if channel.blocked_at else ""
        words = [f"{channel.waiting:,} waiting", f"{channel.sent:,} sent"]
        words += [f"{channel.refused:,} refused"] if channel.refused else []
        words += [part for part in (state, channel.last_error) if part]
        click.echo(f"{channel.channel}: {', '.join(words)}")


def _word_state(line: "AlertLine", acknowledged: datetime | None, told: datetime | None) -> str:
    since = f"since {line.first_seen_at:%Y-%m-%d}"
    if acknowledged:
        return f"{since}, acknowledged"
    return f"{since}, told" if told else since


@alerts_command.command("ack")
@click.argument("finding_ids", nargs=-1, required=True, metavar="ID...")
def acknowledge(finding_ids: tuple[str, ...]) -> None:
    """Acknowledge open findings: they are not told again while they stay open."""
    engine = open_database(open_settings())
    from conversion_assets.storage.health import acknowledge_findings  # noqa: PLC0415 - polars

    count = acknowledge_findings(engine, finding_ids, datetime.now(UTC))
    click.echo(f"{count} acknowledged")


@alerts_command.command("deliver")
def deliver() -> int:
    """Send what waits now, as the daemon does every half minute; exit status 1 on a fault."""
    settings = open_settings()
    engine = open_database(settings)
    from conversion_assets.resources.alerts import (  # noqa: PLC0415 - dagster
        build_channels,
        deliver_alerts,
    )

    report = deliver_alerts(engine, build_channels(settings))
    click.echo(f"{report.sent} sent")
    for channel, fault in report.faults.items():
        say(f"error: {channel}: {fault}")
    return EXIT_ERROR if report.faults else 0


@alerts_command.command("test")
@json_option
def send_test(as_json: bool) -> int:
    """Send one test message through every configured channel; exit status 1 if one fails."""
    settings = open_settings()
    from conversion_assets.alerts.channels import Result  # noqa: PLC0415
    from conversion_assets.domain.alerts import AlertKind, AlertMessage  # noqa: PLC0415
    from conversion_assets.resources.alerts import build_channels  # noqa: PLC0415

    moment = datetime.now(UTC).isoformat(timespec="seconds")
    message = AlertMessage(
        message_key=f"test:{moment}",
        kind=AlertKind.NOTICE,
        title=f"test of conversion-assets ({settings.environment})",
        text=f"Sent by `conversion-assets alerts test` at {moment}; nothing is wrong.",
    )
    results = {channel.name: channel.send(message) for channel in build_channels(settings)}
    if as_json:
        print_json({name: {"result": r.result, "reason": r.reason} for name, r in results.items()})
    else:
        for name, attempt in results.items():
            click.echo(f"{name}: {attempt.result} {attempt.reason}".rstrip())
    return 0 if all(one.result == Result.SENT for one in results.values()) else EXIT_ERROR


@click.command("heartbeat")
@click.option(
    "--learning-days", default=8.0, show_default=True, help="Learning must be younger than this."
)
@click.option(
    "--health-hours", default=25.0, show_default=True, help="The health check must be, too."
)
@click.option(
    "--daemon-minutes", default=5.0, show_default=True, help="The daemon's tick must be, too."
)
@click.option(
    "--outbox-minutes", default=60.0, show_default=True, help="No alert may wait for longer."
)
@json_option
def heartbeat_command(as_json: bool, **limits: float) -> int:
    """Say whether the machinery lives, for a monitor outside; exit status 1 if it does not.

    Run it from somewhere that does not depend on Dagster, for example cron on another machine.
    """
    problems = _find_silence(limits)
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    else:
        click.echo("\n".join(problems) or "ok")
    return EXIT_ERROR if problems else 0


def _find_silence(limits: dict[str, float]) -> list[str]:
    try:
        settings = open_settings()
        engine = open_database(settings)
    except ConversionError as error:
        return [str(error)]
    from conversion_assets.orchestration.instance import open_instance  # noqa: PLC0415
    from conversion_assets.orchestration.ticks import find_late_daemons  # noqa: PLC0415
    from conversion_assets.refresh.heartbeat import find_silent_work  # noqa: PLC0415

    now = datetime.now(UTC)
    problems: list[str] = []
    steps: list[Any] = [
        lambda: find_silent_work(
            engine,
            now,
            learning_days=limits["learning_days"],
            health_hours=limits["health_hours"],
            outbox_minutes=limits["outbox_minutes"],
        )
    ]

    def look_at_daemon() -> list[str]:
        with open_instance(settings) as instance:
            return find_late_daemons(instance, now, limits["daemon_minutes"])

    for step in (*steps, look_at_daemon):
        try:
            problems += step()
        except Exception as error:  # noqa: BLE001 - what cannot be asked counts as silent
            problems.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return problems
