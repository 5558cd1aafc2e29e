"""A small generated agency and the bytes that are learned from it.

The rows are the project's generator's. With RECOVERY_WORLD=propensity in the environment they are
those of the generator of another mechanism, and every test that uses them runs on those.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from functools import lru_cache

import polars as pl

from conversion_assets.features import Features, build_features
from conversion_assets.learning import Detection, detect_patterns
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import Agency, generate_agency
from conversion_assets_tests.recovery.propensity_generator import (
    PropensityConfig,
    generate_propensity_agency,
)

CONFIG = SyntheticConfig(clients=8, leads=260, seed=11, pool_opt_in=0.8, base_conversion=0.25)


WORLD = os.environ.get("RECOVERY_WORLD", "hazard")


@lru_cache(maxsize=1)
def make_agency() -> Agency:
    """Generated once per process."""
    return _draw(CONFIG)


def make_strangers() -> Agency:
    """Clients of the same world that share with nobody."""
    return _draw(
        CONFIG.model_copy(update={"first_client": 100, "clients": 3, "pool_opt_in": 0.0, "seed": 5})
    )


def _draw(config: SyntheticConfig) -> Agency:
    agency = generate_agency(config)
    return _replace_rows(agency, config) if WORLD == "propensity" else agency


def _replace_rows(agency: Agency, config: SyntheticConfig) -> Agency:
    """Clients of the same names with leads and touches of the other mechanism."""
    other = generate_propensity_agency(
        PropensityConfig(
            clients=config.clients, first_client=config.first_client, leads=config.leads,
            seed=config.seed, rate=config.base_conversion, as_of=config.as_of,
            answers={("best_days", "Tuesday"): 1.6},
        )
    )  # fmt: skip
    names = dict(zip(other.clients["id"], agency.clients["id"], strict=True))
    leads, activities = (
        # What this generator does not speak of is null, in the columns of the project's.
        pl.concat([like.clear(), rows], how="diagonal_relaxed")
        .select(like.columns)
        .with_columns(pl.col("client_id").replace_strict(names))
        for like, rows in ((agency.leads, other.leads), (agency.activities, other.activities))
    )
    marked = activities.with_columns(pl.col("led_to_booking").fill_null(value=False))
    return replace(agency, leads=leads, activities=marked)


@lru_cache(maxsize=1)
def make_features() -> Features:
    """Features of the agency, built once per process."""
    agency = make_agency()
    return build_features(agency.clients, agency.leads, agency.activities)


def list_members(clients: pl.DataFrame) -> pl.DataFrame:
    """Clients as detection takes them."""
    return clients.select(client_id="id", pool_opt_in="pool_opt_in")


def detect(features: Features, clients: pl.DataFrame, as_of: datetime = CONFIG.as_of) -> Detection:
    """Learn from features."""
    return detect_patterns(features.leads, features.touches, list_members(clients), as_of=as_of)


def detect_raw(
    clients: pl.DataFrame,
    leads: pl.DataFrame,
    activities: pl.DataFrame,
    as_of: datetime = CONFIG.as_of,
) -> Detection:
    """Learn from raw rows."""
    return detect(build_features(clients, leads, activities), clients, as_of)


def write(detection: Detection, clients: Iterable[str] | None = None) -> dict[str, str]:
    """Every document as the JSON that would be stored, and every outcome, by client and type."""
    chosen = None if clients is None else set(clients)
    found = {
        f"{client}/{kind}": document.model_dump_json()
        for (client, kind), document in detection.documents.items()
    }
    found |= {f"{o.client_id}/{o.pattern_type}/outcome": o.model_dump_json()
              for o in detection.outcomes}  # fmt: skip
    return {k: v for k, v in found.items() if chosen is None or k.split("/")[0] in chosen}


def digest(written: dict[str, str]) -> str:
    """One line for all of them."""
    return hashlib.sha256(repr(sorted(written.items())).encode()).hexdigest()
