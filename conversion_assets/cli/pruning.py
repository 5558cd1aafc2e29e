"""The command that drops old runs and events of Dagster."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import click

from conversion_assets.cli.output import json_option, print_json
from conversion_assets.cli.session import open_settings
from conversion_assets.domain.errors import InputError

LEAST_DAYS = 14
"""The sensors look back at the last run of a weekly schedule."""


@click.command("prune")
@click.option("--days", type=float, help="Keep so many days; default CONVERSION_RUN_HISTORY_DAYS.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted; delete nothing.")
@json_option
def prune_command(*, days: float | None, dry_run: bool, as_json: bool) -> None:
    """Delete Dagster's finished runs and events that are old and superseded.

    What every partition and check shows now stays, and patterns with their history are not touched:
    they are in the system of record. Done daily by itself where a daemon is at work. Killed at any
    moment, the same command again goes on.
    """
    settings = open_settings()
    keep = settings.run_history_days if days is None else days
    if not LEAST_DAYS <= keep <= 36_500:  # a century, so that a date exists
        raise InputError(f"--days is {keep:g}; give {LEAST_DAYS} to 36,500")
    from conversion_assets.orchestration.instance import open_instance  # noqa: PLC0415 - slow

    before = datetime.now(UTC) - timedelta(days=keep)
    with open_instance(settings) as instance:
        from conversion_assets.orchestration.pruning import prune_history  # noqa: PLC0415

        gone = prune_history(instance, before, dry_run=dry_run)
    if as_json:
        print_json({"before": before.isoformat(), "dry_run": dry_run, **asdict(gone)})
        return
    click.echo(
        f"before {before:%Y-%m-%d %H:%M} UTC: {gone.runs:,} runs, "
        f"{gone.materializations:,} superseded materializations, {gone.checks:,} evaluations of "
        f"checks {'would be deleted' if dry_run else 'deleted'}; "
        f"{gone.thinned:,} runs stay for what is still current in them"
    )
