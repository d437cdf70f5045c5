"""Relative links in the pages of the repository lead to files and headings that are there.

The site's build checks the pages of docs/ only.
"""

import re
from pathlib import Path

import pytest

from shell_lines import PAGES, ROOT

LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"^\s*```.*?^\s*```", re.MULTILINE | re.DOTALL)
CARD = ROOT / "src" / "dalle_mini" / "assets" / "emoji" / "README.md"


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives the page's headings."""
    lines = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    texts = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line) for line in lines)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", CARD], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    missing = []
    for target, heading in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (heading and heading not in headings(path)):
            missing.append(f"{target}#{heading}" if heading else target)
    assert not missing
