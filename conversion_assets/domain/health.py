"""Rules of health: what is wrong with a client's patterns, with the numbers that say so.

Pure and vectorised: three frames in, findings out, one query plan per rule over all clients.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from conversion_assets.domain.config import HealthConfig
from conversion_assets.domain.terms import (
    SCORE_COMPONENTS,
    WEIGHT_BOUNDS,
    WEIGHT_SUM,
    HealthRule,
    OutcomeKind,
    PatternType,
    Severity,
)

WEIGHT_TOLERANCE = 1e-6
"""How far weights may miss their sum or bounds: far above rounding, far below any effect."""


@dataclass(frozen=True)
class HealthFinding:
    """One thing that is wrong with one client.

    Attributes:
        client_id: The client.
        pattern_type: The pattern; None where the finding is about the client's rows.
        rule: The rule that was broken.
        severity: How bad it is.
        message: One sentence with the numbers.
        numbers: What was measured and the threshold it broke, by name.
        subject: What the finding is about where a pattern can break a rule several times, for
            example the name of a weight; else empty.
    """

    client_id: str
    pattern_type: PatternType | None
    rule: HealthRule
    severity: Severity
    message: str
    numbers: dict[str, Any] = field(default_factory=dict)
    subject: str = ""

    @property
    def finding_id(self) -> str:
        """Stable id: the same client, pattern, rule and subject give the same one for ever."""
        return make_finding_id(self.client_id, self.pattern_type, self.rule, self.subject)


def make_finding_id(
    client_id: str, pattern_type: PatternType | None, rule: HealthRule, subject: str = ""
) -> str:
    """Return the id of a finding: 16 hexadecimal digits.

    Example:
        >>> make_finding_id("acme", PatternType.WHO, HealthRule.EXPIRED)
        '486bc3e28017285c'
    """
    parts = json.dumps([client_id, pattern_type, rule, subject])
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class HealthInputs:
    """What the rules look at.

    Attributes:
        clients: One row per client to check: client_id, is_active (a learning run chooses it),
            conversions (Int64), newest_leads_at and newest_activities_at (nullable).
        patterns: One row per stored pattern: client_id, pattern_type, sample_size, confidence,
            valid_until, document_error (null when the document fits its schema), excluded_rows
            and excluded_of (rows with the most frequent defect of the data, and the rows it was
            looked for in), and the recommended weights of WHO in one nullable column per score
            component.
        outcomes: Last outcome per client and type: client_id, pattern_type, outcome, reason,
            error.
        drift: What the last refresh found changed: client_id and the fields of `facts.Drift`.
        facts: One row per client with facts of its last refresh: client_id, drift_error, the fields
            of `facts.Borrowing` (null where nothing was borrowed), lenders (known members of the
            pool) and strangers (those of them that had not opted in when it was made).
        records: One row per client and type with graded claims, see `evaluation.failing`.
    """

    clients: pl.DataFrame
    patterns: pl.DataFrame
    outcomes: pl.DataFrame
    drift: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=DRIFT_SCHEMA))
    facts: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=FACTS_SCHEMA))
    records: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=RECORD_SCHEMA))


CLIENT_SCHEMA: dict[str, Any] = {
    "client_id": pl.String,
    "is_active": pl.Boolean,
    "conversions": pl.Int64,
    "newest_leads_at": pl.Datetime("us", "UTC"),
    "newest_activities_at": pl.Datetime("us", "UTC"),
}
PATTERN_SCHEMA: dict[str, Any] = {
    "client_id": pl.String,
    "pattern_type": pl.String,
    "sample_size": pl.Int64,
    "confidence": pl.Float64,
    "valid_until": pl.Datetime("us", "UTC"),
    "document_error": pl.String,
    "excluded_rows": pl.Int64,
    "excluded_of": pl.Int64,
    **dict.fromkeys(SCORE_COMPONENTS, pl.Float64),
}
OUTCOME_SCHEMA: dict[str, Any] = {
    name: pl.String for name in ("client_id", "pattern_type", "outcome", "reason", "error")
}
DRIFT_SCHEMA: dict[str, Any] = {
    "client_id": pl.String,
    "question": pl.String,
    "dimension": pl.String,
    "n_old": pl.Int64,
    "n_new": pl.Int64,
    "change": pl.Float64,
    "p_value": pl.Float64,
    "tests": pl.Int64,
}
FACTS_SCHEMA: dict[str, Any] = {
    "client_id": pl.String,
    "drift_error": pl.String,
    "cells": pl.Int64,
    "least_contributors": pl.Int64,
    "largest_share": pl.Float64,
    "excess": pl.Float64,
    "lenders": pl.Int64,
    "strangers": pl.Int64,
}
RECORD_SCHEMA: dict[str, Any] = {
    "client_id": pl.String,
    "pattern_type": pl.String,
    "claims": pl.Int64,
    "lost": pl.Int64,
    "lift_evidence": pl.Float64,
    "coverage_evidence": pl.Float64,
}

POOL_LEAST_CONTRIBUTORS = 5
POOL_LARGEST_SHARE = 0.25
"""What clients were promised when they opted in to the pool: at least five others, none of which
weighs more than a quarter. Fixed here, whatever a deployment configures for learning."""

LEAST_CLAIMS = 3
"""Graded claims of a type below which there is no record to speak of: a claim that is lost alone
has lost its verdict already, and one in ten is promised to be false."""


def find_problems(
    inputs: HealthInputs, *, now: datetime, config: HealthConfig
) -> list[HealthFinding]:
    """Return every finding of the given clients, ordered by client, type, rule and subject.

    A client that gave no result, or whose last result failed, has a finding: what produced
    nothing is never counted healthy.

    Args:
        inputs: Clients to check and what is stored of them; rows of other clients are ignored.
        now: Aware time.
        config: Thresholds.
    """
    checked = inputs.clients.select("client_id")
    chosen = HealthInputs(
        inputs.clients,
        inputs.patterns.join(checked, on="client_id", how="semi"),
        inputs.outcomes.join(checked, on="client_id", how="semi"),
        **{
            # Facts of a refresh that stored nothing are nobody's.
            name: getattr(inputs, name)
            .join(checked, on="client_id", how="semi")
            .join(inputs.patterns, on="client_id", how="semi")
            for name in ("drift", "facts", "records")
        },
    )
    frames = [rule(chosen, now, config) for rule in _RULES]
    found = pl.concat(frames).sort("client_id", "pattern_type", "rule", "subject")
    return [
        HealthFinding(
            client_id=client_id,
            pattern_type=PatternType(kind) if kind is not None else None,
            rule=HealthRule(rule),
            subject=subject,
            severity=Severity(severity),
            message=message,
            numbers=json.loads(numbers),
        )
        for client_id, kind, rule, subject, severity, message, numbers in found.iter_rows()
    ]


def _state(
    broken: pl.DataFrame,
    rule: HealthRule,
    severity: Severity | pl.Expr,
    message: pl.Expr,
    *numbers: pl.Expr,
) -> pl.DataFrame:
    """Findings from the rows that break a rule; `pattern_type` and `subject` may be absent."""
    present = set(broken.columns)
    kind = pl.col("pattern_type") if "pattern_type" in present else pl.lit(None, pl.String)
    return broken.select(
        "client_id",
        kind.alias("pattern_type"),
        rule=pl.lit(str(rule)),
        subject=pl.col("subject") if "subject" in present else pl.lit(""),
        severity=pl.lit(str(severity)) if isinstance(severity, Severity) else severity,
        message=message,
        numbers=pl.struct(*numbers).struct.json_encode() if numbers else pl.lit("{}"),
    )


def _days(span: pl.Expr) -> pl.Expr:
    return span.dt.total_microseconds() / 86_400e6


def _iso(moment: pl.Expr) -> pl.Expr:
    return moment.dt.strftime("%Y-%m-%dT%H:%M:%SZ")


def _find_expired(inputs: HealthInputs, now: datetime, config: HealthConfig) -> pl.DataFrame:
    timed = inputs.patterns.with_columns(
        days_left=_days(pl.col("valid_until") - pl.lit(now)), until=_iso(pl.col("valid_until"))
    )
    numbers = (pl.col("days_left").round(2), pl.col("until").alias("valid_until"))
    expired = _state(
        timed.filter(pl.col("days_left") <= 0),
        HealthRule.EXPIRED,
        Severity.HIGH,
        pl.format("expired {} days ago, at {}", (-pl.col("days_left")).round(1), "until"),
        *numbers,
    )
    soon = _state(
        timed.filter(pl.col("days_left") > 0, pl.col("days_left") <= config.expires_soon_days),
        HealthRule.EXPIRES_SOON,
        Severity.MEDIUM,
        pl.format("expires in {} days, at {}", pl.col("days_left").round(1), "until"),
        *numbers,
    )
    return pl.concat([expired, soon])


def _find_weak(inputs: HealthInputs, _now: datetime, config: HealthConfig) -> pl.DataFrame:
    few = _state(
        inputs.patterns.filter(pl.col("sample_size") < config.minimum_sample),
        HealthRule.LOW_SAMPLE,
        Severity.MEDIUM,
        pl.format("rests on {} leads, fewer than {}", "sample_size", config.minimum_sample),
        pl.col("sample_size"),
        pl.lit(config.minimum_sample).alias("threshold"),
    )
    unsure = _state(
        inputs.patterns.filter(pl.col("confidence") < config.minimum_confidence),
        HealthRule.LOW_CONFIDENCE,
        Severity.MEDIUM,
        pl.format(
            "confidence is {}, below {}", pl.col("confidence").round(3), config.minimum_confidence
        ),
        pl.col("confidence"),
        pl.lit(config.minimum_confidence).alias("threshold"),
    )
    return pl.concat([few, unsure])


def _find_extreme_weights(
    inputs: HealthInputs, _now: datetime, config: HealthConfig
) -> pl.DataFrame:
    weights = inputs.patterns.unpivot(
        list(SCORE_COMPONENTS),
        index=["client_id", "pattern_type"],
        variable_name="subject",
        value_name="weight",
    )
    extremes = [
        ("above", Severity.HIGH, pl.col("weight") > config.highest_weight, config.highest_weight),
        ("below", Severity.MEDIUM, pl.col("weight") < config.lowest_weight, config.lowest_weight),
    ]
    return pl.concat(
        _state(
            weights.filter(is_extreme),
            HealthRule.EXTREME_WEIGHT,
            severity,
            pl.format(
                "weight of {} is {}, {} {}",
                "subject",
                pl.col("weight").round(3),
                pl.lit(side),
                threshold,
            ),
            pl.col("weight"),
            pl.lit(threshold).alias("threshold"),
        )
        for side, severity, is_extreme, threshold in extremes
    )


def _find_invalid(inputs: HealthInputs, _now: datetime, _config: HealthConfig) -> pl.DataFrame:
    low, high = WEIGHT_BOUNDS
    weights = [pl.col(name) for name in SCORE_COMPONENTS]
    total = pl.sum_horizontal(weights, ignore_nulls=False)
    is_out = pl.any_horizontal(
        (w < low - WEIGHT_TOLERANCE) | (w > high + WEIGHT_TOLERANCE) for w in weights
    )
    wrong = inputs.patterns.with_columns(total=total).filter(
        ((pl.col("total") - WEIGHT_SUM).abs() > WEIGHT_TOLERANCE) | is_out
    )
    shown = [w.round(3).cast(pl.String).fill_null("none") for w in weights]
    unusable = _state(
        wrong,
        HealthRule.INVALID_WEIGHTS,
        Severity.HIGH,
        pl.format(
            "weights {}, {}, {}, {} sum to {}; they must sum to {} within [{}, {}]",
            *shown,
            pl.col("total").round(3).cast(pl.String).fill_null("nothing"),
            WEIGHT_SUM,
            low,
            high,
        ),
        *weights,
        pl.col("total").alias("sum"),
    )
    malformed = _state(
        inputs.patterns.filter(pl.col("document_error").is_not_null()),
        HealthRule.INVALID_DOCUMENT,
        Severity.HIGH,
        pl.format("document does not fit its schema: {}", "document_error"),
    )
    return pl.concat([unusable, malformed])


def _find_absent(inputs: HealthInputs, _now: datetime, config: HealthConfig) -> pl.DataFrame:
    """Missing patterns, failed outcomes, and results that never came."""
    kinds = pl.DataFrame({"pattern_type": [str(kind) for kind in PatternType]})
    key = ["client_id", "pattern_type"]
    expected = (
        inputs.clients.join(kinds, how="cross")
        .join(inputs.patterns.select(*key, is_stored=True), on=key, how="left")
        .join(inputs.outcomes, on=key, how="left")
    )
    is_absent = pl.col("is_stored").is_null()
    stated = pl.col("reason").replace("", None)
    why = pl.coalesce("error", stated, pl.lit("no reason is recorded"))
    missing = _state(
        expected.filter(is_absent, pl.col("conversions") >= config.missing_from_conversions),
        HealthRule.MISSING_PATTERN,
        Severity.MEDIUM,
        pl.format("not stored although the client has {} conversions: {}", "conversions", why),
        pl.col("conversions"),
        pl.lit(config.missing_from_conversions).alias("threshold"),
    )
    failed = _state(
        expected.filter(pl.col("outcome") == str(OutcomeKind.FAILED)),
        HealthRule.FAILED,
        Severity.HIGH,
        pl.format("the last learning run failed: {}", why),
    )
    nothing = _state(
        expected.filter("is_active", is_absent, pl.col("outcome").is_null()),
        HealthRule.NO_RESULT,
        Severity.HIGH,
        pl.lit("the client is active but no learning run gave any result for it"),
    )
    return pl.concat([missing, failed, nothing])


def _find_bad_sources(inputs: HealthInputs, now: datetime, config: HealthConfig) -> pl.DataFrame:
    share = pl.col("excluded_rows") / pl.col("excluded_of")
    # Documents of different types may rest on different rows: the worst share is told once.
    worst = (
        inputs.patterns.filter(pl.col("excluded_of") > 0)
        .with_columns(share=share)
        .sort("client_id", "share", "excluded_of", descending=[False, True, True])
        .unique("client_id", keep="first", maintain_order=True)
    )
    defects = _state(
        worst.filter(pl.col("share") > config.excluded_share).drop("pattern_type"),
        HealthRule.EXCLUDED_ROWS,
        Severity.MEDIUM,
        pl.format(
            "{} of {} touches have a defect and were left out or corrected",
            "excluded_rows",
            "excluded_of",
        ),
        pl.col("excluded_rows"),
        pl.col("excluded_of"),
        pl.lit(config.excluded_share).alias("threshold"),
    )
    limits = {"activities": config.stale_after_days, "leads": config.stale_leads_after_days}
    newest = inputs.clients.filter("is_active").unpivot(
        [f"newest_{source}_at" for source in limits],
        index="client_id",
        variable_name="subject",
        value_name="newest_at",
    )
    age = _days(pl.lit(now) - pl.col("newest_at"))
    timed = newest.with_columns(
        subject=pl.col("subject").str.strip_prefix("newest_").str.strip_suffix("_at"), age_days=age
    ).with_columns(
        limit=pl.col("subject").replace_strict(limits, return_dtype=pl.Float64, default=None)
    )
    stale = _state(
        timed.filter(pl.col("age_days") > pl.col("limit")),
        HealthRule.STALE_SOURCE,
        Severity.MEDIUM,
        pl.format(
            "no news in {} for {} days, since {}",
            "subject",
            pl.col("age_days").round(1),
            _iso(pl.col("newest_at")),
        ),
        pl.col("age_days").round(2),
        pl.col("limit").alias("threshold"),
    )
    return pl.concat([defects, stale])


def _find_drift(inputs: HealthInputs, _now: datetime, config: HealthConfig) -> pl.DataFrame:
    is_rate = pl.col("question") == "rates"
    # A factor of a rate is a logarithm, one of all conversion is a ratio.
    ratio = pl.when(is_rate).then(pl.col("change").exp()).otherwise("change")
    factor = pl.max_horizontal(ratio, 1.0 / ratio)
    is_large = (
        pl.when(pl.col("question") == "shares")
        .then(pl.col("change") >= config.drift_psi)
        .otherwise(factor >= config.drift_factor)
    )
    chance = pl.col("p_value") * pl.col("tests")
    drifted = (
        inputs.drift.with_columns(
            amount=pl.when(pl.col("question") == "shares").then("change").otherwise(ratio),
            chance=chance,
        )
        .filter(is_large, pl.col("chance") <= config.drift_level)
        .sort("client_id", "question", "p_value", "dimension")
        .group_by("client_id", "question", maintain_order=True)
        .agg(pl.all().first(), others=pl.len() - 1)
        .with_columns(subject="question")
    )
    words = pl.col("question").replace_strict(_DRIFT_WORDS, default="{} changed: {}")
    amount = pl.col("amount").round(2).cast(pl.String)
    changed = _state(
        drifted,
        HealthRule.DRIFT,
        Severity.MEDIUM,
        pl.format(
            "{} ({} before, {} in the last twelve weeks{})",
            words.str.replace("{}", pl.col("dimension"), literal=True).str.replace(
                "{}", amount, literal=True
            ),
            "n_old",
            "n_new",
            pl.when(pl.col("others") > 0)
            .then(pl.format("; so do {} more dimensions", "others"))
            .otherwise(pl.lit("")),
        ),
        *(pl.col(name) for name in ("dimension", "n_old", "n_new", "amount", "chance")),
        pl.lit(config.drift_level).alias("threshold"),
    )
    unknown = _state(
        inputs.facts.filter(pl.col("drift_error").is_not_null()).with_columns(
            subject=pl.lit("error")
        ),
        HealthRule.DRIFT,
        Severity.MEDIUM,
        pl.format("whether leads have drifted could not be computed: {}", "drift_error"),
    )
    return pl.concat([changed, unknown])


_DRIFT_WORDS = {
    "shares": "the mix of {} is not what was learned from: PSI {}",
    "rates": "rates within {} moved against each other by a factor of {}",
    "base_rate": "conversion of {} leads changed by a factor of {}",
}


def _find_exposed(inputs: HealthInputs, _now: datetime, _config: HealthConfig) -> pl.DataFrame:
    """Documents that borrowed from a pool in which somebody could be recognised."""
    borrowed = inputs.facts.filter(pl.col("cells") > 0)
    least, most = POOL_LEAST_CONTRIBUTORS, POOL_LARGEST_SHARE
    broken = {
        "contributors": (
            pl.col("least_contributors") < least,
            pl.format("a cell was borrowed from {} others", "least_contributors"),
        ),
        "share": (
            pl.col("largest_share") > most + POOL_TOLERANCE,
            pl.format(
                "one contributor holds {} of a cell's pool", pl.col("largest_share").round(3)
            ),
        ),
        "self": (
            pl.col("excess") > POOL_TOLERANCE,
            pl.lit("the client's own counts are in its pool"),
        ),
        "strangers": (
            pl.col("strangers") > 0,
            pl.format("{} of the pool's clients had not opted in", "strangers"),
        ),
        "unknown": (
            pl.col("lenders") == 0,
            pl.lit("it is not recorded who lent to the pool"),
        ),
    }
    return pl.concat(
        _state(
            borrowed.filter(is_broken).with_columns(subject=pl.lit(subject)),
            HealthRule.POOL_PRIVACY,
            Severity.HIGH,
            message,
            *(
                pl.col(name)
                for name in ("cells", "least_contributors", "largest_share", "lenders", "strangers")
            ),
        )
        for subject, (is_broken, message) in broken.items()
    )


POOL_TOLERANCE = 1e-9
"""How far a share of a pool may miss its limit: the cut is exact but for rounding."""


def _find_failing(inputs: HealthInputs, _now: datetime, config: HealthConfig) -> pl.DataFrame:
    limit = 1.0 / config.forward_level
    judged = inputs.records.filter(pl.col("claims") >= LEAST_CLAIMS)
    words = {
        "lift": "later outcomes are {} times likelier without the effects than with them",
        "coverage": "later counts miss the stated intervals, {} times likelier if these are wrong",
    }
    return pl.concat(
        _state(
            judged.rename({f"{subject}_evidence": "evidence"})
            .filter(pl.col("evidence") >= limit)
            .with_columns(subject=pl.lit(subject)),
            HealthRule.FORWARD_FAILING,
            Severity.MEDIUM,
            pl.format(
                "most of {} graded claims do not come true: " + text,
                "claims",
                pl.col("evidence").round(0).cast(pl.Int64),
            ),
            *(pl.col(name) for name in ("claims", "lost", "evidence")),
            pl.lit(limit).alias("threshold"),
        )
        for subject, text in words.items()
    )


_Rule = Callable[[HealthInputs, datetime, HealthConfig], pl.DataFrame]
_RULES: tuple[_Rule, ...] = (
    _find_expired,
    _find_weak,
    _find_extreme_weights,
    _find_invalid,
    _find_absent,
    _find_bad_sources,
    _find_drift,
    _find_exposed,
    _find_failing,
)
