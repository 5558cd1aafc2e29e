"""WHEN: which day, hour, touch number and spacing convert. Unit: touch, in local time."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from conversion_assets.detectors.cells import Dimension
from conversion_assets.detectors.documents import Estimates, EstimateTable, Header
from conversion_assets.detectors.population import Population
from conversion_assets.domain.patterns import WhenPattern
from conversion_assets.domain.terms import WEEKDAYS, PatternType, Verdict
from conversion_assets.stats.smoothing import smooth_day_hour, smooth_hours
from conversion_assets.stats.survival import (
    compute_converted_shares,
    compute_quantile_times,
    fit_kaplan_meier,
)

STRATA = ("channel", "touch_stratum")
CHECKED = ("channel", "touch_stratum", "source", "month")

# Days to wait before touches 2 to 6 where the data say nothing: the specification's defaults.
DEFAULT_GAPS = {2: 2, 3: 3, 4: 4, 5: 5, 6: 7}
# Days since the previous touch, rounded: label, lowest, highest. Single days where cadences live.
GAP_BINS = (*((str(day), day, day) for day in range(8)), ("8-10", 8, 10), ("11-14", 11, 14),
            ("15+", 15, 2**31 - 1))  # fmt: skip

# What neighbouring hours say is shrunk towards nothing as if 20 expected conversions without any
# effect had been seen there too, the same as for the pool.
NEIGHBOUR_PRIOR_CONVERSIONS = 20.0


def build_dimensions() -> list[Dimension]:
    """Days, hours, the week's grid, touch numbers, and gaps by position."""
    has_day, has_hour = pl.col("local_weekday").is_not_null(), pl.col("local_hour").is_not_null()
    day = pl.col("local_weekday").cast(pl.Int32).replace_strict(
        dict(enumerate(WEEKDAYS, start=1)), default=None, return_dtype=pl.String
    )  # fmt: skip
    hour = pl.col("local_hour").cast(pl.String)
    position = pl.col("touch_number").is_between(min(DEFAULT_GAPS), max(DEFAULT_GAPS))
    return [
        Dimension(PatternType.WHEN, "best_days", "touches", value=day, counts_in=has_day,
                  strata=STRATA, checked=CHECKED),
        Dimension(PatternType.WHEN, "best_hours", "touches", value=hour, counts_in=has_hour,
                  strata=STRATA, checked=CHECKED, neighbours="hours"),
        Dimension(PatternType.WHEN, "day_hour", "touches",
                  value=pl.concat_str(day, hour, separator=" "), counts_in=has_day & has_hour,
                  strata=STRATA, checked=CHECKED, neighbours="week"),
        # Adjusting touch number for touch number would leave nothing; the channel is held fixed.
        Dimension(PatternType.WHEN, "touch_hazard", "touches",
                  value=pl.col("touch_number").cast(pl.String), strata=("channel",),
                  checked=("channel", "source", "month")),
        Dimension(PatternType.WHEN, "optimal_gaps", "touches",
                  value=_label_gap(_bin_gap()), bins={"gap_bin": _bin_gap()},
                  label=_label_gap(pl.col("gap_bin")),
                  counts_in=position & pl.col("gap_days").is_not_null(),
                  strata=("channel", "touch_number"), checked=("channel", "source", "month")),
    ]  # fmt: skip


def _bin_gap() -> pl.Expr:
    """Number of the bin that the days since the previous touch fall in."""
    days = pl.col("gap_days").round(0).cast(pl.Int32)
    # The bins begin at consecutive days or a few apart, so a table by day is short.
    first_open = GAP_BINS[-1][1]
    bin_of = [
        next(place for place, (_, _, highest) in enumerate(GAP_BINS) if day <= highest)
        for day in range(first_open + 1)
    ]
    return pl.lit(pl.Series(bin_of, dtype=pl.Int8)).gather(days.clip(0, first_open))


def _label_gap(number: pl.Expr) -> pl.Expr:
    """Label `touch number|bin` of a bin's number."""
    gap = number.cast(pl.Int32).replace_strict(
        range(len(GAP_BINS)), [name for name, *_ in GAP_BINS], default=None, return_dtype=pl.String
    )
    return pl.concat_str(pl.col("touch_number"), gap, separator="|")


