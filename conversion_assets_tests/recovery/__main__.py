"""Measure the acceptance marks: `python -m conversion_assets_tests.recovery [--full]`."""

import argparse
import sys
import time
from collections.abc import Callable

from conversion_assets_tests.recovery import marks

Measure = Callable[[], list[marks.Mark]]

SMALL: dict[str, Measure] = {
    "null": lambda: marks.measure_null(40, 400),
    "mixed": lambda: marks.measure_mixed(24, 500),
    "weak": lambda: marks.measure_weak_signal((500, 2000), clients=3),
    "hour": lambda: marks.measure_best_hour(2500, zones=marks.TWELVE_ZONES[:4]),
    "reversals": lambda: marks.measure_reversals(2, 5000),
    "planted": lambda: marks.measure_planted(2, 10_000),
}
FULL: dict[str, Measure] = {
    "null": lambda: marks.measure_null(300, 1000),
    "null-frail": lambda: marks.measure_null(300, 1000, frailty=1.0),
    "mixed": lambda: marks.measure_mixed(500, 1000),
    "weak": lambda: marks.measure_weak_signal((1000, 3000, 10_000)),
    "hour": lambda: marks.measure_best_hour(10_000),
    "reversals": lambda: marks.measure_reversals(20, 10_000),
    "planted": lambda: marks.measure_planted(20, 10_000),
}


def main(arguments: list[str] | None = None) -> int:
    """Print one line per mark; the exit code is 1 when one is not met."""
    parser = argparse.ArgumentParser(prog="python -m conversion_assets_tests.recovery")
    parser.add_argument("--full", action="store_true", help="the sizes that the marks speak of")
    parser.add_argument("--only", choices=sorted(FULL), action="append", help="some measurements")
    parser.add_argument("--detail", action="store_true", help="figures by dimension")
    options = parser.parse_args(arguments)
    chosen = FULL if options.full else SMALL
    is_met = True
    for name, measure in chosen.items():
        if options.only and name not in options.only:
            continue
        started = time.perf_counter()
        for mark in measure():
            is_met &= mark.passed
            _print(mark, is_detailed=options.detail)
        sys.stdout.write(f"  -- {name}: {time.perf_counter() - started:.0f} s\n")
        sys.stdout.flush()
    return 0 if is_met else 1


def _print(mark: marks.Mark, *, is_detailed: bool) -> None:
    bounds = " to ".join(
        f"{bound:g}" for bound in (mark.low, mark.high) if abs(bound) != float("inf")
    )
    side = (
        "at most "
        if mark.low == -float("inf")
        else "at least "
        if mark.high == float("inf")
        else ""
    )
    verdict = "met" if mark.passed else "NOT MET"
    sys.stdout.write(
        f"mark {mark.number}  {mark.name:<58} {mark.value:7.3f}  n={mark.n:<7}"
        f" {side}{bounds:<14} {verdict}\n"
    )
    if is_detailed:
        for name, figure in mark.detail.items():
            sys.stdout.write(f"          {name:<40} {figure}\n")


if __name__ == "__main__":
    raise SystemExit(main())
