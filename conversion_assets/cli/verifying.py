"""Commands that compare what was derived with its source, and rebuild it: verify, rebuild."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from conversion_assets.cli.locking import hold_home
from conversion_assets.cli.output import (
    json_option,
    print_json,
    print_table,
    progress_bar,
    say,
    spinner,
)
from conversion_assets.cli.session import open_database, open_settings
from conversion_assets.cli.statuses import EXIT_ERROR
from conversion_assets.domain.errors import InputError
from conversion_assets.settings import Settings

if TYPE_CHECKING:
    from conversion_assets.refresh.verify import Verification


@click.command("verify")
@click.option("--client", "client_ids", multiple=True, metavar="ID", help="May be repeated.")
@click.option("--deep", is_flag=True, help="Also compute features anew and compare them; slow.")
@json_option
def verify_command(client_ids: tuple[str, ...], deep: bool, as_json: bool) -> int:
    """Compare features and patterns with the system of record; changes nothing.

    Each difference is told with the command that mends it. Exit status: 0 nothing differs;
    1 something does; 6 for an unknown client.
    """
    settings = open_settings()
    engine = open_database(settings)
    from conversion_assets.refresh.verify import verify  # noqa: PLC0415 - polars
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415

    with spinner("verifying"):
        recorded, partitions = _read_dagster(settings)
        result = verify(
            engine,
            FeatureStore(settings.store_url.get_secret_value()),
            settings.quarantine,
            config=settings.learning,
            now=datetime.now(UTC),
            client_ids=client_ids,
            recorded=recorded,
            deep=deep,
        )
    result.note_partitions(partitions)
    if as_json:
        print_json(result.as_json())
    else:
        _print_result(result)
    return EXIT_ERROR if result.differences else 0


def _read_dagster(settings: Settings) -> tuple[dict[tuple[str, str], str], list[str]]:
    """Hashes that were recorded with the patterns, and clients with a partition."""
    if not (settings.dagster_home / "dagster.yaml").exists():
        return {}, []  # nothing ever ran here, and verify makes nothing
    from conversion_assets.orchestration.instance import open_instance  # noqa: PLC0415

    with open_instance(settings) as instance:
        from conversion_assets.orchestration.recorded import (  # noqa: PLC0415
            list_partitions,
            read_recorded_hashes,
        )

        return read_recorded_hashes(instance), list_partitions(instance)


def _print_result(result: "Verification") -> None:
    from conversion_assets.refresh.verify import list_mends  # noqa: PLC0415 - polars

    looked = ", ".join(f"{name} {count:,}" for name, count in result.checked.items())
    title = f"{result.clients:,} clients compared: {len(result.differences):,} differences"
    if not result.differences:
        click.echo(title)
    else:
        print_table(
            ["client", "where", "what differs", "mend it with"],
            [[d.client_id or "", d.where, d.message, d.mend] for d in result.differences],
            title=title,
        )
        say("to mend everything:")
        for command in list_mends(result.differences):
            say(f"    {command}")
    say(f"looked at: {looked}")
    for note in result.notes:
        say(note)


@click.command("rebuild")
@click.argument("what", type=click.Choice(["features", "history"]))
@click.option("--client", "client_ids", multiple=True, metavar="ID", help="May be repeated.")
@json_option
def rebuild_command(what: str, client_ids: tuple[str, ...], as_json: bool) -> None:
    """Compute all features anew from the rows, or repair clients' history of patterns.

    features: for all clients; patterns stay as they are, and the same rows give the same features.
    history (with --client): a current pattern missing in the history is appended to it, a newer
    one of the history becomes current, forecasts of a document that exists nowhere go.
    """
    if (what == "history") != bool(client_ids):
        raise InputError("give --client with history; features are rebuilt for all clients")
    settings = open_settings()
    engine = open_database(settings)
    from conversion_assets.refresh.rebuild import (  # noqa: PLC0415 - polars
        rebuild_features,
        rebuild_history,
    )
    from conversion_assets.resources.compute import make_loader  # noqa: PLC0415
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415

    with hold_home(settings.home), progress_bar("rebuilding") as advance:
        if what == "features":
            store = FeatureStore(settings.store_url.get_secret_value())
            report = rebuild_features(engine, store, progress=advance, loader=make_loader(settings))
            counts = {
                "clients": len(report.manifest.clients),
                "changed_clients": len(report.changed_client_ids),
                "rows_read": report.rows_read,
                "rows_written": report.rows_written,
            }
        else:
            counts = vars(rebuild_history(engine, client_ids))
    if as_json:
        print_json(counts)
    else:
        click.echo(
            ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items())
        )
