"""Commands that bring data in or make some: import, synth."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from conversion_assets.cli.output import json_option, print_json, print_table, progress_bar, say
from conversion_assets.cli.session import open_database, open_settings
from conversion_assets.cli.statuses import EXIT_QUARANTINED
from conversion_assets.domain.errors import InputError

if TYPE_CHECKING:
    from conversion_assets.storage.importer import ImportReport

_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, readable=True, path_type=Path)
_TABLES = ("clients", "leads", "activities")


@click.command("import")
@click.option("--clients", type=_FILE, help="Parquet, CSV or JSONL of clients.")
@click.option("--leads", type=_FILE, help="Parquet, CSV or JSONL of leads.")
@click.option("--activities", type=_FILE, help="Parquet, CSV or JSONL of activities.")
@click.option("--mapping", type=_FILE, help="YAML that declares how foreign tables are read.")
@click.option("--input", "folder", type=_FOLDER, help="Folder of the foreign tables.")
@click.option("--dry-run", is_flag=True, help="Check everything, store nothing.")
@click.option("--allow-erased", is_flag=True, help="Take erased clients and leads again.")
@json_option
def import_command(
    *,
    clients: Path | None,
    leads: Path | None,
    activities: Path | None,
    mapping: Path | None,
    folder: Path | None,
    dry_run: bool,
    allow_erased: bool,
    as_json: bool,
) -> int:
    """Import clients, leads and activities; a row with a known id is updated.

    Exit status: 0 all rows taken; 3 some rows went to quarantine, the rest is stored; 2 a file is
    unreadable or a required column is missing, nothing is stored.
    """
    has_files = any((clients, leads, activities))
    _check_sources(mapping, folder, has_files=has_files)
    settings = open_settings()
    engine = open_database(settings)
    with progress_bar("importing") as update:

        def advance(table: str, done: int, total: int) -> None:
            update(done, total, table)

        if mapping and folder:
            from conversion_assets.storage.mapping import import_mapping  # noqa: PLC0415

            report = import_mapping(
                engine,
                mapping,
                folder,
                quarantine_dir=settings.quarantine,
                dry_run=dry_run,
                allow_erased=allow_erased,
                progress=advance,
            )
        else:
            from conversion_assets.storage.importer import import_files  # noqa: PLC0415

            report = import_files(
                engine,
                clients=clients,
                leads=leads,
                activities=activities,
                quarantine_dir=settings.quarantine,
                dry_run=dry_run,
                allow_erased=allow_erased,
                progress=advance,
            )
    _print_report(report, as_json)
    return EXIT_QUARANTINED if report.rejected else 0


def _check_sources(mapping: Path | None, folder: Path | None, *, has_files: bool) -> None:
    if (mapping is None) != (folder is None):
        raise InputError("--mapping and --input go together: the declaration and the folder")
    if mapping and has_files:
        raise InputError("give either --mapping and --input, or --clients, --leads, --activities")


def _print_report(report: "ImportReport", as_json: bool) -> None:
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    counts = {table: getattr(report, table) for table in _TABLES}
    print_table(
        ["table", "accepted", "new or changed", "rejected"],
        [[t, f"{c.accepted:,}", f"{c.written:,}", f"{c.rejected:,}"] for t, c in counts.items()],
    )
    for table, reasons in report.reasons.items():
        for reason, rows in reasons.items():
            say(f"{table}: {rows:,} rows refused: {reason}")
    for table, columns in report.unknown_columns.items():
        say(f"{table}: columns not looked at: {', '.join(columns)}")
    for table, notes in report.notes.items():
        for note, rows in notes.items():
            say(f"{table}: {rows:,} rows: {note}")
    if report.quarantine:
        say(f"refused rows with their reasons: {report.quarantine}")
    if report.dry_run:
        say("dry run: nothing was stored")


@click.command("synth")
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--clients", default=8, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--leads", default=1000, show_default=True, type=click.IntRange(0, 5_000_000))
@click.option("--seed", default=20260104, show_default=True, type=click.IntRange(0))
@click.option("--null", is_flag=True, help="Plant nothing: no attribute changes conversion.")
@json_option
def synth_command(
    *, out: Path, clients: int, leads: int, seed: int, null: bool, as_json: bool
) -> None:
    """Write generated clients, leads and activities as Parquet, and truth.json.

    --leads is per client. The same arguments give the same files.
    """
    from conversion_assets.synthetic.config import SyntheticConfig  # noqa: PLC0415 - polars
    from conversion_assets.synthetic.files import write_agency  # noqa: PLC0415
    from conversion_assets.synthetic.generator import generate_agency  # noqa: PLC0415

    agency = generate_agency(SyntheticConfig(clients=clients, leads=leads, seed=seed, null=null))
    paths = write_agency(agency, out)
    rows = {table: getattr(agency, table).height for table in _TABLES}
    if as_json:
        print_json({"files": [str(path) for path in paths], "rows": rows, "null": null})
        return
    print_table(["table", "rows"], [[table, f"{count:,}"] for table, count in rows.items()])
    say(f"written to {out}: {', '.join(path.name for path in paths)}")
