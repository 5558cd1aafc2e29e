"""Costs of a client and of a million touches, and what fleets beyond this machine would need.

`python -m benchmarks.fleet costs` measures bytes: columns of the store, rows of PostgreSQL, what
learning holds of a client. `python -m benchmarks.fleet plan` feeds sizes, not data, through the
planner that learning uses and states shards, memory and hours from the measured costs. Sizes of
clients are drawn from a heavy tail: the largest of 100,000 has about a thousandth of all touches.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from benchmarks.measurements import TOUCHES_A_LEAD
from conversion_assets.domain.shards import plan_shards
from conversion_assets.refresh.surveys import ROWS_PER_SHARD

HISTORY_WEEKS = 13
"""What pruning leaves of Dagster's history by default."""
FLEETS = ((1_000, 10_000_000), (10_000, 100_000_000), (100_000, 1_000_000_000),
          (1_000_000, 10_000_000_000))  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """What was measured on two quiet cores; see docs/scale.md for how.

    Attributes:
        learn_client_s: Seconds of detection and storing per client, however small.
        learn_million_s: Seconds of detection per million touches.
        load_million_s: Seconds of the first load per million touches.
        shard_million_mb: Memory per million rows of leads and touches in a shard.
        survey_client_kb: What learning holds of a client from its survey to its documents.
        base_mb: Memory of the process with the code loaded.
        store_touch_b: Bytes in the columnar store per touch, its share of the lead included.
        record_touch_b: Bytes in PostgreSQL per touch, its share of the lead included.
        documents_client_kb: Bytes in PostgreSQL per client: patterns, history, forecasts.
        dagster_client_week_kb: Bytes of Dagster's tables per client and week.
    """

    learn_client_s: float = 0.004
    learn_million_s: float = 5.0
    load_million_s: float = 20.0
    shard_million_mb: float = 900.0
    survey_client_kb: float = 85.0
    base_mb: float = 250.0
    store_touch_b: float = 37.0
    record_touch_b: float = 710.0
    documents_client_kb: float = 139.0
    dagster_client_week_kb: float = 14.0


LABELS = {
    "learn_client_s": "learning: seconds per client, however small",
    "learn_million_s": "learning: seconds per million touches",
    "load_million_s": "first load of features: seconds per million touches",
    "shard_million_mb": "MB per million rows of a shard",
    "survey_client_kb": "KB that learning holds per client once its rows are dropped",
    "base_mb": "MB of the process itself",
    "store_touch_b": "bytes in the columnar store per touch",
    "record_touch_b": "bytes in PostgreSQL per touch",
    "documents_client_kb": "KB in PostgreSQL per client: patterns, history, forecasts, facts",
    "dagster_client_week_kb": "KB of Dagster's tables per client and week",
}


def draw_sizes(clients: int, touches: int, seed: int = 1) -> np.ndarray:
    """Rows of leads and touches of each client, shape (clients,), from a heavy tail.

    Lognormal with sigma 1.5: the median client has a third of the mean, the largest of 100,000
    some two hundred times the mean.

    Example:
        >>> sizes = draw_sizes(1000, 1_000_000)
        >>> bool(sizes.min() >= 0), bool(sizes.max() > 20 * np.median(sizes))
        (True, True)
    """
    drawn = np.random.default_rng(seed).lognormal(sigma=1.5, size=clients)
    rows = touches * (1 + 1 / TOUCHES_A_LEAD)
    return np.rint(drawn * rows / drawn.sum()).astype(np.int64)


