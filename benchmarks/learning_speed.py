"""One learning run of a fleet through Dagster: stages, and peak memory of the whole process.

Run: python -m benchmarks.learning_speed [clients] [leads]
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.processes import run_measured

COMMAND = [sys.executable, "-m", "conversion_assets.cli"]


def run(clients: int = 50, leads: int = 1000) -> dict[str, Any]:
    """Generate, import and learn in a home of its own; the last runs in a process of its own.

    Returns:
        Seconds by stage of `learn`, its peak memory in MB, and the number of touches.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        environment = {"CONVERSION_HOME": str(Path(folder) / "home")}
        _call(environment, "synth", "--out", data, "--clients", clients, "--leads", leads,
              "--seed", 1)  # fmt: skip
        files = [
            argument
            for name in ("clients", "leads", "activities")
            for argument in (f"--{name}", data / f"{name}.parquet")
        ]
        taken, _ = _call(environment, "import", *files)
        learned, peak = _call(environment, "learn", "--as-of", "2026-01-04T00:00:00+00:00")
    return {
        "clients": clients,
        "leads": taken["leads"]["accepted"],
        "activities": taken["activities"]["accepted"],
        **learned["stages"],
        "duration_s": learned["duration_s"],
        "peak_mb": round(peak),
    }


def _call(environment: dict[str, str], *arguments: object) -> tuple[dict[str, Any], float]:
    """What a command printed, and the highest memory of its process and its children."""
    done = run_measured([*COMMAND, *map(str, arguments), "--json"], environment)
    found: dict[str, Any] = json.loads(done.output)
    return found, done.peak_mb


if __name__ == "__main__":
    print(json.dumps(run(*(int(argument) for argument in sys.argv[1:])), indent=2))
