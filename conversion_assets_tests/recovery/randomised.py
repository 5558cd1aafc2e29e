"""Mark 8: a randomised experiment, imported and learned as any client's rows would be."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from conversion_assets_tests.recovery.experiment import (
    CLIENT,
    ExperimentConfig,
    generate_experiment,
    learn_experiment,
)
from conversion_assets_tests.recovery.marks import Mark


def measure_imported(config: ExperimentConfig | None = None) -> list[Mark]:
    """One experiment through files, importer, database, Dagster and documents, arm by arm."""
    settled = config or ExperimentConfig()
    with tempfile.TemporaryDirectory() as folder:
        document = learn_files(settled, Path(folder))
    truth = generate_experiment(settled).truth
    arms = {e["value"]: e for part in document["templates"].values() for e in part}
    rows = truth.select("arm", "value", "true_rate", "true_lift").iter_rows(named=True)
    detail, covered = {}, 0
    for row in rows:
        estimate = arms[row["value"]]
        lift_low, lift_high = estimate["lift_interval"]
        covered += lift_low <= row["true_lift"] <= lift_high
        detail[row["arm"]] = (
            f"true lift {row['true_lift']:.2f}, estimate {estimate['lift']:.2f}"
            f" ({lift_low:.2f} to {lift_high:.2f}), {estimate['k']} of {estimate['n']}"
        )
    return [
        # One draw: of three right 90 % intervals fewer than two hold the truth once in 36 times.
        Mark(8, "imported experiment: arms whose lift is covered", covered / truth.height,
             low=2 / 3, n=truth.height, detail=detail, world="experiment")
    ]  # fmt: skip


def learn_files(config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """WHAT document of an experiment that came in as Parquet files, by the command line."""
    experiment = generate_experiment(config)
    client = pl.DataFrame(
        {"id": [CLIENT], "name": [CLIENT], "timezone": ["Europe/Paris"],
         "subscription_status": ["active"], "pool_opt_in": [False]}
    )  # fmt: skip
    files = {"clients": client, "leads": experiment.leads, "activities": experiment.activities}
    options = []
    for name, frame in files.items():
        frame.write_parquet(folder / f"{name}.parquet")
        options += [f"--{name}", str(folder / f"{name}.parquet")]
    call_command(folder, "import", *options, "--json")
    call_command(folder, "learn", "--as-of", config.as_of.isoformat(), "--json")
    shown = call_command(folder, "patterns", CLIENT, "--type", "what", "--json")
    document: dict[str, Any] = shown["patterns"]["what"]
    return document


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


def measure_repeated(experiments: int, *, config: ExperimentConfig | None = None) -> list[Mark]:
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
                 n=arms.height, detail=detail, world="experiment")
        )  # fmt: skip
    return marks
