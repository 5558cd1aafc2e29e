"""Measure the acceptance marks: `python -m conversion_assets_tests.recovery [--full]`."""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from conversion_assets_tests.recovery import (
    marks,
    passengers,
    power,
    randomised,
    repetition,
    touch_hazards,
)
from conversion_assets_tests.recovery.propensity_experiment import PropensityExperimentConfig
from conversion_assets_tests.recovery.table import Row, write_json, write_line, write_markdown
from conversion_assets_tests.recovery.worlds import HAZARD, PROPENSITY

Measure = Callable[[], list[marks.Mark]]
FEW_ZONES = marks.TWELVE_ZONES[:4]

SMALL: dict[str, Measure] = {
    "null": lambda: marks.measure_null(40, 400),
    "null-propensity": lambda: marks.measure_null(20, 400, world=PROPENSITY),
    "mixed": lambda: marks.measure_mixed(24, 500),
    "mixed-propensity": lambda: marks.measure_mixed(20, 1000, world=PROPENSITY),
    "continuous": lambda: marks.measure_continuous(4, 2000),
    "continuous-propensity": lambda: marks.measure_continuous(8, 2000, world=PROPENSITY),
    "weak": lambda: marks.measure_weak_signal((500, 2000), clients=3),
    "weak-propensity": lambda: marks.measure_weak_signal((500, 2000), clients=3, world=PROPENSITY),
    "touch-hazard": lambda: touch_hazards.measure_touch_hazard(40_000),
    "touch-hazard-propensity": lambda: touch_hazards.measure_touch_hazard(40_000, world=PROPENSITY),
    "hour": lambda: marks.measure_best_hour(3000, zones=FEW_ZONES),
    "hour-propensity": lambda: marks.measure_best_hour(
        15_000, zones=FEW_ZONES[1:2], world=PROPENSITY
    ),
    "reversals": lambda: marks.measure_reversals(1, 10_000),
    "reversals-propensity": lambda: marks.measure_reversals(1, 10_000, world=PROPENSITY),
    "cadence": lambda: marks.measure_cadence(8, 4000),
    "cadence-propensity": lambda: marks.measure_cadence(8, 4000, world=PROPENSITY),
    "passengers-hazard-source": lambda: passengers.measure_passengers(6, 4000, cause="source"),
    "passengers-propensity-month": lambda: passengers.measure_passengers(
        6, 4000, cause="month", world=PROPENSITY
    ),
    "planted": lambda: marks.measure_planted(1, 10_000),
    "planted-propensity": lambda: marks.measure_planted(1, 10_000, world=PROPENSITY),
    "power": lambda: power.measure_power(8, 1000),
    "power-no-pool": lambda: power.measure_power(8, 1000, with_pool=False),
    "power-propensity": lambda: power.measure_power(8, 1000, world=PROPENSITY),
    "experiments": lambda: randomised.measure_repeated(5),
    "experiments-propensity": lambda: randomised.measure_repeated(
        5, config=PropensityExperimentConfig()
    ),
    "looks": lambda: repetition.measure_weekly_looks(6, 500, 4),
    "looks-propensity": lambda: repetition.measure_weekly_looks(6, 500, 4, world=PROPENSITY),
}
"""Sizes for CI: the same code, far too small to refute a mark that is nearly met."""

