"""What was asked for, held against what was measured: a line for each."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

_SMALLEST = 1e-9
"""Stands for nothing at all where it is divided by."""

LEARNS = (
    "the floor stops at counts; learning also reads more columns, stratifies, tests, pools, "
    "weighs the score on later leads and writes a document per client and type, and its estimates "
    "and documents alone take more than the whole of the floor "
    "(docs/decisions/speed-of-detection.md)"
)
EACH_CLIENT = "some of the work is per client whatever its size, and weighs more in small clients"

Found = Mapping[str, Any]
"""What one measurement returned."""


@dataclass(frozen=True)
class Line:
    """One goal.

    Attributes:
        measurement: Name of the measurement it is judged by.
        what: What is measured.
        goal: In words.
        measured: In words.
        ratio: Measured over goal: at most 1 is reached. None where nothing was asked for but to
            state it, or where it could not be measured.
        note: What it is made of.
        why: Why it is not reached, known from earlier measurements; told only then.
        is_missing: It could not be measured.
    """

    measurement: str
    what: str
    goal: str
    measured: str
    ratio: float | None
    note: str = ""
    why: str = ""
    is_missing: bool = False

    @property
    def state(self) -> str:
        """`reached`, `not reached`, `not measured`, or `stated`."""
        if self.is_missing:
            return "not measured"
        if self.ratio is None:
            return "stated"
        return "reached" if self.ratio <= 1 else "not reached"

    def as_row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"state": self.state}

    @property
    def remarks(self) -> str:
        """What to print beneath: the note, and why it is not reached if it is not."""
        return "; ".join(filter(None, [self.note, self.why if self.state == "not reached" else ""]))


def at_most(
    name: str, what: str, value: float, most: float, *, unit: str, note: str = "", why: str = ""
) -> Line:
    """A line whose value may be as high as `most`."""
    return Line(
        name,
        what,
        f"at most {_write(most)}{unit}",
        f"{_write(value)}{unit}",
        value / most,
        note,
        why,
    )


def at_least(
    name: str, what: str, value: float, least: float, *, unit: str, note: str = "", why: str = ""
) -> Line:
    """A line whose value may be as low as `least`."""
    return Line(
        name,
        what,
        f"at least {_write(least)}{unit}",
        f"{_write(value)}{unit}",
        least / max(value, _SMALLEST),
        note,
        why,
    )


def growth(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent of the power law through the points: the slope of their logarithms, least squares.

    Example:
        >>> round(growth([10, 100, 1000], [2, 20, 200]), 6)
        1.0
    """
    xs, ys = ([math.log(value) for value in values] for values in (sizes, seconds))
    x, y = (sum(values) / len(values) for values in (xs, ys))
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return slope / sum((a - x) ** 2 for a in xs)


def _judge_fifty(found: Found) -> Iterator[Line]:
    yield at_most(
        "fifty", f"detection over the floor, {_size(found)}", found["ours"]["ratio"], 4, unit=" ×",
        note=_sides(found), why=LEARNS,
    )  # fmt: skip


def _judge_thousand(found: Found) -> Iterator[Line]:
    yield at_most(
        "thousand", f"detection over the floor, {_size(found)}", found["ours"]["ratio"], 2.5,
        unit=" ×", note=_sides(found), why=LEARNS,
    )  # fmt: skip
    yield at_most(
        "thousand", f"peak memory of detection, {_size(found)}", found["ours"]["peak_mb"], 2048,
        unit=" MB", note=f"floor {found['floor']['peak_mb']:,} MB",
    )  # fmt: skip


def _judge_rows(found: Found) -> Iterator[Line]:
    yield at_least(
        "rows", f"times faster than rows as objects, {_size(found)}", found["ratio"], 100,
        unit=" ×",
        note=f"{_write(found['rows']['seconds'])} s and {_write(found['ours']['seconds'])} s",
        why="theirs counts and stops as the floor does; ours learns: see the first reason",
    )  # fmt: skip


def _judge_growth(name: str, what: str, sizes: list[float], seconds: list[float]) -> Line:
    steps = [
        growth(*zip(*pair, strict=True)) for pair in pairwise(zip(sizes, seconds, strict=True))
    ]
    exponent = growth(sizes, seconds)
    each = ", ".join(_write(step) for step in steps)
    return at_most(name, what, exponent, 1.05, unit="", note=f"from step to step {each}")


def _judge_clients(found: Found) -> Iterator[Line]:
    points = [p for p in found["points"] if p["clients"] >= min(100, _largest(found))]
    yield _judge_growth(
        "clients",
        f"growth exponent, {points[0]['clients']:,} to {points[-1]['clients']:,} clients",
        [p["clients"] for p in points],
        [p["ours"]["seconds"] for p in points],
    )


def _largest(found: Found) -> int:
    """Where a quick run stays below the size that counts, all of its points do."""
    most = max(p["clients"] for p in found["points"])
    return most if most > 100 else 0


def _judge_one_client(found: Found) -> Iterator[Line]:
    points = found["points"]
    yield _judge_growth(
        "one_client",
        f"growth exponent, {points[0]['touches']:,} to {points[-1]['touches']:,} touches "
        "in one client",
        [p["touches"] for p in points],
        [p["ours"]["seconds"] for p in points],
    )


