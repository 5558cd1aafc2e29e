"""Pattern documents: what each detector says, as validated models published as JSON Schema.

Numbers are stored unrounded; rounding is for display. Lists are ordered by verdict
(act, watch, no_evidence), then by the lower end of the lift interval (high first), then value.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from conversion_assets.domain.terms import NoteKind, PatternType, Unit, Verdict

SCHEMA_VERSION = "1.0"
"""Version of the document shapes below; moves when a field changes its meaning."""

UtcTime = Annotated[AwareDatetime, AfterValidator(lambda moment: moment.astimezone(UTC))]
"""An aware time, kept in UTC: offsets of seconds, as zones had them once, have no JSON."""
Probability = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Reversal(_Model):
    """One stratum in which an effect points the other way."""

    variable: str
    stratum: str
    share: Probability = Field(description="Share of the cell's sample in this stratum")
    probability: Probability = Field(description="Probability that the effect is reversed there")


class ForwardRecord(_Model):
    """What became of the claims made about a cell, on leads and touches that came later.

    Each claim is a forecast for the 28 days after it was made; windows do not overlap. The sums
    run over all windows that have matured, those too small to say anything alone among them.
    """

    windows: int = Field(ge=1, description="Forecasts graded")
    judged: int = Field(ge=0, description="Those with at least 3 conversions expected")
    n: int = Field(ge=0, description="Sample of all windows")
    k: int = Field(ge=0, description="Conversions in it")
    lift: float | None = Field(ge=0, description="Conversions over those expected without effect")
    lift_interval: Interval | None
    p_lift: Probability | None = Field(
        description="Probability, from these windows alone, that the lift is on the claimed side"
    )
    inside: int = Field(
        ge=0, description="Judged windows with their count inside the forecast's 90 % interval"
    )
    brier: float | None = Field(description="Brier score of the forecast rates")
    brier_base: float | None = Field(description="Brier score of the base rates instead")
    evidence_against: float = Field(
        ge=0, description="How many times likelier the outcomes are without the effect than with it"
    )
    status: Literal["too_few", "holds", "fades", "lost"] = Field(
        description="lost: an act is only a watch until the record recovers"
    )


class Estimate(_Model):
    """One cell of a pattern: how often it converts, how sure that is, and what to do with it."""

    value: str | int | bool | list[str]
    n: int = Field(ge=0, description="Sample")
    k: int = Field(ge=0, description="Conversions in the sample")
    unit: Unit
    rate: Probability = Field(description="Raw k / n, 0 for an empty sample")
    shrunk_rate: Probability = Field(description="Posterior mean of the rate")
    interval: Interval = Field(description="90 % interval of the rate")
    lift: float = Field(ge=0, description="Rate over the client's base rate, adjusted and shrunk")
    lift_interval: Interval
    p_lift: Probability = Field(description="Probability that lift > 1 (< 1 for a loser)")
    q_value: Probability = Field(description="Benjamini-Hochberg within the client's ledger")
    own_weight: Probability = Field(description="Share of the estimate from the client's own data")
    borrowed_weight: Probability = Field(description="1 - own_weight")
    verdict: Verdict
    naive_lift: float | None = Field(None, ge=0, description="Unadjusted raw lift")
    reversals: list[Reversal] | None = None
    explained_by: list[str] | None = Field(
        None, description="Variables that, held fixed, leave nothing of the effect that stands out"
    )
    forward: ForwardRecord | None = None


class DataNote(_Model):
    """Rows that were left out, and why."""

    reason: str
    rows: int = Field(ge=0)
    kind: NoteKind | None = Field(
        None, description="The reason for machines; null in documents older than it"
    )
    of: int | None = Field(None, ge=0, description="Rows looked at, those left out among them")


class Claim(_Model):
    """A cell that this document calls an act, by its place in the ledger."""

    dimension: str
    value: str


class BaseRate(_Model):
    """The client's own conversion rate in the window."""

    n: int = Field(ge=0)
    k: int = Field(ge=0)
    unit: Unit
    rate: Probability
    interval: Interval


