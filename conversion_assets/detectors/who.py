"""WHO: which leads convert, and how the lead score should be weighted. Unit: lead."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from conversion_assets.detectors.cells import Dimension
from conversion_assets.detectors.documents import EstimateTable, Header, find_best
from conversion_assets.domain.patterns import ScoreEvaluation, WhoPattern
from conversion_assets.domain.terms import DEFAULT_WEIGHTS, PatternType

SIGNALS = {"new_role": "is_new_role", "hiring": "is_hiring", "funded": "recently_funded"}


def build_dimensions() -> list[Dimension]:
    """Attributes of leads that are ranked, and the timing signals."""
    attributes = {
        "title_rankings.seniority": "seniority",
        "title_rankings.function": "function",
        "title_rankings.title": "title",
        "industry_rankings": "industry",
        "source_rankings": "source",
        "country_rankings": "country",
        "size_analysis": "size_bucket",
    }
    ranked = [
        Dimension(
            pattern=PatternType.WHO,
            name=name,
            rows="leads",
            value=pl.col(column),
            checked=tuple(c for c in ("channel", "source", "month") if c != column),
        )
        for name, column in attributes.items()
    ]
    signals = [
        Dimension(
            pattern=PatternType.WHO,
            name=f"timing_signals.{name}",
            rows="leads",
            value=pl.when(column).then(pl.lit("true")).otherwise(pl.lit("false")),
            counts_in=pl.col(column).is_not_null(),
            checked=("channel", "source", "month"),
        )
        for name, column in SIGNALS.items()
    ]
    return ranked + signals


def build_document(
    header: Header, table: EstimateTable, evaluation: Mapping[str, Any] | None
) -> WhoPattern:
    """Assemble one client's document.

    Args:
        header: What all documents state.
        table: Estimates of all clients.
        evaluation: The client's row of `evaluate_score_weights`, None without score components.
    """
    client = header.client
    sizes = table.get(client, "size_analysis")
    best_size = find_best(sizes)
    judged = _describe_evaluation(evaluation)
    is_learned = judged.recommended and judged.learned_weights is not None
    return WhoPattern.model_validate(
        {
            **header.fields,
            "title_rankings": {
                name: table.get(client, f"title_rankings.{name}")
                for name in ("seniority", "function", "title")
            },
            "industry_rankings": table.get(client, "industry_rankings"),
            "source_rankings": table.get(client, "source_rankings"),
            "country_rankings": table.get(client, "country_rankings"),
            "size_analysis": {
                "distribution": sizes,
                "sweet_spot": best_size["value"] if best_size else None,
            },
            "timing_signals": {name: _build_signal(client, name, table) for name in SIGNALS},
            "recommended_weights": judged.learned_weights if is_learned else DEFAULT_WEIGHTS,
            "score_evaluation": judged,
        }
    )


def _build_signal(client: int, name: str, table: EstimateTable) -> dict[str, Any] | None:
    found = {e["value"]: e for e in table.get(client, f"timing_signals.{name}")}
    if "true" not in found:
        return None
    without = found.get("false")
    return {
        **found["true"],
        "value": True,
        "without": None if without is None else {**without, "value": False},
    }


def _describe_evaluation(row: Mapping[str, Any] | None) -> ScoreEvaluation:
    if row is None:
        return ScoreEvaluation(
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
            reason="no lead has all four score components: default weights",
        )
    return ScoreEvaluation.model_validate(
        {name: row[name] for name in ScoreEvaluation.model_fields if name in row}
    )
