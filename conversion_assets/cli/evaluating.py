"""Commands that look back at what was learned: evaluate, diff."""

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from conversion_assets.cli.output import (
    json_option,
    print_json,
    print_table,
    progress_bar,
    say,
    spinner,
)
from conversion_assets.cli.session import open_database, open_settings
from conversion_assets.domain.moments import parse_moment
from conversion_assets.domain.terms import Verdict

if TYPE_CHECKING:
    import polars as pl

    from conversion_assets.refresh.evaluation import Difference, Evaluation


@click.command("evaluate")
@click.option("--client", "client_ids", multiple=True, metavar="ID", help="May be repeated.")
@click.option(
    "--weeks",
    default=26,
    show_default=True,
    type=click.IntRange(0, 520),
    help="Refreshes to replay; 0 for none.",
)
@click.option("--as-of", metavar="ISO", help="Time with zone; nothing later counts. Default: now.")
@json_option
def evaluate_command(
    client_ids: tuple[str, ...], weeks: int, as_of: str | None, as_json: bool
) -> int:
    """Print how earlier claims did on later leads, and replay the last weeks.

    Nothing is stored. The replay learns week after week with what was known then.

    Exit status: 0; 6 for an unknown client.
    """
    moment = parse_moment(as_of, "--as-of") if as_of is not None else datetime.now(UTC)
    settings = open_settings()
    engine = open_database(settings)
    from conversion_assets.refresh.evaluation import evaluate_clients  # noqa: PLC0415
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415

    with progress_bar("replaying") as update:
        found = evaluate_clients(
            engine,
            FeatureStore(settings.store_url.get_secret_value()),
            client_ids=client_ids,
            as_of=moment,
            weeks=weeks,
            config=settings.learning,
            progress=update,
        )
    if as_json:
        print_json(_describe(found, weeks))
    else:
        _print(found, weeks)
    return 0


def _describe(found: "Evaluation", weeks: int) -> dict[str, Any]:
    document: dict[str, Any] = {
        "as_of": found.as_of.isoformat(),
        "record": {"summary": _total(found.summary), "claims": found.record.to_dicts()},
    }
    document["drift"] = found.drift.filter("is_drift").to_dicts()
    if found.backtest is not None:
        document["backtest"] = {
            "weeks": weeks,
            "summary": _total(found.backtest.summary),
            "clients": found.backtest.summary.slice(1).to_dicts(),
            "claims": found.backtest.record.to_dicts(),
        }
    return document


def _total(summary: "pl.DataFrame") -> dict[str, Any]:
    """The row over all clients."""
    return summary.drop("client_id").row(0, named=True)


def _print(found: "Evaluation", weeks: int) -> None:
    parts = {"forecasts stored here": found.summary}
    if found.backtest is not None:
        parts[f"replay of {weeks} weeks"] = found.backtest.summary
    rows = [_word_summary(name, summary.row(0, named=True)) for name, summary in parts.items()]
    columns = ["", "claims", "graded", "judged", "inside", "kept", "observed / predicted", "Brier",
               "base rate's"]  # fmt: skip
    print_table(columns, rows, title=f"as of {found.as_of:%Y-%m-%d %H:%M} UTC")
    say("inside: counts within the forecast's 90 % interval; kept: lift on the claimed side")
    record = found.backtest.record if found.backtest is not None else found.record
    shown = record.filter(record["status"] != "too_few").sort("evidence_against", descending=True)
    print_table(
        ["client", "pattern", "cell", "n", "k", "forward lift", "status"],
        [
            [
                row["client_id"],
                row["pattern_type"],
                f"{row['dimension']} {_label(row['value'])}",
                f"{row['n']:,}",
                f"{row['k']:,}",
                f"{row['lift']:.2f} ({row['lift_low']:.2f} to {row['lift_high']:.2f})"
                if row["lift_low"] is not None
                else "",
                row["status"],
            ]
            for row in shown.head(40).iter_rows(named=True)
        ],
        title=f"forward record of {shown.height} claims, weakest first",
    )

    _print_drift(found.drift)