class PatternDocument(_Model):
    """What every pattern document states about itself."""

    type: PatternType
    schema_version: str = SCHEMA_VERSION
    client_id: str
    as_of: UtcTime
    window: list[UtcTime] = Field(min_length=2, max_length=2)
    sample_size: int = Field(ge=0, description="Resolved leads of the client in the window")
    conversions: int = Field(ge=0, description="Converted among them")
    base_rate: BaseRate
    confidence: Probability
    hypotheses_tested: int = Field(ge=0, description="Size of the client's ledger, all four types")
    data_notes: list[DataNote]
    claims: list[Claim] = Field(
        default=[], description="Cells called an act; the next refresh starts from them"
    )


class TitleRankings(_Model):
    """Titles by seniority, by function and by canonical name."""

    seniority: list[Estimate]
    function: list[Estimate]
    title: list[Estimate]


class SizeAnalysis(_Model):
    """Company size buckets; the sweet spot is the best bucket that is an act or watch."""

    distribution: list[Estimate]
    sweet_spot: str | None


class SignalEstimate(Estimate):
    """Leads with a timing signal, and beside them the leads that are known not to have it."""

    without: Estimate | None = None


class TimingSignals(_Model):
    """Signals that a company or person is ready to talk; None where the data never say."""

    new_role: SignalEstimate | None
    hiring: SignalEstimate | None
    funded: SignalEstimate | None


class Weights(_Model):
    """Weights of the lead score's four learned components; they sum to 0.85."""

    data_quality: float = Field(ge=0.05, le=0.50)
    authority: float = Field(ge=0.05, le=0.50)
    company_fit: float = Field(ge=0.05, le=0.50)
    timing: float = Field(ge=0.05, le=0.50)


class ScoreEvaluation(_Model):
    """Learned against default weights on leads later in time than the training leads."""

    auc_learned: Probability | None
    auc_default: Probability | None
    difference: float | None
    difference_interval: Interval | None
    calibration_slope: float | None
    brier: float | None
    top_20_share: Probability | None = Field(
        description="Share of test conversions in the top 20 % of learned scores"
    )
    n_train: int = Field(ge=0)
    n_test: int = Field(ge=0)
    learned_weights: Weights | None = Field(description="What was learned, recommended or not")
    recommended: bool
    reason: str


class WhoPattern(PatternDocument):
    """Which leads convert, and how the lead score should be weighted."""

    type: Literal[PatternType.WHO] = PatternType.WHO
    title_rankings: TitleRankings
    industry_rankings: list[Estimate]
    source_rankings: list[Estimate]
    country_rankings: list[Estimate]
    size_analysis: SizeAnalysis
    timing_signals: TimingSignals
    recommended_weights: Weights
    score_evaluation: ScoreEvaluation


class SubjectPatterns(_Model):
    """Subject-line patterns by direction of their effect."""

    winning: list[Estimate]
    losing: list[Estimate]


class PainPoints(_Model):
    """Pain points by direction of their effect."""

    effective: list[Estimate]
    ineffective: list[Estimate]


class CallsToAction(_Model):
    """Calls to action by phrase and by type."""

    effective: list[Estimate]
    by_type: list[Estimate]


class OptimalLength(_Model):
    """Best length bin of a channel and the bins that cannot be told from it."""

    unit: Literal["words", "characters"]
    best: Estimate
    range: list[str] = Field(description="Bins not distinguishable from the best, in order")
    distribution: list[Estimate]


class Templates(_Model):
    """Templates by direction of their effect."""

    top: list[Estimate]
    bottom: list[Estimate]


