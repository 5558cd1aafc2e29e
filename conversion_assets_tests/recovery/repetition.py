"""A year of weekly refreshes on noise, and marks 9 and 10 by the tests that hold them."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.weekly_looks import replay
from conversion_assets_tests.recovery.marks import Mark

ROOT = Path(__file__).parents[2]
INVARIANCE = (
    "conversion_assets_tests/property/test_invariance.py",
    "conversion_assets_tests/property/test_no_look_ahead.py",
)
EDGES = ("conversion_assets_tests/unit/learning/test_edges.py",)


def measure_weekly_looks(clients: int, leads: int, weeks: int) -> list[Mark]:
    """Clients without any effect that ever show an act when all is refreshed weekly."""
    *_, (_, alone, remembered) = replay(clients, leads, weeks)
    detail = {"each week judged alone": f"{len(alone) / clients:.3f}"}
    return [
        Mark(1, f"null clients that ever hear act in {weeks} weekly refreshes",
             len(remembered) / clients, high=0.10, n=clients, detail=detail),
        Mark(1, f"the same, each of the {weeks} weeks judged alone", len(alone) / clients,
             n=clients),
    ]  # fmt: skip


def measure_invariance() -> list[Mark]:
    """Mark 9: rows, columns, chunks, threads and strangers change no byte; nor does the future."""
    rows = _run(9, "order, threads, chunks, other clients: tests that hold", INVARIANCE[:1])
    future = _run(9, "facts after as_of, column by column: tests that hold", INVARIANCE[1:])
    return [rows, future]


def measure_edges() -> list[Mark]:
    """Mark 10: a document or a stated outcome at every edge, a million touches among them."""
    return [_run(10, "edges: tests that hold", EDGES)]


def _run(number: int, name: str, files: tuple[str, ...]) -> Mark:
    """Share of the tests in these files that pass, each run as it stands."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    passed = [line for line in lines if line.startswith("PASSED ")]
    others = [line for line in lines if line.startswith(("FAILED ", "ERROR ", "SKIPPED "))]
    total = len(passed) + len(others)
    detail = {line.split(" ")[1]: line.split(" ")[0] for line in others}
    return Mark(number, name, len(passed) / max(total, 1), low=1.0, n=total, detail=detail,
                world="both, or any", reason="; ".join(others[:3]))  # fmt: skip
