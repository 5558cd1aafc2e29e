"""Goals of the issues beside what this machine measures. Run: make bench.

Each measurement runs in a process of its own, its contenders in turns; compare the ratios, a busy
machine slows everybody. At full size all of it takes about an hour on two quiet cores.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.goals import Line, judge
from benchmarks.measurements import MEASUREMENTS
from benchmarks.processes import run_measured

QUICK_NOTE = "small sizes: they show that everything runs, not how fast it is"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a line for each goal; 1 when something could not be measured."""
    options = _read_options(arguments)
    if options.here:
        print(json.dumps(MEASUREMENTS[options.here](options.quick)))
        return 0
    document = _load(options.out)
    if document["quick"] != options.quick:
        document = _start(quick=options.quick)
    for name in options.only or MEASUREMENTS:
        document["results"][name] = _measure(name, quick=options.quick)
        lines = judge(_sorted(document["results"]))
        document["lines"] = [line.as_row() for line in lines]
        if options.out:
            temporary = options.out.with_name(f".{options.out.name}.{os.getpid()}")
            temporary.write_text(json.dumps(document, indent=1) + "\n")
            temporary.replace(options.out)
    print_table(lines)
    if options.quick:
        print(QUICK_NOTE)
    return 1 if any("error" in found for found in document["results"].values()) else 0


def _read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, for a test")
    parser.add_argument(
        "--only", action="append", choices=MEASUREMENTS, metavar="NAME",
        help=f"this measurement; may be repeated: {', '.join(MEASUREMENTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="write JSON; what the file holds of other measurements is kept",
    )  # fmt: skip
    parser.add_argument("--here", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _load(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return _start(quick=False)
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def _start(*, quick: bool) -> dict[str, Any]:
    packages = ("polars", "dagster", "duckdb", "pandas", "sqlalchemy")
    return {
        "quick": quick,
        "machine": {
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "results": {},
        "lines": [],
    }


def _measure(name: str, *, quick: bool) -> dict[str, Any]:
    """Run one measurement in a process of its own; of one that fails return what it said."""
    command = [sys.executable, "-m", "benchmarks", "--here", name, *(["--quick"] if quick else [])]
    started = time.perf_counter()
    print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
    found: dict[str, Any]
    try:
        done = run_measured(command)
        found = json.loads(done.output.splitlines()[-1])
    except (RuntimeError, ValueError, IndexError) as error:
        found = {"error": str(error).strip().splitlines()[-1] if str(error).strip() else "failed"}
    seconds = time.perf_counter() - started
    print(f"{seconds:,.0f} s{', failed' if 'error' in found else ''}", file=sys.stderr, flush=True)
    stamp = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "took_s": round(seconds, 1),
        "load": round(os.getloadavg()[1], 1),
    }
    return found | {"taken": stamp}


def _sorted(results: Mapping[str, Any]) -> dict[str, Any]:
    return {name: results[name] for name in MEASUREMENTS if name in results}


def print_table(lines: Sequence[Line]) -> None:
    """Print goal, measured, ratio and state; notes stand under their line."""
    width = max((len(line.what) for line in lines), default=0)
    print(f"{'what':{width}} {'goal':>18} {'measured':>12} {'ratio':>6}  state")
    for line in lines:
        ratio = "" if line.ratio is None else f"{line.ratio:.2f}"
        print(f"{line.what:{width}} {line.goal:>18} {line.measured:>12} {ratio:>6}  {line.state}")
        if line.remarks:
            print(f"  {line.remarks}")
    print("ratio: of what was measured to the goal; 1 or less reaches it")


if __name__ == "__main__":
    sys.exit(main())