FULL: dict[str, Measure] = {
    "null": lambda: marks.measure_null(200, 1000),
    "null-frail": lambda: marks.measure_null(60, 1000, frailty=1.0),
    "null-propensity": lambda: marks.measure_null(150, 1000, world=PROPENSITY),
    "mixed": lambda: marks.measure_mixed(500, 1000),
    "mixed-propensity": lambda: marks.measure_mixed(150, 1000, world=PROPENSITY),
    "continuous": lambda: marks.measure_continuous(40, 2000),
    "continuous-propensity": lambda: marks.measure_continuous(60, 2000, world=PROPENSITY),
    "cadence": lambda: marks.measure_cadence(60, 5000),
    "cadence-propensity": lambda: marks.measure_cadence(60, 5000, world=PROPENSITY),
    **{
        f"passengers-{world}-{cause.split()[0]}": partial(
            passengers.measure_passengers, 60, 5000, cause=cause, world=world
        )
        for world in (HAZARD, PROPENSITY)
        for cause in passengers.CAUSES
    },
    "planted": lambda: marks.measure_planted(20, 10_000),
    "planted-propensity": lambda: marks.measure_planted(20, 10_000, world=PROPENSITY),
    **{
        f"power-{world}-{leads}{name}": partial(
            power.measure_power, clients, leads, world=world, with_pool=with_pool
        )
        for world in (HAZARD, PROPENSITY)
        for leads, clients in ((1000, 75), (3000, 25))
        for name, with_pool in (("", True), ("-no-pool", False))
    },
    "weak": lambda: marks.measure_weak_signal((1000, 3000, 10_000), clients=2),
    "weak-propensity": lambda: marks.measure_weak_signal(
        (1000, 3000, 10_000), clients=2, world=PROPENSITY
    ),
    "reversals": lambda: marks.measure_reversals(6, 10_000),
    "reversals-propensity": lambda: marks.measure_reversals(6, 10_000, world=PROPENSITY),
    "hour": lambda: marks.measure_best_hour(8000),
    "hour-spring": lambda: marks.measure_best_hour(5000, season="around spring"),
    "hour-autumn": lambda: marks.measure_best_hour(5000, season="around autumn"),
    "hour-propensity": lambda: marks.measure_best_hour(12_000, world=PROPENSITY),
    "hour-spring-propensity": lambda: marks.measure_best_hour(
        12_000, world=PROPENSITY, season="around spring"
    ),
    "hour-autumn-propensity": lambda: marks.measure_best_hour(
        12_000, world=PROPENSITY, season="around autumn"
    ),
    "touch-hazard": lambda: touch_hazards.measure_touch_hazard(200_000),
    "touch-hazard-propensity": lambda: touch_hazards.measure_touch_hazard(
        200_000, world=PROPENSITY
    ),
    "looks": lambda: repetition.measure_weekly_looks(200, 1000, 52),
    "looks-propensity": lambda: repetition.measure_weekly_looks(200, 1000, 52, world=PROPENSITY),
    "imported": randomised.measure_imported,
    "imported-propensity": lambda: randomised.measure_imported(config=PropensityExperimentConfig()),
    "experiments": lambda: randomised.measure_repeated(120),
    "experiments-propensity": lambda: randomised.measure_repeated(
        120, config=PropensityExperimentConfig()
    ),
    "invariance": repetition.measure_invariance,
    "invariance-propensity": lambda: repetition.measure_invariance(PROPENSITY),
    "edges": repetition.measure_edges,
}
"""The sizes that the marks speak of, or what a machine of two cores can bear in 35 minutes."""


def main(arguments: list[str] | None = None) -> int:
    """Print one line per figure; the exit code is 1 when a mark is not met."""
    parser = argparse.ArgumentParser(prog="python -m conversion_assets_tests.recovery")
    parser.add_argument("--full", action="store_true", help="the sizes that the marks speak of")
    parser.add_argument("--only", choices=sorted(FULL), action="append", help="some measurements")
    parser.add_argument("--detail", action="store_true", help="figures by dimension")
    parser.add_argument(
        "--out", type=Path, action="append", default=[], metavar="FILE",
        help="write the table as well: .json with all details, else Markdown; may be repeated",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    chosen = FULL if options.full else SMALL
    rows: list[Row] = []
    for name, measure in chosen.items():
        if options.only and name not in options.only:
            continue
        started = time.perf_counter()
        found = measure()
        taken = time.perf_counter() - started
        rows += [Row(name, mark, taken) for mark in found]
        for row in rows[-len(found) :]:
            _print(row, is_detailed=options.detail)
        sys.stdout.write(f"  -- {name}: {taken:.0f} s\n")
        sys.stdout.flush()
        for file in options.out:
            # After every measurement: what is measured survives whatever comes after.
            file.write_text(write_json(rows) if file.suffix == ".json" else write_markdown(rows))
    return 0 if all(row.mark.passed for row in rows) else 1


def _print(row: Row, *, is_detailed: bool) -> None:
    sys.stdout.write(write_line(row) + "\n")
    if is_detailed:
        for name, figure in row.mark.detail.items():
            sys.stdout.write(f"          {name:<40} {figure}\n")


if __name__ == "__main__":
    raise SystemExit(main())
