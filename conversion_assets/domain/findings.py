"""Read a pattern document as a flat list of estimates, strongest first."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel

from conversion_assets.domain.patterns import AnyPattern, Estimate
from conversion_assets.domain.terms import Verdict

_RANK = {Verdict.ACT: 0, Verdict.WATCH: 1, Verdict.NO_EVIDENCE: 2}


class Finding(NamedTuple):
    """An estimate and where it stands in its document, as `title_rankings.seniority`."""

    path: str
    estimate: Estimate

    @property
    def label(self) -> str:
        """The value as a person reads it; a sequence is joined by arrows."""
        value = self.estimate.value
        return " → ".join(value) if isinstance(value, list) else str(value)

    @property
    def standing(self) -> str:
        """The verdict, and behind a watch what keeps it from being an act if that is recorded."""
        estimate = self.estimate
        if estimate.verdict is not Verdict.WATCH:
            return estimate.verdict.value
        explaining = estimate.explained_by or []
        turned = list(dict.fromkeys(one.variable for one in estimate.reversals or []))
        reasons = [
            f"{what} by {', '.join(variables)}"
            for what, variables in (("explained", explaining), ("reverses", turned))
            if variables
        ]
        if estimate.forward is not None and estimate.forward.status == "lost":
            reasons.append("forward record lost")
        return f"watch: {'; '.join(reasons)}" if reasons else estimate.verdict.value


def iterate_findings(document: AnyPattern) -> Iterator[Finding]:
    """Yield every estimate of a document once, in the order of the document.

    The complement of a timing signal (`without`) is context of its signal, not a finding.
    """
    yield from _walk(document, "")


def rank_findings(document: AnyPattern, limit: int | None = None) -> list[Finding]:
    """Return the estimates by verdict, then by how far the lift interval stays away from 1.

    Where one cell is listed twice (a best and its distribution), the first place is kept.
    """
    unique: dict[tuple[str, str], Finding] = {}
    for finding in iterate_findings(document):
        unique.setdefault((finding.path.split(".")[0], finding.label), finding)
    return sorted(unique.values(), key=_strength)[:limit]


def _strength(finding: Finding) -> tuple[int, float, str, str]:
    estimate = finding.estimate
    low, high = estimate.lift_interval
    distance = max(_log(low), -_log(high))
    return (_RANK[estimate.verdict], -distance, finding.path, finding.label)


def _log(lift: float) -> float:
    # A lift of zero is as far from 1 as a lift can be; the logarithm would be minus infinity.
    return math.log(max(lift, 1e-9))


def _walk(node: object, path: str) -> Iterator[Finding]:
    if isinstance(node, Estimate):
        yield Finding(path, node)
    elif isinstance(node, BaseModel):
        for name in type(node).model_fields:
            yield from _walk(getattr(node, name), f"{path}.{name}" if path else name)
    elif isinstance(node, dict):
        for name, value in node.items():
            yield from _walk(value, f"{path}.{name}")
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value, path)
