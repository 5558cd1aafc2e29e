"""Marks as a table: on the terminal while they come in, as Markdown, as JSON."""

import json
import math
from dataclasses import dataclass
from typing import Any

from conversion_assets_tests.recovery.marks import Mark

NOT_MET = "NOT MET"


@dataclass(frozen=True)
class Row:
    """A mark and what it took.

    Attributes:
        measurement: name of the measurement it belongs to.
        mark: the figure.
        seconds: wall time of the whole measurement.
    """

    measurement: str
    mark: Mark
    seconds: float


def state_bounds(mark: Mark) -> str:
    """What is asked, in words."""
    if not mark.is_asked:
        return "shown"
    if math.isinf(mark.low):
        return f"at most {mark.high:g}"
    if math.isinf(mark.high) or (mark.high == 1.0 and mark.low > 0):
        return f"at least {mark.low:.3g}"
    return f"{mark.low:g} to {mark.high:g}"


def state_verdict(mark: Mark) -> str:
    """Whether it is met."""
    if not mark.is_asked:
        return ""
    return "met" if mark.passed else NOT_MET


def state_reason(mark: Mark) -> str:
    """Why a mark is not met; that of one that is stays unsaid."""
    if mark.passed:
        return ""
    return mark.reason or "; ".join(f"{k} {v}" for k, v in list(mark.detail.items())[:4])


def write_line(row: Row) -> str:
    """One line for the terminal."""
    mark = row.mark
    baseline = "" if mark.baseline is None else f"{mark.baseline:.3f}"
    return (
        f"mark {mark.number:<2} {mark.world:<20} {mark.name:<62} {mark.value:8.3f} "
        f"{baseline:>8}  n={mark.n:<7} {state_bounds(mark):<13} {state_verdict(mark):<8}"
        f"{state_reason(mark)}".rstrip()
    )


def write_markdown(rows: list[Row]) -> str:
    """The table for a document."""
    head = "| mark | where | what | asked | measured | raw rates | n | met | reason | s |"
    lines = [head, "|" + "---|" * 10]
    seen: set[str] = set()
    for row in rows:
        mark = row.mark
        baseline = "" if mark.baseline is None else f"{mark.baseline:.3f}"
        # The time of a measurement stands beside its first row.
        seconds = "" if row.measurement in seen else f"{row.seconds:.0f}"
        seen.add(row.measurement)
        cells = [
            str(mark.number), mark.world, mark.name.replace("|", "\\|"), state_bounds(mark),
            f"{mark.value:.3f}", baseline, f"{mark.n:,}", state_verdict(mark),
            state_reason(mark).replace("|", "\\|"), seconds,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_json(rows: list[Row]) -> str:
    """Everything, details too."""
    return json.dumps([_describe(row) for row in rows], indent=1) + "\n"


def _describe(row: Row) -> dict[str, Any]:
    mark = row.mark
    return {
        "mark": mark.number,
        "world": mark.world,
        "name": mark.name,
        "measured": mark.value,
        "low": None if math.isinf(mark.low) else mark.low,
        "high": None if math.isinf(mark.high) else mark.high,
        "baseline": mark.baseline,
        "n": mark.n,
        "met": mark.passed if mark.is_asked else None,
        "reason": state_reason(mark),
        "detail": mark.detail,
        "measurement": row.measurement,
        "seconds": round(row.seconds, 1),
    }
