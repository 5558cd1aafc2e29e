"""A client whose history came half complete, and what a backfill made of it."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import Engine, text

from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine
from conversion_assets.storage.importer import import_frames
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import Agency, generate_agency
from conversion_assets_tests.homes import AS_OF

CLIENT = "client-0001"

_NO_SCORE = {
    "als_score": pl.Float64,
    "als_tier": pl.String,
    "als_components": pl.String,
    "als_weights_used": pl.String,
    "scored_at": pl.Datetime("us", "UTC"),
}
# Columns that a backfill writes, with the key they stand at; times of computation are left out.
_WRITTEN = {
    "activities": "client_id, id, content_snapshot",
    "leads": "client_id, id, als_score, als_tier, als_components, als_weights_used, scored_at",
    "conversion_patterns": "client_id, pattern_type, patterns, sample_size, confidence, as_of, "
    "valid_until, code_version, input_fingerprint",
    "pattern_outcomes": "client_id, pattern_type, outcome, reason, error, as_of, code_version, "
    "input_fingerprint",
    "clients": "id, als_learned_weights, conversion_sample_count",
}


def generate_half_complete(leads: int, *, clients: int = 1, **config: Any) -> Agency:
    """An agency without snapshots and scores; what was sent stands in the metadata.

    Every fifth body is called message; one in fifty touches says nothing.
    """
    agency = generate_agency(
        SyntheticConfig(clients=clients, leads=leads, base_conversion=0.2, as_of=AS_OF, **config)
    )
    number = pl.int_range(pl.len())
    sent = pl.col("content_snapshot")
    activities = agency.activities.with_columns(
        metadata=pl.when(number % 50 == 0, sent.is_not_null())
        .then(pl.lit('{"campaign":"spring"}'))
        .when(number % 5 == 0)
        .then(sent.str.replace('"body":', '"message":', literal=True))
        .otherwise(sent),
        content_snapshot=pl.lit(None, dtype=pl.String),
    )
    unscored = agency.leads.with_columns(
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in _NO_SCORE.items()
    )
    return replace(agency, leads=unscored, activities=activities)


def import_agency(engine: Engine, agency: Agency, quarantine: Path) -> None:
    """Store an agency through the importer."""
    import_frames(
        engine,
        clients=agency.clients,
        leads=agency.leads,
        activities=agency.activities,
        quarantine_dir=quarantine,
    )


def describe_result(engine: Engine, store: FeatureStore) -> dict[str, Any]:
    """Hashes of everything a backfill writes: columns of the database, documents, the store."""
    with engine.connect() as connection:
        found = {
            table: _hash_rows(connection, f"SELECT {columns} FROM {table}")
            for table, columns in _WRITTEN.items()
        }
        ledger = connection.execute(text("SELECT progress FROM backfills WHERE error IS NULL"))
        found["ledger"] = sorted(_counts(row.progress) for row in ledger)
    manifest = store.load_manifest()
    found["store"] = {
        "version": manifest.feature_version,
        "clients": {c: one.fingerprint for c, one in manifest.clients.items()},
        "files": sorted(
            (table, file.bucket, file.rows, file.sha256)
            for table, files in manifest.files.items()
            for file in files
        ),
    }
    return found


def _hash_rows(connection: Any, query: str) -> str:
    order = ", ".join(str(place) for place in range(1, query.count(",") + 2))
    hashed = hashlib.sha256()
    ordered = f"{query} ORDER BY {order}"
    for row in connection.execution_options(stream_results=True).execute(text(ordered)):
        hashed.update(repr(tuple(row)).encode())
    return hashed.hexdigest()


def _counts(progress: Any) -> str:
    stages = json.loads(progress) if isinstance(progress, str) else progress
    return json.dumps(
        {stage: {**one, "seconds": 0} for stage, one in stages.items()}, sort_keys=True
    )


def run_child(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    kill_after: float | None = None,
    kill_when: Callable[[], bool] = lambda: False,
) -> tuple[int, float, float]:
    """Run a process, or kill it on the way; its status, seconds, and peak memory in MB."""
    started = time.monotonic()
    peak = 0.0
    child = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    while True:
        # Not what the kernel tells at the end: that counts the parent's memory at the fork too.
        peak = max(peak, _peak_mb(child.pid))
        code = child.poll()
        seconds = time.monotonic() - started
        if code is not None:
            return code, seconds, peak
        if (kill_after is not None and seconds > kill_after) or kill_when():
            child.send_signal(signal.SIGKILL)
        time.sleep(0.02)


def _peak_mb(pid: int) -> float:
    """Highest resident memory of a running process so far; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) / 1024 if found else 0.0


def kill_at_random(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    kills: int,
    lives: tuple[float, float],
    seed: int = 20260104,
) -> int:
    """Start a process and kill it, again and again; how often it really was killed."""
    moments = random.Random(seed)
    killed = 0
    for _ in range(kills):
        code, _, _ = run_child(command, environment, kill_after=moments.uniform(*lives))
        killed += code == -signal.SIGKILL
    return killed


def is_past(engine: Engine, share: float) -> bool:
    """Whether the content stage has done this share of its rows; above 1: learning has begun."""
    with engine.connect() as connection:
        found = connection.execute(text("SELECT progress FROM backfills")).scalar_one_or_none()
    progress = json.loads(found) if isinstance(found, str) else found or {}
    if share > 1:
        return "detectors" in progress
    content = progress.get("content", {"done": 0, "total": 1})
    return bool(content["done"] > share * content["total"])


def open_home(home: Path) -> tuple[Engine, FeatureStore]:
    """Database and store of an embedded home."""
    engine = create_database_engine(f"sqlite:///{home}/conversion.db")
    return engine, FeatureStore(home / "store")
