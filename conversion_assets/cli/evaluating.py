"""Commands that look back at what was learned: evaluate, diff."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from conversion_assets.cli.output import json_option, print_json, print_table, progress_bar, say
from conversion_assets.cli.session import open_database, open_settings
from conversion_assets.domain.moments import parse_moment

if TYPE_CHECKING:
    import polars as pl

    from conversion_assets.refresh.evaluation import Evaluation


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
    from conversion_assets.storage.columnar import FeatureStore  # noqa: PLC0415

    with progress_bar("replaying") as update:
        found = evaluate_clients(
            engine,
            FeatureStore(settings.store_url.get_secret_value()),
            client_ids=client_ids,
            as_of=moment,
            weeks=weeks,
            config=settings.learning,
            progress=lambda done, total: update(done, total),
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
