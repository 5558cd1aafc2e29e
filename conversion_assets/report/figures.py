"""Figures drawn as SVG text: no plotting library, a few hundred bytes each, sharp at any size."""

import math
from base64 import b64encode
from collections.abc import Sequence
from html import escape

from conversion_assets.domain.findings import Finding
from conversion_assets.domain.terms import Verdict

# Readable on a white and on a dark page alike; verdicts differ in lightness too.
_COLOURS = {Verdict.ACT: "#1a7f5a", Verdict.WATCH: "#b7791f", Verdict.NO_EVIDENCE: "#8a94a6"}
_ROW = 22
_LABEL_WIDTH = 190
_PLOT_WIDTH = 300
_LONGEST_LABEL = 28
_LIFT_SPAN = (0.2, 5.0)  # lifts beyond a factor of five are drawn at the edge
_TICKS = (0.25, 0.5, 1.0, 2.0, 4.0)


def draw_forest_plot(findings: Sequence[Finding]) -> str:
    """Return a forest plot as SVG: lift and its 90 % interval per row, on a log axis around 1.

    Example:
        >>> draw_forest_plot([])[:4]
        '<svg'
    """
    height = _ROW * (len(findings) + 1) + 8
    width = _LABEL_WIDTH + _PLOT_WIDTH + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *(_tick(lift, height) for lift in _TICKS),
        *(_row(finding, index) for index, finding in enumerate(findings)),
        "</svg>",
    ]
    return "".join(parts)


def as_data_uri(svg: str) -> str:
    """Return an SVG as a data URI that Markdown can carry as an image."""
    return f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"


def _x(lift: float) -> float:
    low, high = (math.log(edge) for edge in _LIFT_SPAN)
    place = (math.log(min(max(lift, _LIFT_SPAN[0]), _LIFT_SPAN[1])) - low) / (high - low)
    return round(_LABEL_WIDTH + place * _PLOT_WIDTH, 1)


def _tick(lift: float, height: int) -> str:
    x, bottom = _x(lift), height - _ROW
    dash = "" if lift == 1 else ' stroke-dasharray="2 4"'
    return (
        f'<line x1="{x}" y1="4" x2="{x}" y2="{bottom}" stroke="#c3c9d4"{dash}/>'
        f'<text x="{x}" y="{height - 7}" text-anchor="middle" fill="#5b6475">{lift:g}×</text>'
    )


def _row(finding: Finding, index: int) -> str:
    estimate, y = finding.estimate, 4 + _ROW * index + _ROW // 2
    colour = _COLOURS[estimate.verdict]
    low, high = (_x(edge) for edge in estimate.lift_interval)
    label = finding.label
    if len(label) > _LONGEST_LABEL:
        label = label[: _LONGEST_LABEL - 1] + "…"
    return (
        f'<text x="{_LABEL_WIDTH - 8}" y="{y + 4}" text-anchor="end" fill="#1d2433">'
        f"{escape(label)}</text>"
        f'<line x1="{low}" y1="{y}" x2="{high}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
        f'<circle cx="{_x(estimate.lift)}" cy="{y}" r="4" fill="{colour}"/>'
        f'<text x="{_LABEL_WIDTH + _PLOT_WIDTH + 8}" y="{y + 4}" fill="#5b6475">'
        f"n={estimate.n}</text>"
    )
