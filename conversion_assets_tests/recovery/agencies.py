"""Generated agencies with their learned cells and the true rate of each cell beside it.

The generator keeps the hazard of every touch sent and the probability of every lead. Given the
rows that a detector counts, the true rate of a cell is the mean over its rows, and its true lift
is what the detector's own adjustment (expected counts within strata) gives when hazards stand in
the place of outcomes. Both are computed here without any code of the detectors but the list of
dimensions and the selection of rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from conversion_assets.detectors.cells import Dimension
from conversion_assets.detectors.how import build_dimensions as build_how
from conversion_assets.detectors.population import select_population
from conversion_assets.detectors.what import build_dimensions as build_what
from conversion_assets.detectors.when import build_dimensions as build_when
from conversion_assets.detectors.who import build_dimensions as build_who
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.patterns import (
    AnyPattern,
    Estimate,
    HowPattern,
    WhatPattern,
    WhenPattern,
    WhoPattern,
)
from conversion_assets.features import build_features
from conversion_assets.learning import Detection, detect_patterns
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import Agency, generate_agency
from conversion_assets_tests.recovery.propensity_generator import (
    PropensityAgency,
    PropensityConfig,
    generate_propensity_agency,
)
from conversion_assets_tests.recovery.raw_rates import rank_by_raw_rates

# Raw text of this many leads is held at once; the features of all stay.
BATCH_LEADS = 40_000
TRUTH_NAMES = {"size_analysis": "size_analysis.distribution", "subject_length": "",
               "optimal_length": ""}  # fmt: skip
"""Detector dimensions that the generator's truth calls otherwise; empty: it never touches them."""
SEQUENCE = "winning_sequences"


@dataclass(frozen=True)
class Learned:
    """One generated agency after learning.

    Attributes:
        cells: one row per estimate of every document: client_id, dimension, value, n, k, rate,
            shrunk_rate, low, high, lift, lift_low, lift_high, q_value, verdict, reversed (a
            reversal is listed), true_rate, true_lift (null for sequences), is_null (nothing was
            planted that touches the dimension).
        baseline: the same clients as the method of raw rates ranks them: client_id, dimension,
            value, n, k, rate, lift, is_win, true_rate, true_lift, is_null.
        detection: documents and outcomes.
        truth: the generator's record.
    """

    cells: pl.DataFrame
    baseline: pl.DataFrame
    detection: Detection
    truth: dict[str, Any]

    @property
    def clients(self) -> int:
        """Number of clients with at least one document."""
        return len({client for client, _ in self.detection.documents})


