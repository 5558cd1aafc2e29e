"""What every document states about itself, and estimates as the models want them."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.terms import Unit, Verdict
from conversion_assets.stats.intervals import compute_beta_interval

Estimates = list[dict[str, Any]]
Value = str | int | bool | list[str]

# Balanced outcomes at which a document is half sure: patterns.md's scale of confidence.
HALF_CONFIDENCE = 100.0


@dataclass(frozen=True)
class Header:
    """The fields that all four documents of one client share, ready for the models."""

    client: int
    client_id: str
    n: int
    k: int
    confidence: float
    fields: Mapping[str, Any]


def compute_confidence(n: int, k: int) -> float:
    """Confidence of a client's documents from its resolved leads.

    m / (m + 100) with m = 4 k (n - k) / n, the size of a balanced sample with the same
    information: 0 when all or none converted.

    Example:
        >>> round(compute_confidence(1000, 100), 3)
        0.783
    """
    if n == 0:
        return 0.0
    balanced = 4.0 * k * (n - k) / n
    return balanced / (balanced + HALF_CONFIDENCE)


def build_headers(
    client_ids: list[str],
    summary: pl.DataFrame,
    estimates: pl.DataFrame,
    notes: pl.DataFrame,
    *,
    window: tuple[datetime, datetime],
    config: LearningConfig,
) -> list[Header]:
    """One header per client, in the order of `client_ids`.

    Args:
        client_ids: Ids by client index.
        summary: n and k of each client, in the same order.
        estimates: Assessed cells; the tested ones are counted.
        notes: client, reason, rows, kind, of.
        window: Start and end (as_of).
        config: Mass of the base rate's interval.
    """
    n = summary["n"].to_numpy().astype(np.float64)
    k = summary["k"].to_numpy().astype(np.float64)
    low, high = compute_beta_interval(k + 0.5, n - k + 0.5, config.credible_mass)
    tested = np.bincount(
        estimates.filter("is_tested")["client"].to_numpy().astype(np.int64),
        minlength=len(client_ids),
    )
    noted: dict[int, list[dict[str, Any]]] = defaultdict(list)
    told = notes.select("client", "reason", "rows", "kind", "of").sort("client", "reason")
    for client, *note in told.iter_rows():
        noted[client].append(dict(zip(told.columns[1:], note, strict=True)))
    headers = []
    for client, client_id in enumerate(client_ids):
        size, converted = int(n[client]), int(k[client])
        confidence = compute_confidence(size, converted)
        fields = {
            "client_id": client_id,
            "as_of": window[1],
            "window": list(window),
            "sample_size": size,
            "conversions": converted,
            "base_rate": {
                "n": size,
                "k": converted,
                "unit": Unit.LEAD.value,
                "rate": converted / size if size else 0.0,
                "interval": [float(low[client]), float(high[client])],
            },
            "confidence": confidence,
            "hypotheses_tested": int(tested[client]),
            "data_notes": noted[client],
        }
        headers.append(Header(client, client_id, size, converted, confidence, fields))
    return headers


class EstimateTable:
    """Estimates of all clients, looked up by client and dimension.

    Example:
        `table.get(0, "best_days")` is the list of that client's weekdays in document order.
    """

    def __init__(self, estimates: pl.DataFrame) -> None:
        self._lists: dict[tuple[int, str], Estimates] = defaultdict(list)
        columns = [
            "client", "dimension", "value", "n", "k", "unit", "rate", "shrunk_rate", "low", "high",
            "lift", "lift_low", "lift_high", "p_lift", "q_value", "own_weight", "verdict",
            "is_adjusted", "naive_lift", "reversals", "explained_by", "forward",
        ]  # fmt: skip
        for row in estimates.select(columns).iter_rows():
            estimate = {
                "value": row[2],
                "n": row[3],
                "k": row[4],
                "unit": row[5],
                "rate": row[6],
                "shrunk_rate": row[7],
                "interval": [row[8], row[9]],
                "lift": row[10],
                "lift_interval": [row[11], row[12]],
                "p_lift": row[13],
                "q_value": row[14],
                "own_weight": row[15],
                "borrowed_weight": 1.0 - row[15],
                "verdict": row[16],
            }
            if row[17]:
                estimate["naive_lift"] = row[18]
            if row[19]:
                estimate["reversals"] = row[19]
            if row[20]:
                estimate["explained_by"] = row[20]
            if row[21]:
                estimate["forward"] = row[21]
            self._lists[(row[0], row[1])].append(estimate)

    def get(
        self, client: int, dimension: str, label: Callable[[str], Value] | None = None
    ) -> Estimates:
        """Estimates of one client and dimension in document order, values relabelled."""
        found = self._lists.get((client, dimension), [])
        if label is None:
            return found
        return [{**estimate, "value": label(estimate["value"])} for estimate in found]

    def get_by_prefix(
        self, client: int, dimension: str, label: Callable[[str], Value] | None = None
    ) -> dict[str, Estimates]:
        """Estimates whose value is `group|value`, by group, in the groups' order."""
        groups: dict[str, Estimates] = defaultdict(list)
        for estimate in self.get(client, dimension):
            group, value = estimate["value"].split("|", 1)
            groups[group].append({**estimate, "value": label(value) if label else value})
        return {group: groups[group] for group in sorted(groups)}


def order_estimates(*lists: Estimates) -> Estimates:
    """Merge lists into document order: verdict, lower end of the lift (high first), value."""
    rank = {Verdict.ACT: 0, Verdict.WATCH: 1, Verdict.NO_EVIDENCE: 2}
    merged = [estimate for estimates in lists for estimate in estimates]
    return sorted(
        merged,
        key=lambda e: (rank[Verdict(e["verdict"])], -e["lift_interval"][0], str(e["value"])),
    )


def split_by_direction(estimates: Estimates) -> tuple[Estimates, Estimates]:
    """Estimates that raise conversion, and those that lower it."""
    return (
        [e for e in estimates if e["lift"] >= 1.0],
        [e for e in estimates if e["lift"] < 1.0],
    )


def find_best(estimates: Estimates) -> dict[str, Any] | None:
    """First estimate that raises conversion with more than no evidence, if there is one."""
    for estimate in estimates:
        if estimate["lift"] > 1.0 and estimate["verdict"] != Verdict.NO_EVIDENCE:
            return estimate
    return None
