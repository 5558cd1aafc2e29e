"""What the documents say about the tree is true."""

import re
from pathlib import Path

import pytest

from conversion_assets.domain.terms import HealthRule

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# Something in backticks that looks like a path of this repository.
PATH = re.compile(
    r"`((?:conversion_assets|conversion_assets_tests|docs|examples|benchmarks|requirements)"
    r"/[\w./-]*)`"
)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_paths_and_links_exist(document):
    text = document.read_text()
    missing = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    missing += [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    assert not missing


def test_every_make_target_in_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_rule_of_health_has_a_runbook():
    pages = {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert {str(rule) for rule in HealthRule} <= pages
