"""Whether a client's claims fail as a whole: more than half of them, beyond what chance allows.

A single lost claim loses its verdict by itself (`evaluation.forward`), and one in ten acts is
promised to be false. What somebody must hear of is a record in which most claims do not come true.

Two e-values per claim: how much likelier its outcomes are without the effect than with it
(`evidence_against`), and a bet on its counts missing the 90 % predictive intervals. Each is at most
1 on average while the claim is true, however often one looks. The claims of a client share leads,
so nothing is assumed about how they hang together: the mean of the smaller half of the e-values is
an e-value against "at least half of the claims are true".

Source:
    Vovk & Wang 2021 (means of e-values under any dependence; the smallest ones, as for partial
    conjunction hypotheses in Benjamini & Heller 2008).
"""

from datetime import datetime

import numpy as np
import polars as pl

from conversion_assets.domain.config import LearningConfig
from conversion_assets.evaluation.forward import build_record, forget_later

MISS_RATE = 0.10
"""Counts outside of a 90 % interval while the claim is true; whole counts miss a little less."""
BETS = (0.3, 0.5, 0.8)
"""Miss rates that the bet is spread over evenly: from worse than stated to hardly ever right."""

RECORDS: dict[str, pl.DataType] = {
    "client_id": pl.String(),
    "pattern_type": pl.String(),
    "claims": pl.Int64(),
    "lost": pl.Int64(),
    "lift_evidence": pl.Float64(),
    "coverage_evidence": pl.Float64(),
}


def judge_records(forecasts: pl.DataFrame, as_of: datetime, config: LearningConfig) -> pl.DataFrame:
    """Evidence that more than half of a client's claims fail.

    Args:
        forecasts: Columns of `FORECASTS`, of any clients.
        as_of: Nothing given later counts.
        config: Learning window: what is older is forgotten.

    Returns:
        Columns of `RECORDS`, one row per client and type with claims that expect enough to be
        judged, sorted by both. A figure of 100 is met by a client whose claims are mostly true
        with a probability of at most 1 %.
    """
    record = build_record(forget_later(forecasts, as_of), as_of, config).filter(
        pl.col("status") != "too_few"
    )
    missed = (record["judged"] - record["inside"]).to_numpy().astype(np.float64)
    met = record["inside"].to_numpy().astype(np.float64)
    bets = [
        (rate / MISS_RATE) ** missed * ((1.0 - rate) / (1.0 - MISS_RATE)) ** met for rate in BETS
    ]
    weaker_half = (pl.len() + 1) // 2
    return (
        record.with_columns(coverage=np.mean(bets, axis=0))
        .group_by("client_id", "pattern_type")
        .agg(
            claims=pl.len(),
            lost=(pl.col("status") == "lost").sum(),
            lift_evidence=pl.col("evidence_against").sort().head(weaker_half).mean(),
            coverage_evidence=pl.col("coverage").sort().head(weaker_half).mean(),
        )
        .select(pl.col(name).cast(kind) for name, kind in RECORDS.items())
        .sort("client_id", "pattern_type")
    )