def learn_agency(config: SyntheticConfig, settings: LearningConfig | None = None) -> Learned:
    """Generate, build features in batches of clients, learn, and put the truth beside."""
    size = max(1, BATCH_LEADS // max(config.leads, 1))
    parts = []
    for first in range(config.first_client, config.first_client + config.clients, size):
        count = min(size, config.first_client + config.clients - first)
        agency = generate_agency(
            config.model_copy(update={"first_client": first, "clients": count})
        )
        hazards = agency.latent_touches.select("activity_id", p="hazard")
        chances = agency.latent_leads.select("lead_id", p="probability")
        parts.append(_build(agency, hazards, chances))
    return learn_parts(parts, config.as_of, settings)


def learn_propensity(config: PropensityConfig, settings: LearningConfig | None = None) -> Learned:
    """The same for the generator of the other mechanism."""
    size = max(1, BATCH_LEADS // max(config.leads, 1))
    parts = []
    for first in range(config.first_client, config.first_client + config.clients, size):
        count = min(size, config.first_client + config.clients - first)
        agency = generate_propensity_agency(replace(config, first_client=first, clients=count))
        hazards = agency.latent_touches.select("activity_id", p="hazard")
        chances = agency.latent_leads.select("lead_id", p="chance")
        parts.append(_build(agency, hazards, chances))
    return learn_parts(parts, config.as_of, settings)


@dataclass(frozen=True)
class Part:
    """Features of some clients with what is known of their rows.

    Attributes:
        leads: `lead_features`.
        touches: `touch_features`.
        members: client_id, pool_opt_in.
        hazards: activity_id and p, the probability of each touch to convert.
        chances: lead_id and p, the probability of each lead.
        truth: the generator's record.
    """

    leads: pl.DataFrame
    touches: pl.DataFrame
    members: pl.DataFrame
    hazards: pl.DataFrame
    chances: pl.DataFrame
    truth: dict[str, Any]


def _build(agency: Agency | PropensityAgency, hazards: pl.DataFrame, chances: pl.DataFrame) -> Part:
    features = build_features(agency.clients, agency.leads, agency.activities)
    members = agency.clients.select(client_id="id", pool_opt_in="pool_opt_in")
    return Part(features.leads, features.touches, members, hazards, chances, agency.truth)


def learn_parts(parts: list[Part], as_of: datetime, settings: LearningConfig | None) -> Learned:
    """Learn all clients together, and put the truth and the baseline beside."""
    leads, touches, members, hazards, chances = (
        pl.concat([getattr(part, name) for part in parts])
        for name in ("leads", "touches", "members", "hazards", "chances")
    )
    truth = {**parts[0].truth, "clients": [c for part in parts for c in part.truth["clients"]],
             "effects": [e for part in parts for e in part.truth["effects"]]}  # fmt: skip
    settled = settings or LearningConfig()
    detection = detect_patterns(leads, touches, members, as_of=as_of, config=settled)
    true = compute_true_cells(
        leads, touches, hazards, chances, members["client_id"].to_list(), as_of, settled
    )

    def put_truth(cells: pl.DataFrame) -> pl.DataFrame:
        return (
            cells.join(true, on=["client_id", "dimension", "value"], how="left")
            .join(list_affected(truth), on=["client_id", "dimension"], how="left")
            .with_columns(is_null=pl.col("is_affected").is_null())
            .drop("is_affected")
        )

    return Learned(
        put_truth(tabulate_documents(detection)),
        put_truth(rank_by_raw_rates(leads, touches)),
        detection,
        truth,
    )


def list_affected(truth: dict[str, Any]) -> pl.DataFrame:
    """client_id and dimension wherever some rate truly differs, with is_affected."""
    own = {name: detector for detector, name in TRUTH_NAMES.items() if name}
    rows = [
        (client["client_id"], own.get(name, name), True)
        for client in truth["clients"]
        for name in client["affected_dimensions"]
    ]
    schema = {"client_id": pl.String, "dimension": pl.String, "is_affected": pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row")


def compute_true_cells(
    leads: pl.DataFrame,
    touches: pl.DataFrame,
    hazards: pl.DataFrame,
    chances: pl.DataFrame,
    client_ids: list[str],
    as_of: datetime,
    settings: LearningConfig,
) -> pl.DataFrame:
    """True rate and adjusted lift of every cell of leads and touches."""
    population = select_population(leads, touches, client_ids, as_of, settings)
    # Young leads are left out, but of the youngest that remain a few will convert yet: their
    # chance until now is what is counted, and the same for all values.
    frames = {
        "leads": population.leads.join(chances, on="lead_id"),
        "touches": population.touches.join(hazards, on="activity_id"),
    }
    dimensions = [*build_who(), *build_what(touches.columns), *build_when(), *build_how()]
    parts = [_true_dimension(frames[d.rows], d) for d in dimensions if d.rows in frames]
    names = pl.DataFrame(
        {"client": range(len(population.client_ids)), "client_id": population.client_ids},
        schema={"client": pl.Int32, "client_id": pl.String},
    )
    return pl.concat(parts).join(names, on="client").drop("client")


def _true_dimension(rows: pl.DataFrame, dimension: Dimension) -> pl.DataFrame:
    keys = ["client", *dimension.within, *dimension.strata]
    rows = rows.with_columns(**getattr(dimension, "bins", {})).filter(dimension.counts_in)
    base = rows.group_by(keys).agg(mean=pl.col("p").mean())
    labels: dict[str | None, pl.Expr] = (
        {None: dimension.value}
        if dimension.value is not None
        else {
            label: pl.when(column).then(pl.lit(label)) for label, column in dimension.flags.items()
        }
    )
    counted = [
        rows.select(*keys, "p", value=label.cast(pl.String))
        .filter(pl.col("value").is_not_null())
        .group_by("value", *keys)
        .agg(n=pl.len(), p=pl.col("p").sum())
        for label in labels.values()
    ]
    return (
        pl.concat(counted)
        .join(base, on=keys, nulls_equal=True)
        .group_by("client", "value")
        .agg(n=pl.col("n").sum(), p=pl.col("p").sum(), e=(pl.col("n") * pl.col("mean")).sum())
        .select(
            "client", "value", dimension=pl.lit(dimension.name),
            true_rate=pl.col("p") / pl.col("n"), true_lift=pl.col("p") / pl.col("e"),
        )
    )  # fmt: skip


def tabulate_documents(detection: Detection) -> pl.DataFrame:
    """Every estimate of every document under the detector's own names."""
    schema = {
        "client_id": pl.String, "dimension": pl.String, "value": pl.String, "n": pl.Int64,
        "k": pl.Int64, "rate": pl.Float64, "shrunk_rate": pl.Float64, "low": pl.Float64,
        "high": pl.Float64, "lift": pl.Float64, "lift_low": pl.Float64, "lift_high": pl.Float64,
        "q_value": pl.Float64, "verdict": pl.String, "reversed": pl.Boolean,
    }  # fmt: skip
    rows = [
        (
            client, dimension, value, e.n, e.k, e.rate, e.shrunk_rate, *e.interval, e.lift,
            *e.lift_interval, e.q_value, e.verdict.value, bool(e.reversals),
        )
        for (client, _), document in detection.documents.items()
        for dimension, value, e in list_cells(document)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def list_cells(document: AnyPattern) -> Iterator[tuple[str, str, Estimate]]:
    """Dimension, value as the detector labels it, and estimate of every cell of a document."""
    listing: dict[type[Any], Any] = {
        WhoPattern: _list_who,
        WhatPattern: _list_what,
        WhenPattern: _list_when,
        HowPattern: _list_how,
    }
    for dimension, prefix, estimates in listing[type(document)](document):
        for estimate in estimates:
            yield dimension, prefix + _label(estimate.value), estimate


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "\x1f".join(value) if isinstance(value, list) else str(value)


Listing = Iterator[tuple[str, str, list[Estimate]]]


def _list_who(document: WhoPattern) -> Listing:
    for name in ("seniority", "function", "title"):
        yield f"title_rankings.{name}", "", getattr(document.title_rankings, name)
    for name in ("industry_rankings", "source_rankings", "country_rankings"):
        yield name, "", getattr(document, name)
    yield "size_analysis", "", document.size_analysis.distribution
    for name in ("new_role", "hiring", "funded"):
        signal = getattr(document.timing_signals, name)
        found = [] if signal is None else [signal, signal.without]
        yield f"timing_signals.{name}", "", [e for e in found if e is not None]


def _list_what(document: WhatPattern) -> Listing:
    subjects = [*document.subject_patterns.winning, *document.subject_patterns.losing]
    lengths = {"short", "medium", "long"}
    yield "subject_patterns", "", [e for e in subjects if e.value not in lengths]
    yield "subject_length", "", [e for e in subjects if e.value in lengths]
    yield "pain_points", "", [*document.pain_points.effective, *document.pain_points.ineffective]
    yield "ctas.effective", "", document.ctas.effective
    yield "ctas.by_type", "", document.ctas.by_type
    yield "angles", "", document.angles
    for channel, length in document.optimal_length.items():
        yield "optimal_length", f"{channel}|", length.distribution
    yield "personalization_lift", "", list(document.personalization_lift.values())
    yield "templates", "", [*document.templates.top, *document.templates.bottom]


def _list_when(document: WhenPattern) -> Listing:
    for name in ("best_days", "best_hours", "day_hour", "touch_hazard"):
        yield name, "", getattr(document, name)
    for gap in document.optimal_gaps:
        yield "optimal_gaps", f"{gap.position}|", gap.hazards


def _list_how(document: HowPattern) -> Listing:
    yield "first_touch", "", document.first_touch
    yield "multi_channel", "", document.multi_channel
    yield SEQUENCE, "", document.winning_sequences
    for tier, estimates in document.channel_by_tier.items():
        yield "channel_by_tier", f"{tier}|", estimates


def root_mean_square(values: pl.Series) -> float:
    """Square root of the mean square."""
    return float(np.sqrt((values.to_numpy() ** 2).mean()))
