"""Figures drawn as SVG text: no plotting library, under a kilobyte each, sharp at any size."""

import math
from base64 import b64encode
from collections.abc import Sequence
from html import escape

from conversion_assets.domain.findings import Finding
from conversion_assets.domain.terms import Verdict

# Told apart in grey scale too: the advice is dark, the rest fades.
_COLOURS = {Verdict.ACT: "#065", Verdict.WATCH: "#b70", Verdict.NO_EVIDENCE: "#aaa"}
_ROW = 16
_LABELS = 130  # width of the column of labels
_PLOT = 240
_LONGEST_LABEL = 20
_SPAN = 4.0  # lifts beyond a factor of four are drawn at the edge
_TICKS = ((0.5, "½×"), (1.0, "1×"), (2.0, "2×"))


def draw_forest_plot(findings: Sequence[Finding]) -> str:
    """Return a forest plot as SVG: lift and its 90 % interval per row, on a log axis around 1.

    Strokes of one verdict share one path, which keeps eight rows under 800 characters.

    Example:
        >>> draw_forest_plot([])[:4]
        '<svg'
    """
    bottom = _ROW * len(findings)
    width, height = _LABELS + _PLOT, bottom + _ROW
    ticks = "".join(f"M{_x(lift)} 0V{bottom}" for lift, _ in _TICKS)
    return "".join(
        (
            f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
            "font-size='11' font-family='Arial' style='background:#fff'>",
            f"<path d='{ticks}' stroke='#ccc'/>",
            *(_strokes(findings, verdict) for verdict in Verdict),
            *(_text(4, row, finding.label) for row, finding in enumerate(findings)),
            *(_text(_x(lift) - 7, len(findings), name) for lift, name in _TICKS),
            "</svg>",
        )
    )


def as_data_uri(svg: str) -> str:
    """Return an SVG as a data URI that Markdown can carry as an image."""
    return f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"


def _x(lift: float) -> int:
    bounded = min(max(lift, 1 / _SPAN), _SPAN)
    return round(_LABELS + _PLOT * (0.5 + math.log(bounded, _SPAN) / 2))


def _strokes(findings: Sequence[Finding], verdict: Verdict) -> str:
    """Return one path with the intervals of a verdict, and one with round dots for the lifts."""
    rows = [
        (_ROW * row + _ROW // 2, finding.estimate)
        for row, finding in enumerate(findings)
        if finding.estimate.verdict is verdict
    ]
    if not rows:
        return ""
    lines = "".join(f"M{_x(e.lift_interval[0])} {y}H{_x(e.lift_interval[1])}" for y, e in rows)
    dots = "".join(f"M{_x(e.lift)} {y}h0" for y, e in rows)
    return (
        f"<g stroke='{_COLOURS[verdict]}' stroke-linecap='round'><path d='{lines}'/>"
        f"<path d='{dots}' stroke-width='8'/></g>"
    )


def _text(x: int, row: int, words: str) -> str:
    if len(words) > _LONGEST_LABEL:
        words = words[: _LONGEST_LABEL - 1] + "…"
    return f"<text x='{x}' y='{_ROW * row + 12}'>{escape(words, quote=False)}</text>"
