"""The figures of docs/statistics.md: all there, small, and the same bytes every time."""

import re
from pathlib import Path

import pytest

from benchmarks.figures import FIGURES, FOLDER, draw

PAGE = Path(__file__).parents[2] / "docs" / "statistics.md"
MOST_BYTES = 60_000


def test_the_page_shows_every_figure_and_no_other():
    shown = re.findall(r"\]\(images/statistics/(\w+)\.svg\)", PAGE.read_text())
    assert sorted(shown) == sorted(FIGURES)
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(FIGURES)


def test_files_are_small_and_undated():
    for path in FOLDER.iterdir():
        text = path.read_text()
        assert len(text) < MOST_BYTES, path.name
        assert "dc:date" not in text, path.name


@pytest.mark.parametrize("name", ["confidence", "shrinkage"])
def test_a_figure_is_the_same_every_time(name, tmp_path):
    for file in ("one.svg", "two.svg"):
        draw(name, tmp_path / file)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_links_within_the_page_lead_somewhere():
    text = PAGE.read_text()
    heads = {
        re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-")
        for head in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    }
    wanted = set(re.findall(r"\]\(#([\w-]+)\)", text))
    assert wanted
    assert wanted <= heads
