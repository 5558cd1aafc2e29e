"""The README's figures: there, small, undated, and drawn of what they say."""

from pathlib import Path

import pytest

from benchmarks.recovery_figures import FIGURES, FOLDER, count_wins, draw
from conversion_assets_tests.recovery import worlds

README = Path(__file__).parents[2] / "README.md"
MOST_BYTES = 150_000


@pytest.mark.parametrize("name", FIGURES)
def test_the_readme_shows_it(name):
    assert f"(docs/images/{name}.svg)" in README.read_text()
    text = (FOLDER / f"{name}.svg").read_text()
    assert len(text) < MOST_BYTES
    assert "dc:date" not in text


def test_wins_are_counted_for_every_client_also_those_without():
    learned = worlds.learn_null(worlds.HAZARD, 3, 200, 1)
    ours, theirs = count_wins(learned)
    assert ours.shape == theirs.shape == (3,)
    assert theirs.sum() == learned.baseline["is_win"].sum()


def test_a_figure_is_the_same_every_time(tmp_path):
    for file in ("one.svg", "two.svg"):
        draw("noise", tmp_path / file, clients=2)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
