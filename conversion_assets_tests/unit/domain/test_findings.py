import pytest

from conversion_assets.domain.findings import Finding, iterate_findings, rank_findings
from conversion_assets.domain.patterns import (
    ForwardRecord,
    Reversal,
    SignalEstimate,
    TimingSignals,
)
from conversion_assets.domain.terms import PatternType, Verdict
from conversion_assets_tests.documents import document, estimate


@pytest.mark.parametrize("kind", list(PatternType))
def test_every_estimate_of_a_document_is_a_finding(kind):
    text = document(kind).model_dump_json()
    assert len(list(iterate_findings(document(kind)))) == text.count('"p_lift"')


def test_the_path_says_where_an_estimate_stands():
    paths = {f.path for f in iterate_findings(document(PatternType.WHAT))}
    assert {"subject_patterns.winning", "personalization_lift.first_name"} <= paths


def test_the_complement_of_a_signal_is_no_finding():
    with_signal = document(PatternType.WHO).model_copy(
        update={
            "timing_signals": TimingSignals(
                new_role=SignalEstimate(**estimate(True).model_dump(), without=estimate(False)),
                hiring=None,
                funded=None,
            )
        }
    )
    values = [f.estimate.value for f in iterate_findings(with_signal) if "timing" in f.path]
    assert values == [True]


def test_acts_come_first_then_what_is_surest():
    ranked = rank_findings(document(PatternType.WHO))
    assert [f.estimate.verdict for f in ranked] == sorted(
        (f.estimate.verdict for f in ranked), key=list(Verdict).index
    )
    # A loser whose interval ends far below 1 stands before a winner that starts just above it.
    assert ranked[0].label == "other"


def test_a_best_that_is_also_in_its_distribution_is_listed_once():
    labels = [f.label for f in rank_findings(document(PatternType.WHAT))]
    assert labels.count("50-75") == 1


def test_the_limit_holds():
    assert len(rank_findings(document(PatternType.WHO), 2)) == 2


def test_a_lift_interval_from_zero_can_be_ranked():
    nothing = estimate("none", lift=0.0)
    assert rank_findings(
        document(PatternType.WHO).model_copy(update={"industry_rankings": [nothing]})
    )


def test_a_sequence_reads_with_arrows():
    assert Finding("winning_sequences", estimate(["email", "voice"])).label == "email → voice"


def test_a_watch_says_what_keeps_it_from_being_an_act():
    reversal = Reversal(variable="source", stratum="fair", share=0.4, probability=0.95)
    lost = ForwardRecord(
        windows=2, judged=2, n=100, k=3, lift=0.5, lift_interval=[0.2, 1.0], p_lift=0.04, inside=0,
        brier=None, brier_base=None, evidence_against=40.0, status="lost",
    )  # fmt: skip
    found = {
        "explained by source, month": {"explained_by": ["source", "month"]},
        "reverses by source": {"reversals": [reversal, reversal]},
        "forward record lost": {"forward": lost},
        "explained by month; reverses by source": {
            "explained_by": ["month"], "reversals": [reversal],
        },
    }  # fmt: skip
    for reason, update in found.items():
        for verdict, standing in (
            (Verdict.WATCH, f"watch: {reason}"),
            # A reversal in a few rows is listed beside an act, too.
            (Verdict.ACT, "act"),
        ):
            one = estimate("x").model_copy(update={**update, "verdict": verdict})
            assert Finding("industry_rankings", one).standing == standing
    plain = estimate("x").model_copy(update={"verdict": Verdict.WATCH})
    assert Finding("industry_rankings", plain).standing == "watch"
