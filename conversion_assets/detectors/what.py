"""WHAT: which content converts. Unit: touch; outcome: the touch is the converting touch."""

import polars as pl

from conversion_assets.detectors.cells import Dimension
from conversion_assets.detectors.documents import (
    Estimates,
    EstimateTable,
    Header,
    order_estimates,
    split_by_direction,
)
from conversion_assets.domain.patterns import WhatPattern
from conversion_assets.domain.terms import Channel, PatternType

# Bins of body length: label and highest length. Words, but characters for SMS, whose segments
# end at 70 (Unicode) and 160 (GSM) characters.
WORD_BINS = (("1-25", 25), ("26-50", 50), ("51-75", 75), ("76-100", 100), ("101-150", 150),
             ("151-200", 200), ("201+", 2**31 - 1))  # fmt: skip
CHARACTER_BINS = (("1-70", 70), ("71-160", 160), ("161-320", 320), ("321+", 2**31 - 1))

STRATA = ("channel", "touch_stratum")
CHECKED = ("channel", "touch_stratum", "source", "month")


def build_dimensions(columns: list[str]) -> list[Dimension]:
    """Content features that are compared.

    Args:
        columns: Columns of `touch_features`; the vocabulary's are recognised by their prefix.
    """
    has_content, has_subject = pl.col("has_content"), pl.col("has_subject")
    flags = {
        prefix: {c.removeprefix(f"{prefix}__"): c for c in columns if c.startswith(f"{prefix}__")}
        for prefix in ("subject", "pain", "angle", "personal")
    }
    flagged = {
        "subject_patterns": ("subject", has_subject),
        "pain_points": ("pain", has_content),
        "angles": ("angle", has_content),
        "personalization_lift": ("personal", has_content),
    }
    valued = {
        "subject_length": (pl.col("subject_length"), has_subject),
        "ctas.effective": (pl.col("cta"), has_content),
        "ctas.by_type": (pl.col("cta_type"), has_content),
        "templates": (pl.col("template_id"), pl.col("template_id").is_not_null()),
    }
    return [
        Dimension(PatternType.WHAT, name, "touches", flags=flags[prefix], counts_in=counted,
                  strata=STRATA, checked=CHECKED)
        for name, (prefix, counted) in flagged.items()
        if flags[prefix]
    ] + [
        Dimension(PatternType.WHAT, name, "touches", value=value, counts_in=counted,
                  strata=STRATA, checked=CHECKED)
        for name, (value, counted) in valued.items()
    ] + [
        Dimension(PatternType.WHAT, "optimal_length", "touches",
                  value=_label_length(_bin_length()), bins={"length_bin": _bin_length()},
                  label=_label_length(pl.col("length_bin")),
                  counts_in=has_content & pl.col("word_count").is_not_null(),
                  strata=STRATA, checked=CHECKED),
    ]  # fmt: skip


def _bin_length() -> pl.Expr:
    """Number of the bin that a body's length falls in; null for an empty body."""
    return (
        pl.when(pl.col("channel") == Channel.SMS.value)
        .then(_cut(pl.col("char_count"), CHARACTER_BINS))
        .otherwise(_cut(pl.col("word_count"), WORD_BINS))
    )


def _cut(length: pl.Expr, bins: tuple[tuple[str, int], ...]) -> pl.Expr:
    highest = pl.lit(pl.Series([highest for _, highest in bins], dtype=pl.Int32))
    place = highest.search_sorted(length.cast(pl.Int32), side="left").cast(pl.Int8)
    return pl.when(length > 0).then(place)


def _label_length(number: pl.Expr) -> pl.Expr:
    """Label `channel|bin` of a bin's number."""
    characters, words = (
        number.cast(pl.Int32).replace_strict(
            range(len(bins)), [name for name, _ in bins], default=None, return_dtype=pl.String
        )
        for bins in (CHARACTER_BINS, WORD_BINS)
    )
    bin_name = pl.when(pl.col("channel") == Channel.SMS.value).then(characters).otherwise(words)
    return pl.concat_str("channel", bin_name, separator="|")


def build_document(header: Header, table: EstimateTable) -> WhatPattern:
    """Assemble one client's document from the estimates of all."""
    client = header.client
    subjects = order_estimates(
        table.get(client, "subject_patterns"), table.get(client, "subject_length")
    )
    winning, losing = split_by_direction(subjects)
    effective, ineffective = split_by_direction(table.get(client, "pain_points"))
    top, bottom = split_by_direction(table.get(client, "templates"))
    return WhatPattern.model_validate(
        {
            **header.fields,
            "subject_patterns": {"winning": winning, "losing": losing},
            "pain_points": {"effective": effective, "ineffective": ineffective},
            "ctas": {
                "effective": table.get(client, "ctas.effective"),
                "by_type": table.get(client, "ctas.by_type"),
            },
            "angles": table.get(client, "angles"),
            "optimal_length": {
                channel: _build_length(channel, estimates)
                for channel, estimates in table.get_by_prefix(client, "optimal_length").items()
            },
            "personalization_lift": {
                str(e["value"]): e
                for e in sorted(
                    table.get(client, "personalization_lift"), key=lambda e: str(e["value"])
                )
            },
            "templates": {"top": top, "bottom": bottom},
        }
    )


def _build_length(channel: str, estimates: Estimates) -> dict[str, object]:
    """Best bin, and the bins whose lift interval reaches the best bin's estimate."""
    is_sms = channel == Channel.SMS.value
    places = {
        name: place for place, (name, _) in enumerate(CHARACTER_BINS if is_sms else WORD_BINS)
    }
    best = max(estimates, key=lambda e: (e["lift"], -places[e["value"]]))
    alike = [e["value"] for e in estimates if e["lift_interval"][1] >= best["lift"]]
    return {
        "unit": "characters" if is_sms else "words",
        "best": best,
        "range": sorted(alike, key=places.__getitem__),
        "distribution": estimates,
    }