def compute_neighbour_lift(cells: pl.DataFrame, dimension: Dimension) -> pl.Series:
    """What the hours around each cell say about it, its own data left out.

    Args:
        cells: `count_dimension` of best_hours or day_hour.
        dimension: The dimension counted.

    Returns:
        Lift expected of each cell before its own data, in the order of `cells`.
    """
    if cells.is_empty():
        return pl.Series("prior_lift", [], dtype=pl.Float64)
    is_week = dimension.neighbours == "week"
    hour = cells["value"].str.split(" ").list.last().cast(pl.Int64).to_numpy()
    if is_week:
        day = cells["value"].str.split(" ").list.first().replace_strict(
            {name: place for place, name in enumerate(WEEKDAYS)}, return_dtype=pl.Int64
        ).to_numpy()  # fmt: skip
        slot = day * 24 + hour
        shape: tuple[int, ...] = (7, 24)
    else:
        slot, shape = hour, (24,)
    client = cells["client"].to_numpy().astype(np.int64)
    clients = int(client.max()) + 1
    grids = []
    for name in ("n", "k", "expected"):
        grid = np.zeros((clients, int(np.prod(shape))))
        grid[client, slot] = cells[name].to_numpy()
        grids.append(grid.reshape(clients, *shape))
    smooth = smooth_day_hour if is_week else smooth_hours
    around = smooth(*grids)
    alone = smooth(*(_single(shape),) * 3)
    own_weight = float(alone.k.max())
    k = (around.k - own_weight * grids[1]).reshape(clients, -1)[client, slot]
    expected = (around.expected - own_weight * grids[2]).reshape(clients, -1)[client, slot]
    # Scaled back to counts: the kernel's weights sum to 1, of which the cell's own are left out.
    size = 1.0 / (1.0 - own_weight)
    lift = (np.maximum(k, 0.0) * size + NEIGHBOUR_PRIOR_CONVERSIONS) / (
        np.maximum(expected, 0.0) * size + NEIGHBOUR_PRIOR_CONVERSIONS
    )
    return pl.Series("prior_lift", lift)


def _single(shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A grid with one unit in one slot, to read the kernel's own weight from."""
    grid = np.zeros((1, *shape))
    grid.reshape(-1)[0] = 1.0
    return grid


def summarize_time_to_conversion(population: Population) -> list[dict[str, Any]]:
    """Days from creation to conversion per client, in client order.

    p50, p80 and p95 are those of the leads that convert, with leads that are still open
    censored; `all_leads_*` are the plain Kaplan-Meier quantiles over all leads, None when that
    share has not converted.
    """
    followed = population.followed.sort("client", "duration_days", "lead_id")
    clients = len(population.client_ids)
    client = followed["client"].to_numpy().astype(np.int64)
    days = np.maximum(followed["duration_days"].to_numpy().astype(np.float64), 0.0)
    converted = followed["is_converted"].to_numpy().astype(np.bool_)
    curves = fit_kaplan_meier(client, days, converted, clients)
    shares = (0.5, 0.8, 0.95)
    of_converted = compute_quantile_times(curves, shares, is_of_converted=True)
    of_all = compute_quantile_times(curves, shares)
    _, low, high = compute_converted_shares(curves)
    k = np.bincount(client[converted], minlength=clients)
    total = np.bincount(client[converted], days[converted], clients)
    n = np.bincount(client, minlength=clients)
    return [
        {
            **{f"p{int(100 * s)}": _number(of_converted[c, j]) for j, s in enumerate(shares)},
            **{f"all_leads_p{int(100 * s)}": _number(of_all[c, j]) for j, s in enumerate(shares)},
            "converted_share_interval": (
                None if np.isnan(low[c]) else [float(low[c]), float(high[c])]
            ),
            "naive_mean": float(total[c] / k[c]) if k[c] else None,
            "n": int(n[c]),
            "k": int(k[c]),
        }
        for c in range(clients)
    ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def build_document(
    header: Header, table: EstimateTable, time_to_conversion: Mapping[str, Any]
) -> WhenPattern:
    """Assemble one client's document from the estimates of all."""
    client = header.client
    hazard = table.get(client, "touch_hazard", int)
    gaps = table.get_by_prefix(client, "optimal_gaps")
    return WhenPattern.model_validate(
        {
            **header.fields,
            "best_days": table.get(client, "best_days"),
            "best_hours": table.get(client, "best_hours", int),
            "day_hour": table.get(client, "day_hour"),
            "touch_hazard": hazard,
            "converting_touch_distribution": _distribute(hazard),
            "optimal_gaps": [
                _advise_gap(position, default, gaps.get(str(position), []))
                for position, default in DEFAULT_GAPS.items()
            ],
            "time_to_conversion": time_to_conversion,
        }
    )


def _distribute(hazard: Estimates) -> dict[str, Any]:
    total = sum(e["k"] for e in hazard)
    rows = [
        {"value": e["value"], "k": e["k"], "share": e["k"] / total}
        for e in sorted(hazard, key=lambda e: int(e["value"]))
        if e["k"]
    ]
    return {"rows": rows}


def _advise_gap(position: int, default: int, hazards: Estimates) -> dict[str, Any]:
    """Best gap before one touch; the default unless some gap does better than noise."""
    days = {name: (low, high) for name, low, high in GAP_BINS}
    winners = [e for e in hazards if e["lift"] > 1.0 and e["verdict"] != Verdict.NO_EVIDENCE]
    best = max(winners, key=lambda e: (e["lift"], -days[e["value"]][0]), default=None)
    alike = [e for e in hazards if best is None or e["lift_interval"][1] >= best["lift"]]
    lows = [days[e["value"]][0] for e in alike]
    # The open bin ends at its own beginning: nothing is known about how far it reaches.
    highs = [min(days[e["value"]][1], max(days[e["value"]][0], 15)) for e in alike]
    if best is None:
        # Days that nobody waited are not ruled out either; the default stands among them.
        lows, highs = [*lows, default], [*highs, default]
    return {
        "position": position,
        "best_days": default if best is None else days[best["value"]][0],
        "interval": [float(min(lows)), float(max(highs))],
        "is_default": best is None,
        "hazards": hazards,
    }
