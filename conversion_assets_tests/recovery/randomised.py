"""Mark 8: a randomised experiment, imported and learned as any client's rows would be."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from conversion_assets_tests.recovery.experiment import (
    CLIENT,
    ExperimentConfig,
    learn_experiment,
)
from conversion_assets_tests.recovery.marks import Mark
from conversion_assets_tests.recovery.propensity_experiment import PropensityExperimentConfig

AnyConfig = ExperimentConfig | PropensityExperimentConfig


def measure_imported(experiments: int = 4, config: AnyConfig | None = None) -> list[Mark]:
    """Experiments of several clients through files, importer, database, Dagster and documents."""
    settled = config or ExperimentConfig()
    drawn = [replace(settled, seed=seed) for seed in range(1, experiments + 1)]
    with tempfile.TemporaryDirectory() as folder:
        documents = learn_files(drawn, Path(folder))
    detail, covered, total = {}, 0, 0
    for one, document in zip(drawn, documents, strict=True):
        arms = {e["value"]: e for part in document["templates"].values() for e in part}
        for row in one.draw().truth.iter_rows(named=True):
            estimate = arms[row["value"]]
            low, high = estimate["lift_interval"]
            covered += low <= row["true_lift"] <= high
            total += 1
            detail[f"experiment {one.seed}, {row['arm']}"] = (
                f"true lift {row['true_lift']:.2f}, estimate {estimate['lift']:.2f}"
                f" ({low:.2f} to {high:.2f}), {estimate['k']} of {estimate['n']}"
            )
    # Of twelve right 90 % intervals fewer than nine hold the truth once in 39 times.
    return [
        Mark(8, "imported experiments: arms whose lift is covered", covered / total, low=0.75,
             n=total, detail=detail, world=settled.world)
    ]  # fmt: skip


def learn_files(configs: Sequence[AnyConfig], folder: Path) -> list[dict[str, Any]]:
    """WHAT documents of experiments that came in as Parquet files, a client each, by commands."""
    names = [f"{CLIENT}-{place}" for place in range(len(configs))]
    clients = pl.DataFrame(
        {"id": names, "name": names, "timezone": "Europe/Paris",
         "subscription_status": "active", "pool_opt_in": False}
    )  # fmt: skip
    drawn = [config.draw() for config in configs]
    files = {
        "clients": clients,
        "leads": pl.concat(
            _rename(one.leads, name, "id") for one, name in zip(drawn, names, strict=True)
        ),
        "activities": pl.concat(
            _rename(one.activities, name, "id", "lead_id")
            for one, name in zip(drawn, names, strict=True)
        ),
    }
    options = []
    for name, frame in files.items():
        frame.write_parquet(folder / f"{name}.parquet")
        options += [f"--{name}", str(folder / f"{name}.parquet")]
    call_command(folder, "import", *options, "--json")
    call_command(folder, "learn", "--as-of", configs[0].as_of.isoformat(), "--json")
    return [
        call_command(folder, "patterns", name, "--type", "what", "--json")["patterns"]["what"]
        for name in names
    ]


def _rename(rows: pl.DataFrame, client: str, *ids: str) -> pl.DataFrame:
    """Rows of another client, with ids of their own."""
    return rows.with_columns(
        *((pl.lit(client + "/") + pl.col(name)).alias(name) for name in ids),
        client_id=pl.lit(client),
    )


def call_command(folder: Path, *arguments: str) -> Any:
    """What a command prints as JSON, in a process and a home of its own.

    Raises:
        RuntimeError: it ended with another status than 0.
    """
    done = subprocess.run(
        [sys.executable, "-m", "conversion_assets.cli", *arguments],
        env={**os.environ, "CONVERSION_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    return json.loads(done.stdout)


def measure_repeated(experiments: int, *, config: AnyConfig | None = None) -> list[Mark]:
    """The same experiment drawn anew: share of arms whose interval covers the truth."""
    settled = config or ExperimentConfig()
    arms = pl.concat([learn_experiment(replace(settled, seed=s)) for s in range(experiments)])
    raw = arms.select(pl.col("true_rate").is_between("own_low", "own_high").mean()).item()
    marks = []
    for what, covers in (
        ("lift", pl.col("true_lift").is_between("lift_low", "lift_high")),
        ("rate", pl.col("true_rate").is_between("rate_low", "rate_high")),
    ):
        by = arms.group_by("arm", "true_lift").agg(
            share=covers.mean(),
            mean=pl.col("lift").mean(),
            acts=(pl.col("verdict") == "act").mean(),
        )
        detail = {
            row["arm"]: f"{row['share']:.2f} covered, true lift {row['true_lift']:.2f}, mean "
            f"estimate {row['mean']:.2f}, an act in {row['acts']:.0%}"
            for row in by.sort("arm").iter_rows(named=True)
        }
        detail["Jeffreys' interval of the arm alone"] = f"{raw:.3f}"
        share = arms.select(covers.mean()).item()
        marks.append(
            Mark(8, f"repeated experiments: intervals of the {what} cover", share, low=0.88,
                 n=arms.height, detail=detail, world=settled.world)
        )  # fmt: skip
    return marks