def plan(
    clients: int, touches: int, costs: Costs, *, budget: int = ROWS_PER_SHARD, workers: int = 16
) -> dict[str, Any]:
    """Divide a drawn fleet into shards and state what it would need.

    Args:
        clients: How many.
        touches: Of all of them.
        costs: What was measured.
        budget: Rows of a shard.
        workers: Machines of two cores that survey shards; one concludes.

    Returns:
        Shards, rows of the largest, memory of a worker and of the machine that concludes, seconds
        of the first load and of a week's learning, gigabytes of store, PostgreSQL and Dagster.
    """
    sizes = draw_sizes(clients, touches)
    shards = plan_shards({str(place): int(size) for place, size in enumerate(sizes)}, budget)
    rows = np.array([sum(int(sizes[int(client)]) for client in shard) for shard in shards])
    million = touches / 1e6
    surveys_s = costs.learn_million_s * million
    # Shards are of unequal length: nobody is done before the largest of them is.
    longest_s = costs.learn_million_s * rows.max() / 1e6
    conclude_s = costs.learn_client_s * clients
    return {
        "clients": clients,
        "touches": touches,
        "shards": len(shards),
        "largest_client_rows": int(sizes.max()),
        "largest_shard_rows": int(rows.max()),
        "worker_mb": round(costs.base_mb + costs.shard_million_mb * rows.max() / 1e6),
        "conclude_mb": round(costs.base_mb + costs.survey_client_kb * clients / 1024),
        "first_load_s": round(costs.load_million_s * million),
        "week_s": round(surveys_s + conclude_s),
        "workers": workers,
        "week_workers_s": round(max(surveys_s / workers, longest_s) + conclude_s),
        "store_gb": round(costs.store_touch_b * touches / 2**30, 1),
        "record_gb": round(costs.record_touch_b * touches / 2**30, 1),
        "documents_gb": round(costs.documents_client_kb * clients / 2**20, 1),
        "dagster_gb": round(
            costs.dagster_client_week_kb * clients * HISTORY_WEEKS / 2**20, 1
        ),
    }  # fmt: skip


def measure_bytes(clients: int = 20, leads: int = 1000) -> dict[str, float]:
    """Bytes of a generated agency in PostgreSQL, in the store, and of its documents."""
    from datetime import UTC, datetime  # noqa: PLC0415

    import psycopg  # noqa: PLC0415

    from benchmarks.dagster_overhead import AS_OF, fill  # noqa: PLC0415
    from conversion_assets.domain.config import LearningConfig  # noqa: PLC0415
    from conversion_assets.domain.terms import PatternType  # noqa: PLC0415
    from conversion_assets.refresh.features import refresh_features  # noqa: PLC0415
    from conversion_assets.refresh.patterns import refresh_patterns  # noqa: PLC0415
    from conversion_assets.storage.columnar.store import FeatureStore  # noqa: PLC0415
    from conversion_assets.storage.database import create_database_engine  # noqa: PLC0415
    from conversion_assets_tests.databases import (  # noqa: PLC0415
        PostgresDatabases,
        running_postgres,
    )

    with running_postgres() as server, tempfile.TemporaryDirectory() as folder:
        databases = PostgresDatabases.create(server)
        with databases.fresh() as url:
            fill(url, clients, leads)
            engine = create_database_engine(url)
            store = FeatureStore(folder)
            manifest = refresh_features(engine, store).manifest
            touches = manifest.rows("touch_features")
            stored = sum(path.stat().st_size for path in Path(folder).rglob("*.parquet"))
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
                record = _relation_bytes(connection)
            names = [f"client-{number:04d}" for number in range(1, clients + 1)]
            refresh_patterns(
                engine, store, client_ids=names, kinds=list(PatternType), as_of=AS_OF,
                run_id="costs", config=LearningConfig(), now=lambda: datetime.now(UTC),
            )  # fmt: skip
            engine.dispose()
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
                after = _relation_bytes(connection)
            held = _survey_bytes(store, names)
    return {
        "clients": clients,
        "touches": touches,
        "store_touch_b": round(stored / touches, 1),
        "record_touch_b": round(record / touches, 1),
        "documents_client_kb": round((after - record) / clients / 1024, 1),
        "survey_client_kb": round(held / clients / 1024, 1),
    }


