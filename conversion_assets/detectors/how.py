"""HOW: which channels, in which order and mix, convert. Units: lead sequence and touch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from conversion_assets.detectors.cells import Dimension, count_cells, summarize_cells
from conversion_assets.detectors.documents import EstimateTable, Header, find_best
from conversion_assets.detectors.population import (
    SEQUENCE_SEPARATOR,
    Population,
    find_lead_starts,
)
from conversion_assets.domain.patterns import HowPattern
from conversion_assets.domain.terms import TIERS, PatternType
from conversion_assets.stats.markov import (
    CONVERTED,
    LOST,
    OPEN,
    compute_removal_effects,
    count_transitions,
)
from conversion_assets.stats.multiplicity import compute_upper_mid_p, find_testable

CHECKED = ("channel", "touch_stratum", "source", "month")

SEQUENCES = "winning_sequences"

# Each half alone must show a prefix this clearly. A true effect that the ledger calls stands at
# 2.3 deviations in each half and misses this in one of fifty; one without effect passes in one of
# sixteen.
HALF_LEVEL = 0.25


def build_dimensions() -> list[Dimension]:
    """First channel, number of channels, channels within a tier, and sequences to confirm."""
    channels = pl.min_horizontal(pl.col("channel_count"), pl.lit(4)).cast(pl.String)
    return [
        Dimension(PatternType.HOW, "first_touch", "leads", value=pl.col("channel"),
                  counts_in=pl.col("channel").is_not_null(), checked=("source", "month")),
        Dimension(PatternType.HOW, "multi_channel", "touches",
                  value=pl.when(channels == "4").then(pl.lit("4+")).otherwise(channels),
                  strata=("channel", "touch_stratum"), checked=CHECKED),
        # A tier's channels are compared with each other, not with other tiers' leads.
        Dimension(PatternType.HOW, "channel_by_tier", "touches",
                  value=pl.concat_str("tier", "channel", separator="|"),
                  counts_in=pl.col("tier").is_not_null(), within=("tier",),
                  strata=("touch_stratum",),
                  checked=("touch_stratum", "source", "month")),
        # A prefix of length L is compared among the leads that got L touches before converting:
        # anything else would count the touches that conversion itself prevented.
        Dimension(PatternType.HOW, SEQUENCES, "sequences",
                  value=pl.when("is_candidate").then("prefix"),
                  within=("length",), checked=("source", "month"), only_winners=True),
    ]  # fmt: skip


def discover_sequences(population: Population) -> Population:
    """Mark the prefixes worth a test, and those that the earlier half shows and the later confirms.

    Whether a prefix is tested is decided by margins alone: both halves have to be large enough. So
    all leads may judge it; that both halves say the same of their own is asked beside.

    Returns:
        The population with columns is_candidate and is_confirmed in `sequences`.

    Source:
        Webb 2007: patterns mined from data are tested on other data.
    """
    explored = Dimension(PatternType.HOW, "explored", "sequences", value=pl.col("prefix"))
    counts = count_cells(population, explored, ["is_later_half", "length"])
    earlier, later = (_test_half(counts.filter(is_later_half=half)) for half in (False, True))
    marks = earlier.join(later, on=["client", "value"], suffix="_later").select(
        "client",
        prefix="value",
        is_candidate=pl.lit(True),
        is_confirmed=(pl.col("p") <= HALF_LEVEL) & (pl.col("p_later") <= HALF_LEVEL),
    )
    marked = population.sequences.join(
        marks, on=["client", "prefix"], how="left", maintain_order="left"
    ).with_columns(pl.col("is_candidate", "is_confirmed").fill_null(False))
    return replace(population, sequences=marked)


def _test_half(counts: pl.DataFrame) -> pl.DataFrame:
    """Upper mid-p-value of the prefixes of one half that are worth a test: client, value, p."""
    cells = summarize_cells(counts)
    is_testable = find_testable(*_numbers(cells, "expected", "variance", "third"))
    tested = cells.filter(pl.Series(is_testable, dtype=pl.Boolean))
    p = compute_upper_mid_p(*_numbers(tested, "k", "expected", "variance", "third"))
    return tested.select("client", "value", p=pl.Series(p, dtype=pl.Float64))


def _numbers(cells: pl.DataFrame, *names: str) -> list[NDArray[np.float64]]:
    return [cells[name].to_numpy().astype(np.float64) for name in names]


def find_confirmed(population: Population, cells: pl.DataFrame) -> pl.Series:
    """Whether both halves show each prefix; `cells` with columns client and value."""
    marks = (
        population.sequences.filter("is_candidate")
        .select("client", "is_confirmed", value="prefix")
        .unique()
    )
    return cells.join(marks, on=["client", "value"], how="left", maintain_order="left")[
        "is_confirmed"
    ]


def describe_transitions(population: Population) -> list[dict[str, Any]]:
    """Channel-to-channel steps and removal effects per client, in client order."""
    touches, clients = population.touches, len(population.client_ids)
    starts = find_lead_starts(touches)
    leads = (
        touches.select("client", "lead_id")[starts]
        .join(
            population.followed.select("client", "lead_id", "is_converted"),
            on=["client", "lead_id"],
            how="left",
            maintain_order="left",
        )
        .join(
            population.leads.select("client", "lead_id", is_settled=pl.lit(True)),
            on=["client", "lead_id"],
            how="left",
            maintain_order="left",
        )
    )
    path = np.repeat(np.arange(starts.size), np.diff(np.append(starts, touches.height)))
    is_followed = leads["is_converted"].is_not_null().to_numpy()[path]
    channels = population.encode("touches", "channel")
    used, code = np.unique(channels.codes[is_followed], return_inverse=True)
    names = channels.values.gather(used).to_list()
    if not names:
        return [{"steps": [], "removal_effects": []} for _ in range(clients)]
    end = (
        pl.when("is_converted").then(CONVERTED).when("is_settled").then(LOST).otherwise(OPEN)
    )  # a young open lead may still convert: its last step is not counted
    path = path[is_followed]
    counts = count_transitions(
        population.clients("touches")[is_followed],
        path,
        code,
        leads.select(end.cast(pl.Int64)).to_series().to_numpy()[path],
        groups=clients,
        channels=len(names),
    )
    effects = compute_removal_effects(counts)
    return [_describe_client(counts[c], effects[c], names) for c in range(clients)]


def _describe_client(counts: Any, effects: Any, names: list[str]) -> dict[str, Any]:
    between = counts[1 : len(names) + 1, 1 : len(names) + 1]
    totals = between.sum(axis=1)
    used = counts[: len(names) + 1, 1 : len(names) + 1].sum(axis=0) > 0
    return {
        "steps": [
            {
                "from_channel": names[i],
                "to_channel": names[j],
                "count": int(between[i, j]),
                "share": float(between[i, j] / totals[i]),
            }
            for i, j in np.argwhere(between > 0)
        ],
        "removal_effects": [
            {"channel": name, "effect": float(effects[i])}
            for i, name in enumerate(names)
            if used[i] and not np.isnan(effects[i])
        ],
    }


def describe_booking_channels(population: Population) -> list[dict[str, Any] | None]:
    """Share of converting touches by channel, in client order; None without any."""
    counted = (
        population.touches.select("client", "channel", "is_outcome")
        .filter("is_outcome")
        .group_by("client", "channel")
        .agg(k=pl.len().cast(pl.Int64))
        .with_columns(share=pl.col("k") / pl.col("k").sum().over("client"))
        .sort(["client", "k", "channel"], descending=[False, True, False])
    )
    found: dict[int, dict[str, Any]] = {}
    for client, channel, k, share in counted.select("client", "channel", "k", "share").iter_rows():
        rows = found.setdefault(client, {"rows": []})["rows"]
        rows.append({"value": channel, "k": k, "share": share})
    return [found.get(client) for client in range(len(population.client_ids))]


def build_document(
    header: Header,
    table: EstimateTable,
    transitions: Mapping[str, Any],
    booking_channels: Mapping[str, Any] | None,
) -> HowPattern:
    """Assemble one client's document from the estimates of all."""
    client = header.client
    first = table.get(client, "first_touch")
    best_first = find_best(first)
    by_tier = table.get_by_prefix(client, "channel_by_tier")
    order = [name for name, _ in TIERS]
    return HowPattern.model_validate(
        {
            **header.fields,
            "booking_channel_distribution": booking_channels or {"rows": []},
            "first_touch": first,
            "best_first_channel": best_first["value"] if best_first else None,
            "multi_channel": table.get(client, "multi_channel"),
            "winning_sequences": table.get(
                client, SEQUENCES, lambda prefix: prefix.split(SEQUENCE_SEPARATOR)
            ),
            "channel_by_tier": {
                tier: by_tier[tier]
                for tier in sorted(
                    by_tier, key=lambda t: (order.index(t) if t in order else len(order), t)
                )
            },
            "transitions": transitions,
        }
    )
