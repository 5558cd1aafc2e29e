"""A backfill at full size: its memory, and twenty kills that leave no trace.

Run: python -m benchmarks.backfill_proof [leads] [kills]    (or: make backfill-proof)
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import text

from conversion_assets.storage.database import migrate
from conversion_assets_tests.backfilling import (
    CLIENT,
    describe_result,
    generate_half_complete,
    import_agency,
    kill_at_random,
    open_home,
    run_child,
)
from conversion_assets_tests.homes import AS_OF

LEADS = 200_000
KILLS = 20
MOST_MEMORY_MB = 2048
COMMAND = [
    *(sys.executable, "-m", "conversion_assets.cli", "backfill", CLIENT, "--json"),
    *("--as-of", AS_OF.isoformat()),
]
START_S = 8.0
"""About how long a process loads code before it works; kills before that prove little."""


def main(leads: int = LEADS, kills: int = KILLS) -> int:
    """Print sizes, seconds, peak memory and whether both results are the same; 1 if not."""
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, disturbed = Path(folder) / "undisturbed", Path(folder) / "disturbed"
        size = _make_home(undisturbed, leads)
        shutil.copytree(undisturbed, disturbed)
        _say(f"{size['leads']:,} leads, {size['activities']:,} activities")
        code, seconds, peak = run_child(COMMAND, _environment(undisturbed))
        _say(f"undisturbed: status {code}, {seconds:.0f} s, peak {peak:.0f} MB")
        expected = describe_result(*open_home(undisturbed))
        longest = START_S + 1.5 * seconds / max(kills, 1)
        killed = kill_at_random(
            COMMAND, _environment(disturbed), kills=kills, lives=(START_S / 2, longest)
        )
        again, last, _ = run_child(COMMAND, _environment(disturbed))
        same = describe_result(*open_home(disturbed)) == expected
        _say(f"killed {killed} times, then status {again} after {last:.0f} s; same bytes: {same}")
    document = {
        **size,
        "seconds": round(seconds, 1),
        "peak_mb": round(peak),
        "killed": killed,
        "same_bytes": same,
    }
    print(json.dumps(document))
    return 0 if same and code == again == 0 and peak < MOST_MEMORY_MB else 1


def _make_home(home: Path, leads: int) -> dict[str, int]:
    engine, _ = open_home(home)
    migrate(engine)
    # Eight to twelve touches are planned by default; a lead gets ten with these.
    agency = generate_half_complete(leads, touches=(15, 17))
    import_agency(engine, agency, home / "quarantine")
    with engine.connect() as connection:
        size = {
            table: int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())
            for table in ("leads", "activities")
        }
    engine.dispose()
    return size


def _environment(home: Path) -> dict[str, str]:
    return {"CONVERSION_HOME": str(home)}


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:])))
