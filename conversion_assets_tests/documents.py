"""Small valid pattern documents for tests of what comes after detection."""

from datetime import UTC, datetime, timedelta

from conversion_assets.domain.patterns import (
    AnyPattern,
    BaseRate,
    CallsToAction,
    DataNote,
    Distribution,
    Estimate,
    HowPattern,
    OptimalLength,
    PainPoints,
    ScoreEvaluation,
    ShareRow,
    SizeAnalysis,
    SubjectPatterns,
    Templates,
    TimeToConversion,
    TimingSignals,
    TitleRankings,
    Transitions,
    Weights,
    WhatPattern,
    WhenPattern,
    WhoPattern,
)
from conversion_assets.domain.terms import PatternType, Unit, Verdict

AS_OF = datetime(2026, 3, 1, tzinfo=UTC)
DEFAULT_WEIGHTS = Weights(data_quality=0.20, authority=0.25, company_fit=0.25, timing=0.15)


def estimate(
    value: str | int | bool | list[str] = "vp",
    lift: float = 1.3,
    verdict: Verdict = Verdict.ACT,
    spread: float = 1.2,
) -> Estimate:
    """An estimate with an interval of lift / spread to lift * spread."""
    return Estimate(
        value=value,
        n=412,
        k=61,
        unit=Unit.LEAD,
        rate=0.148,
        shrunk_rate=0.141,
        interval=[0.118, 0.167],
        lift=lift,
        lift_interval=[lift / spread, lift * spread],
        p_lift=0.99,
        q_value=0.03,
        own_weight=0.9,
        borrowed_weight=0.1,
        verdict=verdict,
    )


def document(kind: PatternType, client_id: str = "c1", as_of: datetime = AS_OF) -> AnyPattern:
    """A document of the kind with a few estimates."""
    common = {
        "client_id": client_id,
        "as_of": as_of,
        "window": [as_of - timedelta(days=365), as_of],
        "sample_size": 1000,
        "conversions": 100,
        "base_rate": BaseRate(n=1000, k=100, unit=Unit.LEAD, rate=0.1, interval=[0.085, 0.116]),
        "confidence": 0.8,
        "hypotheses_tested": 42,
        "data_notes": [DataNote(reason="no time zone", rows=12, kind="no_local_time", of=600)],
    }
    return _MAKERS[kind](common)


def _who(common: dict) -> WhoPattern:
    return WhoPattern(
        **common,
        title_rankings=TitleRankings(
            seniority=[estimate("vp"), estimate("other", 0.7)], function=[], title=[]
        ),
        industry_rankings=[estimate("saas", 1.1, Verdict.NO_EVIDENCE)],
        source_rankings=[estimate("referral", 1.8, Verdict.WATCH)],
        country_rankings=[],
        size_analysis=SizeAnalysis(distribution=[estimate("31-50", 1.2)], sweet_spot="31-50"),
        timing_signals=TimingSignals(new_role=None, hiring=None, funded=None),
        recommended_weights=DEFAULT_WEIGHTS,
        score_evaluation=ScoreEvaluation(
            auc_learned=None,
            auc_default=None,
            difference=None,
            difference_interval=None,
            calibration_slope=None,
            brier=None,
            top_20_share=None,
            n_train=0,
            n_test=0,
            learned_weights=None,
            recommended=False,
            reason="fewer than 100 conversions",
        ),
    )


def _what(common: dict) -> WhatPattern:
    return WhatPattern(
        **common,
        subject_patterns=SubjectPatterns(winning=[estimate("idea_for", 1.4)], losing=[]),
        pain_points=PainPoints(effective=[], ineffective=[]),
        ctas=CallsToAction(effective=[], by_type=[]),
        angles=[],
        optimal_length={
            "email": OptimalLength(
                unit="words",
                best=estimate("50-75", 1.2),
                range=["50-75"],
                distribution=[estimate("50-75", 1.2)],
            )
        },
        personalization_lift={"first_name": estimate(True, 1.1, Verdict.WATCH)},
        templates=Templates(top=[], bottom=[]),
    )


def _when(common: dict) -> WhenPattern:
    return WhenPattern(
        **common,
        best_days=[estimate("Tuesday", 1.3)],
        best_hours=[estimate(10, 1.2, Verdict.WATCH)],
        day_hour=[],
        touch_hazard=[],
        converting_touch_distribution=Distribution(rows=[ShareRow(value=1, k=100, share=1.0)]),
        optimal_gaps=[],
        time_to_conversion=TimeToConversion(
            **dict.fromkeys(TimeToConversion.model_fields) | {"n": 1000, "k": 100}
        ),
    )


def _how(common: dict) -> HowPattern:
    return HowPattern(
        **common,
        booking_channel_distribution=Distribution(rows=[]),
        first_touch=[estimate("voice", 1.5)],
        best_first_channel="voice",
        multi_channel=[],
        winning_sequences=[estimate(["email", "voice"], 1.4)],
        channel_by_tier={},
        transitions=Transitions(steps=[], removal_effects=[]),
    )


_MAKERS = {
    PatternType.WHO: _who,
    PatternType.WHAT: _what,
    PatternType.WHEN: _when,
    PatternType.HOW: _how,
}