def _relation_bytes(connection: Any) -> int:
    return int(
        connection.execute(
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class"
            " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        ).fetchone()[0]
    )


def _survey_bytes(store: Any, names: list[str]) -> int:
    """Bytes of the frames that stand for the clients once their rows are dropped."""
    import polars as pl  # noqa: PLC0415

    from benchmarks.dagster_overhead import AS_OF  # noqa: PLC0415
    from conversion_assets.domain.config import LearningConfig  # noqa: PLC0415
    from conversion_assets.survey import survey_clients  # noqa: PLC0415

    leads, touches, _ = store.read_features(names)
    surveys, errors = survey_clients(leads, touches, names, as_of=AS_OF, config=LearningConfig())
    if errors:
        raise RuntimeError(str(errors))
    frames = [
        value for survey in surveys for value in vars(survey).values()
        if isinstance(value, pl.DataFrame)
    ]  # fmt: skip
    return sum(int(frame.estimated_size()) for frame in frames)


def fit_costs(results: Mapping[str, Any]) -> Costs:
    """Seconds and memory from what `make bench` measured; bytes as in `Costs`.

    Detection is taken for a sum of parts for the process, each client and each touch, memory for
    one of the process, each client and each row of a full shard; the parts that fit best and are
    not negative are found by least squares of the relative errors.
    """
    points = [
        *results["clients"]["points"],
        *results["one_client"]["points"],
        results["fifty"],
        results["thousand"],
    ]
    clients, touches, seconds, memory = (
        np.array([float(point[key] if key in point else point["ours"][key]) for point in points])
        for key in ("clients", "touches", "seconds", "peak_mb")
    )
    rows = touches * (1 + 1 / TOUCHES_A_LEAD)
    in_shard = np.where(clients == 1, rows, np.minimum(rows, ROWS_PER_SHARD))
    time_of = _fit([np.ones_like(clients), clients, touches / 1e6], seconds)
    memory_of = _fit([np.ones_like(clients), clients / 1024, in_shard / 1e6], memory)
    first = results["refresh"]["fifty"]
    load = first["first"]["seconds"] / (first["activities"] / 1e6)
    return replace(
        Costs(),
        learn_client_s=time_of[1],
        learn_million_s=time_of[2],
        load_million_s=load,
        base_mb=memory_of[0],
        survey_client_kb=memory_of[1],
        shard_million_mb=memory_of[2],
    )


def _fit(parts: list[np.ndarray], whole: np.ndarray) -> list[float]:
    found, _ = nnls(np.column_stack([part / whole for part in parts]), np.ones_like(whole))
    return [float(f"{value:.3g}") for value in found]


def write_duration(seconds: float) -> str:
    """Seconds in the unit that says something.

    Example:
        >>> [write_duration(seconds) for seconds in (53, 323, 5_400, 215_373)]
        ['53 s', '5 min', '1.5 h', '59.8 h']
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"


def write_table(costs: Costs) -> str:
    """Costs and what they make of fleets, as Markdown."""
    lines = ["| cost | |", "|---|---|"]
    lines += [f"| {LABELS[name]} | {value:,g} |" for name, value in asdict(costs).items()]
    plans = [plan(clients, touches, costs) for clients, touches in FLEETS]
    heads = " | ".join(f"{clients:,} clients" for clients, _ in FLEETS)
    lines += ["", f"| | {heads} |", f"|---|{'---|' * len(plans)}"]
    rows: dict[str, list[str]] = {
        "touches": [f"{p['touches']:,}" for p in plans],
        f"shards of {ROWS_PER_SHARD:,} rows": [f"{p['shards']:,}" for p in plans],
        "rows of the largest client, and so of the largest shard": [
            f"{p['largest_shard_rows']:,}" for p in plans
        ],
        "memory where a shard is surveyed, GB": [f"{p['worker_mb'] / 1024:.1f}" for p in plans],
        "memory where all is concluded, GB": [f"{p['conclude_mb'] / 1024:.1f}" for p in plans],
        "a week's learning, one machine": [write_duration(p["week_s"]) for p in plans],
        f"the same with {plans[0]['workers']} workers": [
            write_duration(p["week_workers_s"]) for p in plans
        ],
        "first load of features": [write_duration(p["first_load_s"]) for p in plans],
        "columnar store, GB": [f"{p['store_gb']:,.1f}" for p in plans],
        "system of record, GB": [f"{p['record_gb']:,.0f}" for p in plans],
        "patterns of one refresh with history, GB": [f"{p['documents_gb']:,.1f}" for p in plans],
        f"Dagster's tables with {HISTORY_WEEKS} weeks, GB": [
            f"{p['dagster_gb']:,.1f}" for p in plans
        ],
    }
    lines += [f"| {what} | {' | '.join(values)} |" for what, values in rows.items()]
    return "\n".join(lines)


def read_costs(path: Path | None) -> Costs:
    """Costs from a file of numbers by name; what it does not name is as in `Costs`."""
    if path is None:
        return Costs()
    known = asdict(Costs())
    given: Mapping[str, float] = json.loads(path.read_text())
    return Costs(**{name: given.get(name, value) for name, value in known.items()})


def main() -> None:
    """Print measured bytes, or a line for each fleet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet")
    parser.add_argument("what", choices=("costs", "plan"))
    parser.add_argument("--costs", type=Path, help="JSON with costs that were measured elsewhere")
    parser.add_argument("--workers", type=int, default=16)
    options = parser.parse_args()
    if options.what == "costs":
        print(json.dumps(measure_bytes(), indent=1))
        return
    costs = read_costs(options.costs)
    for clients, touches in FLEETS:
        print(json.dumps(plan(clients, touches, costs, workers=options.workers)))


if __name__ == "__main__":
    main()
