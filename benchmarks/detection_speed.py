"""Detection from the columnar store beside everybody else who counts the same store.

Each contender runs in a process of its own, in turns, and times itself after its imports; memory is
the peak of that process and its children. Compare the ratios to the floor of the same run: a busy
machine slows all of them.

Run: python -m benchmarks.detection_speed [--clients 50] [--leads 1000] [--rounds 3]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.processes import run_measured

AS_OF = datetime(2026, 1, 4, tzinfo=UTC)
# As many different clients are generated; a larger fleet holds copies of them under other names.
DIFFERENT_CLIENTS = 50
CONTENDERS = ("floor", "ours", "pandas", "duckdb")


def make_store(folder: Path, clients: int, leads: int) -> int:
    """Write a columnar store of generated clients; returns the number of touches."""
    from conversion_assets.features.build import FEATURE_VERSION, build_features  # noqa: PLC0415
    from conversion_assets.storage.columnar.manifest import BUCKETS, bucket_of  # noqa: PLC0415
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415
    from conversion_assets.synthetic.config import SyntheticConfig  # noqa: PLC0415
    from conversion_assets.synthetic.generator import generate_agency  # noqa: PLC0415

    different = min(clients, DIFFERENT_CLIENTS)
    agency = generate_agency(SyntheticConfig(clients=different, leads=leads, seed=1, as_of=AS_OF))
    features = build_features(agency.clients, agency.leads, agency.activities)
    originals = sorted(features.leads["client_id"].unique().to_list())
    names = [
        (f"{original}-{copy:03d}", original)
        for copy in range(-(-clients // different))
        for original in originals
    ][:clients]
    empty = pl.DataFrame(
        schema={"client_id": pl.String, "lead_id": pl.String, "activity_id": pl.String}
    )
    tables = {"lead_features": features.leads, "touch_features": features.touches}
    with FeatureStore(folder).write() as writer:
        for bucket in range(BUCKETS):
            own = [(name, original) for name, original in names if bucket_of(name) == bucket]
            copies = pl.DataFrame(own, schema=["copy", "client_id"], orient="row")
            if not own:
                continue
            rows = {
                table: frame.join(copies, on="client_id")
                .with_columns(client_id="copy")
                .select(frame.columns)
                for table, frame in tables.items()
            }
            writer.replace_clients(
                bucket,
                [name for name, _ in own],
                rows | {"bookings": empty},  # type: ignore[arg-type]
            )
        manifest = writer.commit(feature_version=FEATURE_VERSION, watermark={})
    return manifest.rows("touch_features")


def _learn(store: Path) -> int:
    """What a refresh does between the store and the database, drift of the leads included."""
    from conversion_assets.compute.engine import LocalEngine  # noqa: PLC0415
    from conversion_assets.domain.config import LearningConfig  # noqa: PLC0415
    from conversion_assets.domain.forecasts import FORECASTS  # noqa: PLC0415
    from conversion_assets.learning import conclude  # noqa: PLC0415
    from conversion_assets.refresh.surveys import survey_shards  # noqa: PLC0415
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415

    features = FeatureStore(store)
    ids = list(features.load_manifest().clients)
    config = LearningConfig()
    found = survey_shards(
        features,
        LocalEngine(),
        client_ids=ids,
        learned=ids,
        forecasts=pl.DataFrame(schema=FORECASTS),
        as_of=AS_OF,
        config=config,
    )
    parts = conclude(
        found.surveys, found.errors, members=ids, client_ids=ids, as_of=AS_OF, config=config
    )
    documents = 0
    for part in parts:
        if part.failures:
            raise RuntimeError(part.failures[0].error)
        documents += len(part.documents)
    return documents


def measure(contender: str, store: Path) -> dict[str, Any]:
    """Run one contender here and now."""
    from benchmarks.contenders import floor, frames, sql  # noqa: PLC0415

    count = {
        "floor": floor.count, "pandas": frames.count, "duckdb": sql.count, "ours": _learn,
    }[contender]  # fmt: skip
    if contender == "ours":
        from conversion_assets.refresh import surveys  # noqa: F401, PLC0415 - imports are not timed
    started = time.perf_counter()
    count(store)
    return {"seconds": time.perf_counter() - started}


def run(
    clients: int = 50,
    leads: int = 1000,
    rounds: int = 3,
    contenders: tuple[str, ...] = CONTENDERS,
    threads: int | None = None,
) -> dict[str, Any]:
    """Time the contenders in turns on one store.

    Returns:
        clients, touches, and for each contender the median of its seconds, of its ratio to the
        floor of the same round, and of its peak memory in MB.
    """
    environment = {"POLARS_MAX_THREADS": str(threads)} if threads else {}
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        touches = make_store(store, clients, leads)
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name in contenders:
                command = [sys.executable, "-m", "benchmarks.detection_speed", "--contender", name,
                           "--store", str(store)]  # fmt: skip
                done = run_measured(command, environment)
                rows[name].append(json.loads(done.output) | {"peak_mb": done.peak_mb})
    floors = [row["seconds"] for row in rows["floor"]]
    return {
        "clients": clients,
        "touches": touches,
        **{
            name: {
                "seconds": statistics.median(row["seconds"] for row in found),
                "ratio": statistics.median(
                    row["seconds"] / least for row, least in zip(found, floors, strict=True)
                ),
                "peak_mb": round(statistics.median(row["peak_mb"] for row in found)),
            }
            for name, found in rows.items()
        },
    }


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection_speed")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--leads", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--contender", choices=CONTENDERS, help="this one alone, on a store")
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(measure(options.contender, options.store)))
    else:
        found = run(options.clients, options.leads, options.rounds, threads=options.threads)
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
