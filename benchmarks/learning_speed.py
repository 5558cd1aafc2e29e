"""One learning run of a fleet through Dagster: stages, and peak memory of the whole process.

Run: python -m benchmarks.learning_speed [clients] [leads]
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-m", "conversion_assets.cli"]


def run(clients: int = 50, leads: int = 1000) -> dict[str, Any]:
    """Generate, import and learn in a home of its own; the last runs in a process of its own.

    Returns:
        Seconds by stage of `learn`, its peak memory in MB, and the number of touches.
    """
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        environment = os.environ | {"CONVERSION_HOME": str(Path(folder) / "home")}
        _call(environment, "synth", "--out", data, "--clients", clients, "--leads", leads,
              "--seed", 1)  # fmt: skip
        files = [
            argument
            for name in ("clients", "leads", "activities")
            for argument in (f"--{name}", data / f"{name}.parquet")
        ]
        taken = _call(environment, "import", *files)
        learned = _call(environment, "learn", "--as-of", "2026-01-04T00:00:00+00:00")
        # `learn` is by far the largest of the three; the kernel keeps the largest child's peak.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "clients": clients,
        "leads": taken["leads"]["accepted"],
        "activities": taken["activities"]["accepted"],
        **learned["stages"],
        "duration_s": learned["duration_s"],
        "peak_mb": round(peak),
    }


def _call(environment: dict[str, str], *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments), "--json"],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(run(*(int(argument) for argument in sys.argv[1:])), indent=2))
