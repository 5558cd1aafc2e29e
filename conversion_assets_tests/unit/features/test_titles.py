"""Titles people really write."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion_assets.features.titles import SENIORITIES, normalize_title, normalize_titles


@pytest.mark.parametrize(
    ("raw", "seniority", "function", "title"),
    [
        ("VP Sales & Marketing", "vp", "sales", None),
        ("Vice-President, Sales", "vp", "sales", None),
        ("V.P. of Sales", "vp", "sales", None),
        ("SVP Operations", "vp", "operations", None),
        ("Director's Assistant", "other", "other", None),
        ("Directors Assistant", "other", "other", None),
        ("Assistant to the CEO", "other", "other", None),
        ("Executive Assistant, Office of the CEO", "other", "other", None),
        ("PA to Managing Director", "other", "other", None),
        ("Chief Executive Officer", "c_level", "other", "CEO"),
        ("C.E.O.", "c_level", "other", "CEO"),
        ("president & ceo", "c_level", "other", "CEO"),
        ("MD", "c_level", "other", None),
        ("Founder & CEO", "owner", "other", "CEO"),
        ("Co-Founder / CTO", "owner", "technology", "CTO"),
        ("Owner-Operator", "owner", "other", "Owner"),
        ("Product Owner", "other", "product", None),
        ("HR Business Partner", "other", "people", None),
        ("Managing Partner", "owner", "other", None),
        ("Chief Marketing Officer", "c_level", "marketing", "CMO"),
        ("Head of Growth", "director", "marketing", None),
        ("DIRECTOR OF MARKETING", "director", "marketing", "Marketing Director"),
        ("Sales Dir.", "director", "sales", "Sales Director"),
        ("Assistant Director", "manager", "other", None),
        ("Sr. Marketing Mgr", "manager", "marketing", None),
        ("Team Lead, Engineering", "manager", "technology", None),
        ("Lead Generation Specialist", "other", "sales", None),
        ("Technical Recruiter", "other", "people", None),
        ("Product Marketing Manager", "manager", "marketing", None),
        ("Ex-Google | VP Finance", "vp", "finance", None),
        ("Former CEO", "other", "other", None),
        ("Gérant", "other", "other", None),
        ("经理", "other", "other", None),
        ("  ", None, None, None),
        ("N/A", None, None, None),
        ("-", None, None, None),
        (None, None, None, None),
    ],
)
def test_title(
    raw: str | None, seniority: str | None, function: str | None, title: str | None
) -> None:
    assert normalize_title(raw) == (seniority, function, title)


@given(raw=st.text(max_size=60))
def test_any_text_gives_a_known_seniority_whatever_its_case(raw: str) -> None:
    found = normalize_title(raw)
    assert found.seniority in (*SENIORITIES, None)
    assert (found.seniority is None) == (found.function is None)


def test_a_column_keeps_its_order_and_length() -> None:
    column = pl.Series(["CEO", None, "VP Sales", "CEO", ""])
    found = normalize_titles(column)
    assert found["seniority"].to_list() == ["c_level", None, "vp", "c_level", None]
    assert normalize_titles(pl.Series([], dtype=pl.String)).is_empty()
    assert normalize_titles(pl.Series([None, None], dtype=pl.Null))["title"].to_list() == [None] * 2
