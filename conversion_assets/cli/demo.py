"""The demonstration: a small agency, imported and learned as anybody's data would be."""

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from conversion_assets.cli.launching import launch_learning
from conversion_assets.cli.output import json_option, print_json, print_table, say, spinner
from conversion_assets.cli.session import open_database, open_settings
from conversion_assets.cli.statuses import EXIT_CLIENT_FAILED
from conversion_assets.domain.errors import ConflictError, NotFoundError
from conversion_assets.domain.terms import PatternType, Verdict

if TYPE_CHECKING:
    import polars as pl
    from sqlalchemy import Engine

    from conversion_assets.settings import Settings

_PREFIX = "demo-"


class _Part(NamedTuple):
    """Some clients of the agency: how many, leads of each, and how effects are planted."""

    clients: int
    leads: int
    is_mixed: bool = True
    is_null: bool = False


# Sizes an agency really has: one client with every effect planted, some with effects of their
# own, one in whose data there is nothing to find, and two too small to say anything.
_PARTS = (
    _Part(1, 10_000, is_mixed=False),
    _Part(4, 4000),
    _Part(2, 600),
    _Part(1, 1500, is_null=True),
    _Part(2, 40),
)
_TABLES = ("clients", "leads", "activities")
_WORDS = {"found": "found", "none_found": "nothing", "not_enough_data": "few data"}


@click.command("demo")
@json_option
def demo_command(as_json: bool) -> int:
    """Build a demonstration home, learn every client's patterns and show what came out.

    Safe to repeat. A home that holds other clients is left alone.
    """
    settings = open_settings()
    engine = open_database(settings)
    moment = _find_last_monday(datetime.now(UTC))
    with spinner("generating an agency of ten clients"):
        frames = _generate(moment)
    _refuse_other_clients(engine, frames["clients"]["id"].to_list())
    with spinner("importing"):
        _import(settings, engine, frames)
    with spinner("learning"):
        report = launch_learning(settings, as_of=moment)
    rows = [_summarize(engine, client) for client in frames["clients"].to_dicts()]
    if as_json:
        print_json({"home": str(settings.home), "clients": rows, "learn": report.as_json()})
    else:
        title = f"{len(rows)} clients as of {moment:%Y-%m-%d}, learned in {report.duration_s:.1f} s"
        print_table(_COLUMNS, [_format(row) for row in rows], title=title)
        _point_on(settings, rows[0]["client_id"])
    return EXIT_CLIENT_FAILED if report.has_failures else 0


def _find_last_monday(now: datetime) -> datetime:
    """Return the last Monday 00:00 UTC: a demo that is repeated within a week changes nothing."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    return midnight - timedelta(days=midnight.weekday())


def _generate(moment: datetime) -> "dict[str, pl.DataFrame]":
    import polars as pl  # noqa: PLC0415

    from conversion_assets.synthetic.config import SyntheticConfig  # noqa: PLC0415
    from conversion_assets.synthetic.generator import generate_agency  # noqa: PLC0415

    parts = []
    first = 0
    for clients, leads, is_mixed, is_null in _PARTS:
        config = SyntheticConfig(
            clients=clients,
            first_client=first,
            leads=leads,
            null=is_null,
            mixed=is_mixed,
            base_conversion=0.15,
            as_of=moment,
        )
        parts.append(generate_agency(config))
        first += clients
    frames = {table: pl.concat([getattr(part, table) for part in parts]) for table in _TABLES}
    # Ids of their own, so that no generated or real client is ever taken for the demonstration's.
    clients_frame = frames["clients"]
    new_ids = _PREFIX + clients_frame["name"].str.extract(r"^(\w+)").str.to_lowercase()
    for table, column in (("clients", "id"), ("leads", "client_id"), ("activities", "client_id")):
        frames[table] = frames[table].with_columns(
            pl.col(column).replace_strict(clients_frame["id"], new_ids)
        )
    return frames


def _refuse_other_clients(engine: "Engine", demonstration: list[str]) -> None:
    from conversion_assets.storage.database import public_name  # noqa: PLC0415
    from conversion_assets.storage.sources import read_clients  # noqa: PLC0415

    others = sorted(set(read_clients(engine)["id"].to_list()) - set(demonstration))
    if others:
        raise ConflictError(
            f"{public_name(engine)} holds clients that are not the demonstration's, such as "
            f"{others[0]!r}; nothing was changed. Choose an empty home with CONVERSION_HOME"
        )


def _import(settings: "Settings", engine: "Engine", frames: "dict[str, pl.DataFrame]") -> None:
    from conversion_assets.storage.importer import import_files  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        paths = {table: Path(folder) / f"{table}.parquet" for table in _TABLES}
        for table, frame in frames.items():
            frame.write_parquet(paths[table])
        import_files(
            engine,
            clients=paths["clients"],
            leads=paths["leads"],
            activities=paths["activities"],
            quarantine_dir=settings.quarantine,
        )


def _summarize(engine: "Engine", client: dict[str, Any]) -> dict[str, Any]:
    """Return what a person wants to know of a client at a glance."""
    from conversion_assets.domain.findings import rank_findings  # noqa: PLC0415
    from conversion_assets.storage.patterns import PatternRepository  # noqa: PLC0415

    repository = PatternRepository(engine)
    outcomes = repository.outcomes([client["id"]])
    try:
        documents = [stored.document for stored in repository.current(client["id"]).values()]
    except NotFoundError:
        documents = []
    ranked = [finding for document in documents for finding in rank_findings(document, 1)]
    acts = [finding for finding in ranked if finding.estimate.verdict is Verdict.ACT]
    best = max(acts, key=lambda finding: finding.estimate.lift_interval[0], default=None)
    header = documents[0] if documents else None
    return {
        "client_id": client["id"],
        "name": client["name"],
        "sample_size": header.sample_size if header else None,
        "conversions": header.conversions if header else None,
        "base_rate": header.base_rate.rate if header else None,
        "outcomes": dict(outcomes.select("pattern_type", "outcome").iter_rows()),
        "best_finding": best
        and {"path": best.path, "value": best.label, "lift": best.estimate.lift},
    }


_COLUMNS = ["client", "leads", "converted", *map(str, PatternType), "strongest finding"]


def _format(row: dict[str, Any]) -> list[str]:
    best = row["best_finding"]
    has_sample = row["sample_size"] is not None
    return [
        row["client_id"],
        f"{row['sample_size']:,}" if has_sample else "-",
        f"{row['conversions']:,} ({row['base_rate']:.1%})" if has_sample else "-",
        *(_word(row["outcomes"].get(str(kind), "-")) for kind in PatternType),
        f"{best['path']} {best['value']}: {best['lift']:.2f}×" if best else "-",
    ]


def _word(outcome: str) -> str:
    return _WORDS.get(outcome, outcome)


def _point_on(settings: "Settings", client_id: str) -> None:
    say(f"home: {settings.home}")
    say("next: make ui                                        the Dagster UI on this home")
    say(f"      conversion-assets patterns {client_id}           one client's findings")
    say(f"      conversion-assets patterns {client_id} --json    the documents")
