"""How many clients ever show an "act" when nothing works and everything is refreshed weekly.

Run: python -m benchmarks.weekly_looks [clients] [weeks] [leads] [hazard or propensity]
"""

import sys

from conversion_assets_tests.recovery.repetition import replay
from conversion_assets_tests.recovery.worlds import WORLDS


def main(clients: int = 100, weeks: int = 52, leads: int = 2000, world: str = "hazard") -> None:
    """Replay the weeks with and without the memory of earlier refreshes, and print both."""
    if world not in WORLDS:
        raise SystemExit(f"{world!r} is no generator: {' or '.join(WORLDS)}")
    alone: set[str] = set()
    remembered: set[str] = set()
    print(f"{'refresh':>8} {'ever act, each week alone':>26} {'ever act, with memory':>22}")
    for week, look in enumerate(replay(world, clients, leads, weeks), 1):
        alone |= {client for client, *_ in look.alone}
        remembered |= {client for client, *_ in look.remembered}
        print(f"{week:8d} {len(alone) / clients:26.3f} {len(remembered) / clients:22.3f}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]), *sys.argv[4:5])
