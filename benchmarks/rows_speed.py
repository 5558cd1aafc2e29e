"""The design that is replaced (a client at a time, rows as objects) beside ours, same clients.

Both sides are given what they read: the design its system of record, ours the columnar store that
a refresh made of it. Theirs counts the breakdowns and no more; ours learns the whole patterns.

Run: python -m benchmarks.rows_speed [--clients 50] [--leads 1000]
"""

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.processes import run_measured

AS_OF = datetime(2026, 1, 4, tzinfo=UTC)


def run(clients: int = 50, leads: int = 1000) -> dict[str, Any]:
    """Time both, each in a process of its own, theirs once and ours before it and after.

    Returns:
        clients, touches, and for `rows` and `ours` seconds and peak_mb (of ours those of the turn
        that took the median of three); `ratio`: theirs over ours.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        touches = _make(home, clients, leads)
        before, rows, *after = (
            _measure(home, contender) for contender in ("ours", "rows", "ours", "ours")
        )  # fmt: skip
    middle = sorted([before, *after], key=lambda found: float(found["seconds"]))[1]
    return {
        "clients": clients,
        "touches": touches,
        "rows": rows,
        "ours": middle,
        "ratio": rows["seconds"] / middle["seconds"],
    }


def _make(home: Path, clients: int, leads: int) -> int:
    from conversion_assets.refresh.features import refresh_features  # noqa: PLC0415
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415
    from conversion_assets.storage.database import create_database_engine  # noqa: PLC0415
    from conversion_assets.synthetic.config import SyntheticConfig  # noqa: PLC0415
    from conversion_assets_tests.homes import make_home  # noqa: PLC0415

    make_home(home, SyntheticConfig(clients=clients, leads=leads, seed=1, as_of=AS_OF))
    engine = create_database_engine(f"sqlite:///{home}/conversion.db")
    report = refresh_features(engine, FeatureStore(home / "store"))
    engine.dispose()
    return report.manifest.rows("touch_features")


def _measure(home: Path, contender: str) -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "benchmarks.rows_speed"),
        *("--contender", contender, "--home", str(home)),
    ]
    done = run_measured(command)
    found: dict[str, Any] = json.loads(done.output)
    return found | {"peak_mb": round(done.peak_mb)}


def _count_rows(home: Path) -> float:
    from sqlalchemy import select  # noqa: PLC0415

    from benchmarks.contenders import rows  # noqa: PLC0415
    from conversion_assets.storage import tables  # noqa: PLC0415
    from conversion_assets.storage.database import create_database_engine  # noqa: PLC0415

    engine = create_database_engine(f"sqlite:///{home}/conversion.db")
    with engine.connect() as connection:
        ids = list(connection.execute(select(tables.clients.c.id)).scalars())
    started = time.perf_counter()
    rows.count(engine, ids)
    return time.perf_counter() - started


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows_speed")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--leads", type=int, default=1000)
    parser.add_argument("--contender", choices=("rows", "ours"), help="this one alone, on a home")
    parser.add_argument("--home", type=Path)
    options = parser.parse_args()
    if options.contender == "rows":
        print(json.dumps({"seconds": _count_rows(options.home)}))
    elif options.contender == "ours":
        from benchmarks.detection_speed import measure  # noqa: PLC0415

        print(json.dumps(measure("ours", options.home / "store")))
    else:
        print(json.dumps(run(options.clients, options.leads), indent=2))


if __name__ == "__main__":
    main()