class WhatPattern(PatternDocument):
    """Which content converts. Outcome: the touch is the converting touch."""

    type: Literal[PatternType.WHAT] = PatternType.WHAT
    subject_patterns: SubjectPatterns
    pain_points: PainPoints
    ctas: CallsToAction
    angles: list[Estimate]
    optimal_length: dict[str, OptimalLength]
    personalization_lift: dict[str, Estimate]
    templates: Templates


class ShareRow(_Model):
    """One part of a distribution; a description, not an effect."""

    value: str | int
    k: int = Field(ge=0)
    share: Probability


class Distribution(_Model):
    """Shares that sum to 1. A description: it says nothing about what causes conversion."""

    label: Literal["description"] = "description"
    rows: list[ShareRow]


class GapAdvice(_Model):
    """Best days to wait before one touch position."""

    position: int = Field(ge=2, description="Touch number that follows the gap")
    best_days: int = Field(ge=0)
    interval: Interval = Field(description="90 % interval of the best gap, days")
    is_default: bool = Field(description="True where there is no evidence for another gap")
    hazards: list[Estimate] = Field(description="Hazard by days since the previous touch")


class TimeToConversion(_Model):
    """Days from lead creation to conversion, with open leads censored (Kaplan-Meier).

    p50, p80 and p95 are of the leads that convert; the same quantiles over all leads stand beside
    them and are None where that share of all leads has not converted.
    """

    p50: float | None
    p80: float | None
    p95: float | None
    all_leads_p50: float | None
    all_leads_p80: float | None
    all_leads_p95: float | None
    converted_share_interval: Interval | None = Field(
        description="Greenwood's 90 % interval of the share converted by the last event time"
    )
    naive_mean: float | None = Field(description="Mean of the converted only: biased, for contrast")
    n: int = Field(ge=0)
    k: int = Field(ge=0)


class WhenPattern(PatternDocument):
    """Which day, hour, touch number and spacing convert. Times are the lead's local ones."""

    type: Literal[PatternType.WHEN] = PatternType.WHEN
    best_days: list[Estimate]
    best_hours: list[Estimate]
    day_hour: list[Estimate]
    touch_hazard: list[Estimate]
    converting_touch_distribution: Distribution
    optimal_gaps: list[GapAdvice]
    time_to_conversion: TimeToConversion


class Transition(_Model):
    """How often one channel follows another within a lead."""

    from_channel: str
    to_channel: str
    count: int = Field(ge=0)
    share: Probability


class RemovalEffect(_Model):
    """Relative loss of conversions in the Markov chain when a channel is taken out."""

    channel: str
    effect: Probability


class Transitions(_Model):
    """Channel-to-channel steps; a description, not a causal claim."""

    label: Literal["description"] = "description"
    steps: list[Transition]
    removal_effects: list[RemovalEffect]


class HowPattern(PatternDocument):
    """Which channels, in which order and mix, convert."""

    type: Literal[PatternType.HOW] = PatternType.HOW
    booking_channel_distribution: Distribution
    first_touch: list[Estimate]
    best_first_channel: str | None
    multi_channel: list[Estimate]
    winning_sequences: list[Estimate]
    channel_by_tier: dict[str, list[Estimate]]
    transitions: Transitions


AnyPattern = WhoPattern | WhatPattern | WhenPattern | HowPattern

DOCUMENTS: dict[PatternType, type[AnyPattern]] = {
    PatternType.WHO: WhoPattern,
    PatternType.WHAT: WhatPattern,
    PatternType.WHEN: WhenPattern,
    PatternType.HOW: HowPattern,
}


class Outcome(_Model):
    """What a refresh came to for one client and pattern type, and why."""

    client_id: str
    pattern_type: PatternType
    outcome: str
    reason: str = ""
    error: str | None = None


class StoredPattern(_Model):
    """A document with what the repository keeps beside it."""

    document: AnyPattern = Field(discriminator="type")
    computed_at: datetime
    valid_until: datetime
    code_version: str
    input_fingerprint: str
    settings: str | None = None
