"""The command that erases a lead or a client, and proves it."""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from conversion_assets.cli.locking import hold_home
from conversion_assets.cli.output import json_option, print_json, print_table, say, spinner
from conversion_assets.cli.session import open_database, open_settings
from conversion_assets.cli.statuses import EXIT_ERROR
from conversion_assets.domain.errors import InputError
from conversion_assets.settings import Settings

if TYPE_CHECKING:
    from conversion_assets.refresh.erase import ErasurePlan, ErasureReport
    from conversion_assets.storage.traces import Identity, Searched


@click.command("erase")
@click.argument("client_id", metavar="CLIENT")
@click.option("--lead", "lead_ids", multiple=True, metavar="ID", help="Only this lead; repeatable.")
@click.option("--unfinished", is_flag=True, help="Finish the erasure of leads that was begun.")
@click.option("--with-patterns", is_flag=True, help="With leads: also what was learned from them.")
@click.option("--with-shared-runs", is_flag=True, help="Also Dagster runs of several clients.")
@click.option("--search", "more", multiple=True, metavar="TEXT", help="Also look for this text.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def erase_command(
    *,
    client_id: str,
    lead_ids: tuple[str, ...],
    unfinished: bool,
    with_patterns: bool,
    with_shared_runs: bool,
    more: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Erase a client, or some of its leads, everywhere, and search for what is left.

    Without --lead the whole client goes with all it has. What cannot be undone is asked for once;
    --yes answers, and is needed where nobody can be asked. Killed at any moment, the same command
    again finishes.

    Exit status: 0 erased and nothing found; 1 something is left (it says where), or another
    process is at work; 6 there is no such client or lead.
    """
    if not (dry_run or yes or (sys.stdin.isatty() and not as_json)):
        raise InputError(
            "nothing was erased: add --yes to erase, or --dry-run to see what would go"
        )
    settings = open_settings()
    engine = open_database(settings)
    from conversion_assets.refresh.erase import (  # noqa: PLC0415 - polars
        erase,
        find_unfinished,
        finish_unfinished,
        plan_erasure,
    )
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415
    from conversion_assets.storage.erasures import Erasure  # noqa: PLC0415

    store = FeatureStore(settings.store_url.get_secret_value())
    if unfinished:
        lead_ids = (*lead_ids, *find_unfinished(engine, store, client_id))
        if not lead_ids:
            closed = 0 if dry_run else finish_unfinished(engine, client_id, _now())
            say(f"{closed:,} erasures finished: no row of them was left anywhere")
            return 0
    places = (engine, store, settings.quarantine)
    with hold_home(settings.home):
        plan = plan_erasure(
            *places, Erasure.of(client_id, lead_ids), learned=with_patterns, more=more
        )
        runs = _count_runs(settings, plan.identity)
        if dry_run:
            _print_plan(plan, runs, as_json=as_json)
            return 0
        if not yes:
            _print_plan(plan, runs, as_json=False)
            click.confirm("Erase all of this for good?", abort=True, err=True)
        with spinner("erasing"):
            report = erase(
                *places,
                plan,
                learned=with_patterns,
                elsewhere=partial(_erase_elsewhere, settings, with_shared_runs=with_shared_runs),
                now=_now,
            )
    _print_report(report, as_json=as_json)
    return 0 if report.is_proven else EXIT_ERROR


def _now() -> datetime:
    return datetime.now(UTC)


def _count_runs(settings: Settings, identity: "Identity") -> dict[str, int]:
    """Dagster runs that name the client; a lead is not named by any."""
    if identity.erasure.lead_ids is not None:
        return {}
    from conversion_assets.orchestration.instance import open_instance  # noqa: PLC0415

    with open_instance(settings) as instance:
        from conversion_assets.orchestration.erasing import find_client  # noqa: PLC0415

        found = find_client(instance, identity.erasure.client_id)
    return {"runs_of_client": len(found.own), "runs_shared": len(found.shared)}


def _erase_elsewhere(
    settings: Settings, identity: "Identity", *, with_shared_runs: bool
) -> "list[Searched]":
    """Remove what Dagster keeps of a client, and look through its files and the home."""
    from conversion_assets.storage.traces import search_files  # noqa: PLC0415 - polars

    folders = [settings.home]
    if not settings.dagster_home.is_relative_to(settings.home):
        folders.append(settings.dagster_home)
    known = [settings.quarantine, settings.home / "store", settings.home / "conversion.db"]
    known += [Path(f"{known[-1]}-wal"), Path(f"{known[-1]}-shm")]
    if identity.erasure.lead_ids is not None:
        return search_files(folders, identity, except_=known)
    kept = _erase_in_dagster(settings, identity.erasure.client_id, with_shared_runs)
    # The client's own id is no person's, and Dagster cannot be made to forget all of it.
    people, own = replace(identity, ids=()), replace(identity, contacts=(), names=())
    searched = search_files(folders, people, except_=known)
    [of_dagster] = search_files([settings.dagster_home], own)
    of_dagster.place = "the client's id in Dagster's files"
    of_dagster.looked_at += f"; kept in {len(kept):,} runs shared with other clients"
    of_dagster.shared, of_dagster.found, of_dagster.where = of_dagster.found, 0, kept[:3]
    return [*searched, of_dagster]


def _erase_in_dagster(settings: Settings, client_id: str, with_shared_runs: bool) -> list[str]:
    """Return the runs that stay because they are other clients' too."""
    from conversion_assets.orchestration.instance import open_instance  # noqa: PLC0415

    with open_instance(settings) as instance:
        from conversion_assets.orchestration.erasing import (  # noqa: PLC0415
            erase_client,
            shrink_storage,
        )

        found = erase_client(instance, client_id, with_shared_runs=with_shared_runs)
    gone = [*found.own, *(found.shared if with_shared_runs else [])]
    for path in shrink_storage(settings.dagster_home, gone):
        say(f"in use, its free space was not given up: {path}")
    return [] if with_shared_runs else found.shared


def _print_plan(plan: "ErasurePlan", runs: dict[str, int], *, as_json: bool) -> None:
    counts: dict[str, Any] = {
        "rows": plan.rows,
        "feature_rows": plan.features,
        "quarantined": plan.quarantined,
        **runs,
    }
    if as_json:
        print_json({"dry_run": True, "would_erase": counts})
        return
    rows = [[f"table {table}", f"{count:,}"] for table, count in plan.rows.items()]
    rows.append(["rows in files of the columnar store", f"{plan.features:,}"])
    rows.append(["rows in quarantine", f"{plan.quarantined:,}"])
    rows += [[name.replace("_", " "), f"{count:,}"] for name, count in runs.items()]
    print_table(["what", "rows"], rows, title="would be erased:")


def _print_report(report: "ErasureReport", *, as_json: bool) -> None:
    if as_json:
        from conversion_assets.storage.traces import as_json as to_json  # noqa: PLC0415

        print_json(
            {
                "erased": {
                    "rows": report.rows,
                    "feature_rows": report.features,
                    "quarantined": report.quarantined,
                },
                "database": report.database,
                "searched": to_json(report.searched),
                "found": sum(one.found for one in report.searched),
            }
        )
        return
    gone = {**report.rows, **report.features, "quarantined": report.quarantined}
    words = ", ".join(f"{name} {count:,}" for name, count in gone.items() if count)
    click.echo(f"erased: {words or 'nothing was left'}; database: {report.database}")
    print_table(
        ["searched", "how much", "found", "where"],
        [
            [one.place, one.looked_at, str(one.found), "; ".join(one.where)]
            for one in report.searched
        ],
    )
    shared = sum(one.shared for one in report.searched)
    if shared:
        say(f"{shared:,} places hold texts like theirs that are others' or Dagster's; these stay")
    if not report.is_proven:
        say("something is left; see the rows above whose count is not 0")
