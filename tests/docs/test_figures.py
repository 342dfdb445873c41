"""Every table of measured figures names the JSON that holds them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = (
    "README.md",
    "docs/benchmarks.md",
    "docs/canary.md",
    "docs/lab-notes.md",
    "benchmarks/gpu/NOTES.md",
)
MEASURED = re.compile(r"\d(\.\d+)? ?(s|ms|us|MB|MiB|GB|GB/s|%)(?![\w-])")
NAMED = re.compile(r"[\w./-]+\.json\b")
WITHOUT = {
    "docs/benchmarks.md: Repeat it": "limits, and what `make bench` prints; it keeps its JSON in benchmarks/results",
    "benchmarks/gpu/NOTES.md: Where the 1.67 s of a restore go": "of the JSON that the page names at its top",
    "benchmarks/gpu/NOTES.md: One H200: the calls behind the rows for several GPUs (2026-12-01)": "single calls, by hand",
    "docs/lab-notes.md: GPU snapshots": "what ran where; the figures stand in benchmarks/gpu/NOTES.md",
}
"""Sections whose tables name no JSON, with the reason."""


def sections(page: str) -> Iterator[tuple[str, str]]:
    """Title and text of each section of a page."""
    pieces = re.split(r"^##+ (.*)$", (ROOT / page).read_text(), flags=re.MULTILINE)
    yield "", pieces[0]
    yield from zip(pieces[1::2], pieces[2::2], strict=True)


def tabled(text: str) -> bool:
    """Whether a text has a table with a measured figure."""
    return any(MEASURED.search(line) for line in text.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("page", PAGES)
def test_a_table_of_figures_names_its_json(page: str) -> None:
    """In its section. The file is in the repository."""
    found = {title: NAMED.findall(text) for title, text in sections(page) if tabled(text)}
    lacking = [title for title, names in found.items() if not names and f"{page}: {title}" not in WITHOUT]
    assert lacking == [], "name the JSON of these tables, or say in WITHOUT why there is none"


def test_every_json_that_a_page_names_is_there() -> None:
    """Beside the page, in benchmarks/ or in benchmarks/gpu/; what a command would write is in no table."""
    folders = [ROOT / "benchmarks", ROOT / "benchmarks" / "gpu"]
    for page in PAGES:
        for name in re.findall(r"\(([\w./-]+\.json)\)", (ROOT / page).read_text()):
            places = [(ROOT / page).parent / name, *(folder / name for folder in folders)]
            assert any(place.is_file() for place in places), f"{page} names {name}, which is not there"


def test_the_exceptions_are_needed() -> None:
    """Each is a section that is there and names no JSON."""
    without = {
        f"{page}: {title}"
        for page in PAGES
        for title, text in sections(page)
        if tabled(text) and not NAMED.search(text)
    }
    assert without >= WITHOUT.keys()
