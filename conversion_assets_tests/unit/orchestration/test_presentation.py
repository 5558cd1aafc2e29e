import pytest
from dagster import MarkdownMetadataValue

from conversion_assets.domain.terms import PatternType
from conversion_assets.orchestration.presentation import INLINE_LENGTH, describe_pattern
from conversion_assets_tests.documents import document, estimate


@pytest.mark.parametrize("kind", list(PatternType))
def test_a_person_sees_evidence_and_findings(kind):
    metadata = describe_pattern(document(kind), "found", with_plot=True)
    assert metadata["sample_size"] == 1000
    assert metadata["base_rate"] == 0.1
    assert metadata["confidence"] == 0.8
    table = metadata["top_findings"]
    assert isinstance(table, MarkdownMetadataValue)
    assert "| act |" in str(table.md_str)
    assert "no time zone: 12 rows" in str(metadata["data_notes"].md_str)
    assert str(metadata["lift_plot"].md_str).startswith("![lift](data:image/svg+xml;base64,")


def test_a_fleet_has_no_pictures():
    assert "lift_plot" not in describe_pattern(document(PatternType.WHO), "found", with_plot=False)


def test_long_tables_are_cut_to_what_the_ui_shows_openly():
    many = [estimate(f"a rather long name of an industry {n}", 1 + n / 10) for n in range(50)]
    crowded = document(PatternType.WHO).model_copy(update={"industry_rankings": many})
    metadata = describe_pattern(crowded, "found", with_plot=True)
    for name in ("top_findings", "lift_plot"):
        assert len(metadata[name].md_str) <= INLINE_LENGTH


def test_a_bar_in_a_value_does_not_break_the_table():
    odd = document(PatternType.WHO).model_copy(update={"industry_rankings": [estimate("a|b\nc")]})
    rows = describe_pattern(odd, "found", with_plot=False)["top_findings"].md_str.splitlines()
    assert all(row.replace("\\|", "").count("|") == 8 for row in rows)