def _print_drift(drift: "pl.DataFrame") -> None:
    shown = drift.filter("is_drift").sort("p_value")
    for row in shown.head(20).iter_rows(named=True):
        say(
            f"drift: {row['client_id']} {row['question']} of {row['pattern_type']}"
            f" {row['dimension']} (p = {row['p_value']:.1e})"
        )
    say(f"drift: {shown.height} of {drift.height} comparisons beyond their chance threshold")


def _label(value: str) -> str:
    return value.replace("\x1f", " > ")


def _word_summary(name: str, row: dict[str, Any]) -> list[str]:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.0%}"

    def score(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    return [
        name,
        f"{row['claims']:,}",
        f"{row['graded']:,}",
        f"{row['judged']:,}",
        percent(row["inside"]),
        percent(row["kept"]),
        f"{row['observed']:,} / {row['predicted'] or 0:,.0f}",
        score(row["brier"]),
        score(row["brier_base"]),
    ]


@click.command("diff")
@click.argument("client_id", metavar="CLIENT")
@click.option("--from", "start", required=True, metavar="ISO", help="Version in force then.")
@click.option("--to", "end", required=True, metavar="ISO", help="Version in force then.")
@json_option
def diff_command(client_id: str, start: str, end: str, as_json: bool) -> int:
    """Explain what changed a client's patterns between two moments.

    The change is split into new leads, matured outcomes, leads that left the window, the pool and
    settings by computing again, one step after another; the rest is said to be not reproduced.

    Exit status: 0; 2 when both moments name one version; 6 for an unknown client or no version.
    """
    moments = {"start": parse_moment(start, "--from"), "end": parse_moment(end, "--to")}
    settings = open_settings()
    engine = open_database(settings)
    from conversion_assets.refresh.evaluation import explain_client  # noqa: PLC0415
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415

    with spinner("computing again"):
        found = explain_client(
            engine,
            FeatureStore(settings.store_url.get_secret_value()),
            client_id,
            **moments,
            config=settings.learning,
        )
    if as_json:
        print_json(
            {
                "client_id": client_id,
                "from": found.earlier.isoformat(),
                "to": found.later.isoformat(),
                "steps": found.explanation.steps,
                "cells": found.explanation.cells,
                "drift": found.drift.filter("is_drift").to_dicts(),
                "notes": found.explanation.notes,
            }
        )
    else:
        _print_difference(client_id, found)
    return 0


def _print_difference(client_id: str, found: "Difference") -> None:
    title = f"{client_id}: {found.earlier:%Y-%m-%d %H:%M} to {found.later:%Y-%m-%d %H:%M} UTC"
    print_table(
        ["step", "verdicts changed", "mean change of a lift"],
        [
            [row["step"], str(row["verdicts"]), f"{math.expm1(row['moved'] or 0.0):.1%}"]
            for row in found.explanation.steps
        ],
        title=title,
    )
    spoken = {Verdict.ACT.value, Verdict.WATCH.value}
    turned = [
        row
        for row in found.explanation.cells
        if row["verdict_from"] != row["verdict_to"]
        and {row["verdict_from"], row["verdict_to"]} & spoken
    ]
    print_table(
        ["cell", "verdict", "lift", "decided by"],
        [
            [
                f"{row['dimension']} {_label(row['value'])}",
                f"{row['verdict_from'] or 'not listed'} → {row['verdict_to'] or 'not listed'}",
                f"{_word_lift(row['lift_from'])} → {_word_lift(row['lift_to'])}",
                row["decided_by"],
            ]
            for row in turned
        ],
        title=f"{len(turned)} verdicts changed",
    )
    _print_drift(found.drift)
    for note in found.explanation.notes:
        say(note)


def _word_lift(lift: float | None) -> str:
    return "" if lift is None else f"{lift:.2f}"
