"""The command that learns."""

import click

from conversion_assets.cli.output import json_option, print_json, print_table, say, spinner
from conversion_assets.cli.session import open_settings
from conversion_assets.cli.statuses import EXIT_CLIENT_FAILED
from conversion_assets.domain.moments import parse_moment


@click.command("learn")
@click.option("--client", "client_ids", multiple=True, metavar="ID", help="May be repeated.")
@click.option("--as-of", metavar="ISO", help="Time with zone; nothing later counts. Default: now.")
@click.option("--stale", is_flag=True, help="Only those learned by another version of the code.")
@json_option
def learn_command(
    *, client_ids: tuple[str, ...], as_of: str | None, stale: bool, as_json: bool
) -> int:
    """Learn the patterns of the chosen or all active clients in one Dagster run.

    Exit status: 0; 4 when any client failed (all others are stored); 6 for an unknown client.
    """
    moment = parse_moment(as_of, "--as-of") if as_of is not None else None
    settings = open_settings()
    from conversion_assets.cli.launching import launch_learning  # noqa: PLC0415

    with spinner("learning"):
        report = launch_learning(settings, client_ids=client_ids, as_of=moment, only_stale=stale)
    if as_json:
        print_json(report.as_json())
    elif not report.run_id:
        say("nothing is stale: every client was learned by this version of the code")
    else:
        columns = ["pattern", *next(iter(report.outcomes.values()))]
        rows = [
            [kind, *(str(count) for count in counts.values())]
            for kind, counts in report.outcomes.items()
        ]
        print_table(columns, rows, title=f"{report.clients} clients, run {report.run_id}")
        stages = ", ".join(f"{name} {value:.2f}" for name, value in report.stages.items())
        say(f"{report.duration_s:.1f} s ({stages})")
    for error in report.errors:
        say(f"failed: {error['client_id']} {error['pattern_type']}: {error['error']}")
    return EXIT_CLIENT_FAILED if report.has_failures else 0
