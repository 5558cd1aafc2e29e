"""README's table and plot of speed, and the fleets of docs/scale.md, from what `make bench` wrote.

Run: python -m benchmarks --out bench.json && python -m benchmarks.report bench.json
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.figures import NAIVE, OURS, STYLE, TRUTH
from benchmarks.fleet import fit_costs
from benchmarks.fleet import write_table as write_fleets

ROOT = Path(__file__).parents[1]
PLOT = Path("docs/images/speed.svg")
BEGIN, END = "<!-- benchmarks.report writes from here -->", "<!-- to here -->"

# Colours that people who see red and green alike can tell apart, and a mark of its own for each.
LOOKS: dict[str, tuple[str, dict[str, Any]]] = {
    "rows": ("a client at a time, rows as objects: counts only", NAIVE),
    "pandas": ("pandas: counts only", {**NAIVE, "color": "#CC79A7", "marker": "v"}),
    "duckdb": ("DuckDB: counts only", {**NAIVE, "color": "#009E73", "marker": "^"}),
    "ours": ("ours: whole patterns", OURS),
    "floor": ("floor: counts only, Polars", {**TRUTH, "marker": ".", "markersize": 5}),
}


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw time against clients for all contenders into a file; the ending chooses the format.

    Args:
        found: What the measurement `clients` returned.
        path: File to write.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.0), layout="constrained")
        _paint(figure.add_subplot(), found)
        figure.legend(loc="outside lower center", ncols=2, fontsize=7.5)
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata, dpi=110)


def _paint(ax: Axes, found: Mapping[str, Any]) -> None:
    for name, (label, look) in LOOKS.items():
        points = [point for point in found["points"] if name in point]
        clients = [point["clients"] for point in points]
        ax.plot(clients, [point[name]["seconds"] for point in points], label=label, **look)
    ax.set(xscale="log", yscale="log", ylabel="seconds",
           xlabel=f"clients of {found['leads_a_client']:,} leads")  # fmt: skip
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.grid(which="major", linewidth=0.3)


def write_table(document: Mapping[str, Any]) -> str:
    """The table of goals as Markdown."""
    rows = ["| what | goal | measured | |", "|---|---|---|---|"]
    remarks: list[str] = []
    for line in document["lines"]:
        mark = ""
        if line["state"] == "not reached" and line["why"]:
            if line["why"] not in remarks:
                remarks.append(line["why"])
            mark = f" ({remarks.index(line['why']) + 1})"
        rows.append(
            f"| {line['what']} | {line['goal']} | {line['measured']} | {line['state']}{mark} |"
        )
    told = [
        f"({number}) {remark[0].upper()}{remark[1:]}." for number, remark in enumerate(remarks, 1)
    ]
    return "\n".join([*rows, *(["", " ".join(told)] if told else [])])


def write_section(document: Mapping[str, Any]) -> str:
    """What stands between the marks in the README."""
    machine = document["machine"]
    where = (
        f"Measured on {machine['cores']} cores with Python {machine['python']} and "
        f"Polars {machine['polars']}; ratios are of contenders that took turns in one run."
    )
    return "\n\n".join([where, write_table(document)])


def replace_section(text: str, section: str) -> str:
    """The text with another section between the marks.

    Raises:
        ValueError: the marks are not there once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the text needs one line {BEGIN!r} and one line {END!r}")
    pattern = re.compile(re.escape(BEGIN) + ".*" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{section}\n{END}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write plot and README, or say what stands in the way and write neither."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("measured", type=Path, help="file that `python -m benchmarks --out` wrote")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    readme, scale = options.root / "README.md", options.root / "docs" / "scale.md"
    try:
        document = json.loads(options.measured.read_text())
        if document["quick"]:
            raise ValueError("it was measured with --quick; the README shows full sizes")
        text = replace_section(readme.read_text(), write_section(document))
        costs = fit_costs(document["results"])
        fleets = replace_section(scale.read_text(), write_fleets(costs))
        draw(document["results"]["clients"], options.root / PLOT)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        print(f"{options.measured}: {reason}", file=sys.stderr)
        return 2
    readme.write_text(text)
    scale.write_text(fleets)
    print(f"README.md, docs/scale.md, {PLOT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