def _judge_refresh(found: Found) -> Iterator[Line]:
    part = found["fifty"]
    size = f"{part['clients']:,} clients, {part['activities']:,} activities"
    first, new = part["first"], part["incremental"]
    yield at_most(
        "refresh", f"first load from PostgreSQL over its floor, {size}", first["ratio_to_floor"],
        1.5, unit=" ×",
        note=f"{_write(first['seconds'])} s, floor {_write(part['floor']['seconds'])} s, "
        f"peak {first['peak_mb']:,.0f} MB",
    )  # fmt: skip
    yield at_most(
        "refresh", f"refresh with 2 % new rows over the first load, {size}",
        100 * new["ratio_to_first"], 10, unit=" %", note=f"{_write(new['seconds'])} s",
        why="a lead is computed whole, so that 2 % of news concern a tenth of the rows, which are "
        "looked up one by one where the first load reads whole tables; what can run side by side "
        "does, and the processor time of both sides is left (docs/decisions/speed-of-features.md)",
    )  # fmt: skip
    fleet = found["thousand"]
    yield at_most(
        "refresh", f"refresh when nothing changed, {fleet['clients']:,} clients, "
        f"{fleet['activities']:,} activities", fleet["again"]["seconds"], 2, unit=" s",
        note=f"peak {fleet['again']['peak_mb']:,.0f} MB",
    )  # fmt: skip


def _judge_dagster(found: Found) -> Iterator[Line]:
    for database, name in (("postgresql", "PostgreSQL"), ("sqlite", "SQLite")):
        if database not in found:
            continue
        part = found[database]
        what = f"share of the run that Dagster adds, {found['clients']:,} clients, {name}"
        note = (
            f"{_write(part['dagster']['seconds'])} s with it, "
            f"{_write(part['functions']['seconds'])} s without; "
            f"{part['documents']:,} patterns; peak {part['dagster']['peak_mb']:,.0f} MB"
        )
        share = 100 * part["adds"]
        if database == "postgresql":
            yield at_most("dagster", what, share, 20, unit=" %", note=note, why=EACH_CLIENT)
        else:
            yield Line("dagster", what, "stated", f"{_write(share)} %", None, note)


def _judge_patterns(found: Found) -> Iterator[Line]:
    for database, name in (("postgresql", "PostgreSQL"), ("sqlite", "SQLite")):
        if database not in found:
            continue
        part = found[database]
        yield at_most(
            "patterns", f"writing {found['patterns']:,} patterns with history over a bare bulk "
            f"insert, {name}", part["ratio"], found["most_ratio"], unit=" ×",
            note=f"{_write(part['ours_s'])} s, bare {_write(part['bare_s'])} s, "
            f"the next refresh {_write(part['next_s'])} s, peak {part['peak_mb']:,} MB",
            why="bare rows are ready; here texts are made of documents, and a client that cannot "
            "be stored must not take the others along",
        )  # fmt: skip


def _judge_learning(found: Found) -> Iterator[Line]:
    size = f"{found['clients']:,} clients, {found['activities']:,} activities"
    yield at_most("learning", f"detection, {size}", found["detection_s"], 5, unit=" s")
    yield at_most("learning", f"peak memory of `learn`, {size}", found["peak_mb"], 1500, unit=" MB")


def _judge_import(found: Found) -> Iterator[Line]:
    what = f"import of {found['rows']:,} rows over a bare insert"
    least = found["required_share"]
    sqlite = found["sqlite"]
    yield at_least("import", f"{what}, same table", sqlite["share_of_real_table"], least, unit="")
    yield at_least(
        "import", f"{what}, table without keys", sqlite["share"], least, unit="",
        why="keys, indexes and change numbers of the real table take most of an import",
    )  # fmt: skip


JUDGES: dict[str, Callable[[Found], Iterator[Line]]] = {
    "fifty": _judge_fifty,
    "thousand": _judge_thousand,
    "rows": _judge_rows,
    "clients": _judge_clients,
    "one_client": _judge_one_client,
    "refresh": _judge_refresh,
    "dagster": _judge_dagster,
    "patterns": _judge_patterns,
    "learning": _judge_learning,
    "import": _judge_import,
}


def judge(results: Mapping[str, Found]) -> list[Line]:
    """The lines of every measurement that was made.

    Args:
        results: By name of the measurement; one that failed holds `error` alone.
    """
    lines: list[Line] = []
    for name, found in results.items():
        if "error" in found:
            lines.append(Line(name, name, "-", "-", None, found["error"], is_missing=True))
        else:
            lines += JUDGES[name](found)
    return lines


def _size(found: Found) -> str:
    clients = found["clients"]
    return f"{clients:,} client{'s' if clients > 1 else ''}, {found['touches']:,} touches"


def _sides(found: Found) -> str:
    names = {"ours": "ours", "floor": "floor", "pandas": "pandas", "duckdb": "DuckDB"}
    return ", ".join(
        f"{word} {_write(found[name]['seconds'])} s"
        for name, word in names.items()
        if name in found
    )


def _write(value: float) -> str:
    """A number with three digits that count, thousands separated, nothing rounded above them."""
    if value >= 100:
        return f"{value:,.0f}"
    digits = 2 if value >= 0.1 or value == 0 else 3
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")
