"""Which score weights are in force: the valid WHO pattern's, the client's stored, the defaults."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import polars as pl

from conversion_assets.domain.terms import (
    DEFAULT_WEIGHTS,
    SCORE_COMPONENTS,
    WEIGHT_BOUNDS,
    WEIGHT_SUM,
)

SUM_TOLERANCE = 1e-6
"""Weights that went through another system's rounding still count as summing to 0.85."""


_MANY = 10**15


@dataclass(frozen=True)
class WeightsInForce:
    """Weights of the four learned components of the lead score, and where they come from.

    Attributes:
        weights: data_quality, authority, company_fit, timing; they sum to 0.85.
        source: pattern, client or default.
        reason: why this source and not an earlier one.
    """

    weights: dict[str, float]
    source: Literal["pattern", "client", "default"]
    reason: str


def weights_in_force(
    who_document: Mapping[str, Any] | None,
    valid_until: datetime | None,
    now: datetime,
    client_weights: Mapping[str, Any] | None,
) -> WeightsInForce:
    """Choose the weights a scorer must use now.

    The first usable of: `recommended_weights` of a WHO pattern that is still valid and whose
    evaluation recommends them, the client's stored weights, the defaults. Each candidate is
    checked, because stored values may be older than today's rules: four numbers within
    [0.05, 0.50] that sum to 0.85.

    The SQL view `score_weights_in_force` decides by the same rules.

    Args:
        who_document: The WHO pattern as stored (JSON object), or None.
        valid_until: End of its validity, exclusive.
        now: Time of asking, with zone.
        client_weights: The client's stored weights (JSON object), or None.

    Example:
        >>> from datetime import UTC
        >>> now = datetime(2026, 3, 1, tzinfo=UTC)
        >>> weights_in_force(None, None, now, None).source
        'default'
        >>> stored = {"data_quality": 0.1, "authority": 0.4, "company_fit": 0.2, "timing": 0.15}
        >>> weights_in_force(None, None, now, stored)
        ... # doctest: +NORMALIZE_WHITESPACE
        WeightsInForce(weights={'data_quality': 0.1, 'authority': 0.4, 'company_fit': 0.2,
        'timing': 0.15}, source='client', reason='no WHO pattern is stored; stored weights of the
        client')
    """
    fault = _pattern_fault(who_document, valid_until, now)
    if fault is None and who_document is not None and valid_until is not None:
        reason = f"WHO pattern valid until {valid_until.isoformat()}{_advice(who_document)}"
        return WeightsInForce(_numbers(who_document["recommended_weights"]), "pattern", reason)
    if client_weights is None:
        return WeightsInForce(
            dict(DEFAULT_WEIGHTS), "default", f"{fault}; the client has no stored weights; defaults"
        )
    client_fault = find_fault(client_weights)
    if client_fault is not None:
        return WeightsInForce(
            dict(DEFAULT_WEIGHTS),
            "default",
            f"{fault}; the client's stored weights cannot be used: {client_fault}; defaults",
        )
    return WeightsInForce(
        _numbers(client_weights), "client", f"{fault}; stored weights of the client"
    )


def choose_weights(settings: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """`weights_in_force` of many clients.

    Args:
        settings: One row per client: client_id, who_document (JSON text: recommended_weights and
            score_evaluation suffice), valid_until, client_weights (JSON text).
        now: Time of asking, with zone.

    Returns:
        client_id, the four weights (Float64), source and reason, in the order of the rows.

    Example:
        >>> settings = pl.DataFrame({"client_id": ["a"], "who_document": [None],
        ...                          "valid_until": [None], "client_weights": ["null"]})
        >>> choose_weights(settings, datetime.fromisoformat("2026-03-01T00:00Z")).row(0)[:5]
        ('a', 0.2, 0.25, 0.25, 0.15)
    """
    columns = ("client_id", "who_document", "valid_until", "client_weights")
    rows = []
    # A few hundred characters of JSON a client: parsed one by one they take 20 microseconds.
    for client_id, document, valid_until, stored in settings.select(columns).iter_rows():
        chosen = weights_in_force(_object(document), valid_until, now, _object(stored))
        rows.append((client_id, *chosen.weights.values(), chosen.source, chosen.reason))
    return pl.DataFrame(
        rows,
        schema={
            "client_id": pl.String(),
            **dict.fromkeys(SCORE_COMPONENTS, pl.Float64()),
            "source": pl.String(),
            "reason": pl.String(),
        },
        orient="row",
    )


def find_fault(weights: object) -> str | None:
    """Say what is wrong with a set of weights; None when it may be used.

    Example:
        >>> find_fault({"data_quality": 0.2, "authority": 0.25, "company_fit": 0.25})
        'timing is missing'
        >>> find_fault(DEFAULT_WEIGHTS) is None
        True
    """
    if not isinstance(weights, Mapping):
        return "they are no object of four numbers"
    low, high = WEIGHT_BOUNDS
    for name in SCORE_COMPONENTS:
        value = weights.get(name)
        if value is None:
            return f"{name} is missing"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{name} is no number"
        if not low <= value <= high:
            return f"{name} is {_show(value)}, outside of [{low:g}, {high:g}]"
    # Added in this order, as the SQL view does: both then come to the same last digit.
    total = sum(float(weights[name]) for name in SCORE_COMPONENTS)
    if abs(total - WEIGHT_SUM) > SUM_TOLERANCE:
        return f"they sum to {total:g}, not to {WEIGHT_SUM:g}"
    return None


def _pattern_fault(
    document: Mapping[str, Any] | None, valid_until: datetime | None, now: datetime
) -> str | None:
    if document is None or valid_until is None:
        return "no WHO pattern is stored"
    if valid_until <= now:
        return f"the WHO pattern expired on {valid_until.isoformat()}"
    fault = find_fault(document.get("recommended_weights"))
    if fault:
        return f"the WHO pattern's weights cannot be used: {fault}"
    evaluation = document.get("score_evaluation")
    if isinstance(evaluation, Mapping) and evaluation.get("recommended") is True:
        return None
    return f"the WHO pattern does not recommend its weights{_advice(document)}"


def _show(number: float) -> str:
    # A whole number of many digits fits no float format.
    return f"{number:g}" if isinstance(number, float) or abs(number) < _MANY else "a huge number"


def _advice(document: Mapping[str, Any]) -> str:
    """Why the pattern recommends what it does, where it says so."""
    evaluation = document.get("score_evaluation")
    reason = evaluation.get("reason") if isinstance(evaluation, Mapping) else None
    return f": {reason}" if isinstance(reason, str) and reason else ""


def _object(text: str | None) -> dict[str, Any] | None:
    value = json.loads(text) if text is not None else None
    return value if isinstance(value, dict) else None


def _numbers(weights: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(weights[name]) for name in SCORE_COMPONENTS}
