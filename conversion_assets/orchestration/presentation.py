"""What a person sees on a materialization in the Dagster UI."""

from collections.abc import Callable, Sequence

from dagster import MetadataValue
from dagster._core.definitions.metadata import RawMetadataValue

from conversion_assets.domain.findings import Finding, rank_findings
from conversion_assets.domain.patterns import AnyPattern
from conversion_assets.domain.terms import Verdict
from conversion_assets.report.figures import as_data_uri, draw_forest_plot

TOP_FINDINGS = 8
"""Rows of the table and the plot: what fits on a screen beside the other metadata."""
INLINE_LENGTH = 999
"""Markdown up to this many characters stands open in the UI; longer text hides behind a link."""


def describe_pattern(
    document: AnyPattern, outcome: str, *, with_plot: bool
) -> dict[str, RawMetadataValue]:
    """Return the metadata of one client's pattern; numbers stay numbers so that the UI plots them.

    Args:
        document: the pattern as it was stored.
        outcome: `found` or `none_found`.
        with_plot: False for a fleet, where a picture per client would triple the event log.
    """
    ranked = rank_findings(document)
    metadata: dict[str, RawMetadataValue] = {
        "client_id": document.client_id,
        "outcome": outcome,
        "sample_size": document.sample_size,
        "conversions": document.conversions,
        # Rounded for the eye; the document keeps every digit.
        "base_rate": round(document.base_rate.rate, 4),
        "base_rate_interval": _interval(document.base_rate.interval, percent=True),
        "confidence": round(document.confidence, 3),
        "top_findings": MetadataValue.md(_longest_inline(tabulate_findings, ranked)),
    }
    if with_plot and ranked:
        metadata["lift_plot"] = MetadataValue.md(_longest_inline(_plot_findings, ranked))
    metadata |= {
        "act_count": sum(f.estimate.verdict is Verdict.ACT for f in ranked),
        "watch_count": sum(f.estimate.verdict is Verdict.WATCH for f in ranked),
        "hypotheses_tested": document.hypotheses_tested,
        "as_of": document.as_of.isoformat(),
    }
    if document.data_notes:
        notes = "\n".join(f"- {note.reason}: {note.rows:,} rows" for note in document.data_notes)
        metadata["data_notes"] = MetadataValue.md(notes)
    return metadata


def _longest_inline(render: Callable[[Sequence[Finding]], str], ranked: list[Finding]) -> str:
    """Render as many of the strongest findings as stay open in the UI, at least one."""
    for count in range(TOP_FINDINGS, 1, -1):
        if len(text := render(ranked[:count])) <= INLINE_LENGTH:
            return text
    return render(ranked[:1])


def _plot_findings(findings: Sequence[Finding]) -> str:
    return f"![lift]({as_data_uri(draw_forest_plot(findings))})"


def tabulate_findings(findings: Sequence[Finding]) -> str:
    """Return a Markdown table, a row per finding, or one sentence when there is none."""
    if not findings:
        return "No cell had enough data to be estimated."
    head = (
        "| verdict | where | value | lift | 90 % interval | k / n | q |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(_table_row(finding) for finding in findings)


def _table_row(finding: Finding) -> str:
    estimate = finding.estimate
    label = finding.label.replace("|", "\\|").replace("\n", " ")
    return (
        f"| {finding.standing} | {finding.path} | {label} | {estimate.lift:.2f}× "
        f"| {_interval(estimate.lift_interval)} | {estimate.k}/{estimate.n} "
        f"| {estimate.q_value:.3f} |"
    )


def _interval(bounds: list[float], *, percent: bool = False) -> str:
    form = ".1%" if percent else ".2f"
    # Word joiners keep the two ends on one line.
    return "\u2060–\u2060".join(format(bound, form) for bound in bounds)
