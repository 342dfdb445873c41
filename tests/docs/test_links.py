"""Links in the README and in docs/ also work in the repository itself, as on its web page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from scripts.site.pages import ADOPTED

from tests import ROOT
from tests.docs.pages import DOCS, PAGES

if TYPE_CHECKING:
    from pathlib import Path

LINK = re.compile(r"\]\((?!https?:)([^)\s#]*)(?:#([^)\s]*))?\)")
NOTES = ROOT / "benchmarks" / "gpu" / "NOTES.md"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made from their words."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, NOTES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_a_link_leads_to_a_file_and_a_heading_in_it(page: Path) -> None:
    """Relative to the page's own folder."""
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} of {page.name}"
        assert target.is_relative_to(ROOT), f"{path} of {page.name}"
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor} of {page.name}"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_links_only_to_pages_of_the_site(page: Path) -> None:
    """It names files outside the site without a link."""
    for path, _ in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve()
        source = target.relative_to(ROOT).as_posix()
        assert target.parent == DOCS or source in ADOPTED.values() or not path, f"{path} of {page.name}"


def test_the_readme_leads_to_the_pages_that_a_newcomer_needs() -> None:
    """Tutorials, troubleshooting, security."""
    linked = {path for path, _ in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
    wanted = {"docs/first-start.md", "docs/modal.md", "docs/plugin.md", "docs/troubleshooting.md", "SECURITY.md"}
    assert wanted <= linked
