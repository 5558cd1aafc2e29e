"""What a cluster costs: surveys of the same shards here, and on workers of this same machine.

Both have the same cores, so the ratio is the engine's own price (processes, pickling, the way
through the scheduler), not what more machines gain. Turn-about, medians of the rounds.

Run: python -m benchmarks.cluster_speed [--clients 50] [--leads 1000] [--workers 2] [--rounds 3]
"""

import argparse
import json
import os
import pickle
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.detection_speed import AS_OF, make_store
from conversion_assets.compute.cluster import DaskEngine
from conversion_assets.compute.engine import ComputeEngine, LocalEngine
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.forecasts import FORECASTS
from conversion_assets.refresh.surveys import Findings, survey_shards
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets_tests.clusters import Cluster


def survey(store: FeatureStore, engine: ComputeEngine, rows: int) -> tuple[float, Findings]:
    """Survey all clients of a store; returns the seconds and what was found."""
    clients = sorted(store.load_manifest().clients)
    started = time.perf_counter()
    found = survey_shards(
        store, engine, client_ids=clients, learned=clients,
        forecasts=pl.DataFrame(schema=FORECASTS), as_of=AS_OF, config=LearningConfig(),
        rows_per_shard=rows,
    )  # fmt: skip
    return time.perf_counter() - started, found


def run(clients: int, leads: int, workers: int, rounds: int, shards: int) -> dict[str, Any]:
    """Time both engines in turns.

    Returns:
        Seconds of each, their ratio, shards, and bytes that come back per client.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder) / "store")
        touches = make_store(Path(store.url), clients, leads)
        rows = -(-(touches + clients * leads) // shards)
        logs = Path(folder) / "logs"
        logs.mkdir()
        with Cluster(logs, {"POLARS_MAX_THREADS": str(threads)}) as cluster:
            cluster.start_scheduler()
            cluster.start_workers(workers)
            cluster.wait_for_workers(workers)
            remote = DaskEngine(cluster.address)
            survey(store, remote, rows)
            times: list[tuple[float, float]] = []
            for _ in range(rounds):
                here, found = survey(store, LocalEngine(), rows)
                there, same = survey(store, remote, rows)
                times.append((here, there))
                assert len(same.surveys) == len(found.surveys)
    return {
        "clients": clients,
        "touches": touches,
        "shards": len(found.surveys),
        "workers": workers,
        "here_s": statistics.median(here for here, _ in times),
        "cluster_s": statistics.median(there for _, there in times),
        "ratio": statistics.median(there / here for here, there in times),
        "bytes_per_client": len(pickle.dumps(found)) // clients,
    }


def main() -> None:
    """Print the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster_speed")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--leads", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=4)
    options = parser.parse_args()
    found = run(options.clients, options.leads, options.workers, options.rounds, options.shards)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
