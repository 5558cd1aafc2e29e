"""One small generated agency for the tests of the forward record."""

from datetime import datetime, timedelta
from functools import cache

import polars as pl

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.forecasts import FORECASTS
from conversion_assets.evaluation.forward import forget_later
from conversion_assets.features import build_features
from conversion_assets.learning import Detection, detect_patterns
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import generate_agency

CONFIG = SyntheticConfig(clients=2, leads=2500, base_conversion=0.2, seed=8)
AS_OF = CONFIG.as_of
MADE = AS_OF - timedelta(days=91)
SETTINGS = LearningConfig()


@cache
def frames() -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Leads, touches, clients."""
    agency = generate_agency(CONFIG)
    features = build_features(agency.clients, agency.leads, agency.activities)
    clients = agency.clients.select(client_id="id", pool_opt_in="pool_opt_in")
    return features.leads, features.touches, clients


def detect(as_of: datetime, forecasts: pl.DataFrame | None = None, **given: pl.DataFrame):
    leads, touches, clients = frames()
    known = pl.DataFrame(schema=FORECASTS) if forecasts is None else forecasts
    return detect_patterns(
        given.get("leads", leads),
        given.get("touches", touches),
        clients,
        as_of=as_of,
        forecasts=forget_later(known, as_of),
    )


@cache
def first() -> Detection:
    """What is claimed at `MADE`."""
    return detect(MADE)
