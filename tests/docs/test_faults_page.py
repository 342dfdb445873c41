"""The table of faults is read from the marks of the tests and is complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from scripts.site import faults

from tests.docs.pages import DOCS

if TYPE_CHECKING:
    from pathlib import Path

GOOD = '@pytest.mark.fault("a pipe | breaks", area="pipes", outcome="held")\ndef test_it(): ...\n'


def _write(folder: Path, text: str) -> Path:
    tests = folder / "tests"
    tests.mkdir(exist_ok=True)
    (tests / "test_pipes.py").write_text(text, encoding="utf-8")
    return tests


def test_a_mark_is_a_row(tmp_path: Path) -> None:
    """Area, fault, outcome and file are read without running the test."""
    assert faults.read_faults(_write(tmp_path, GOOD)) == (
        faults.Fault("pipes", "a pipe | breaks", "held", "tests/test_pipes.py"),
    )


def test_two_tests_of_one_fault_are_one_row(tmp_path: Path) -> None:
    """The row names the first file in alphabetical order."""
    assert len(faults.read_faults(_write(tmp_path, GOOD + GOOD))) == 1


@pytest.mark.parametrize(
    "mark",
    [
        '@pytest.mark.fault("x", area="a", outcome="ignored")',
        '@pytest.mark.fault("x", area="a")',
        '@pytest.mark.fault("x", "a", "held")',
        '@pytest.mark.fault(NAME, area="a", outcome="held")',
        '@pytest.mark.fault("", area="a", outcome="held")',
    ],
)
def test_a_mark_that_cannot_be_a_row_is_an_error(tmp_path: Path, mark: str) -> None:
    """The error names file and line."""
    with pytest.raises(ValueError, match=r"tests/test_pipes\.py:1: "):
        faults.read_faults(_write(tmp_path, f"{mark}\ndef test_it(): ...\n"))


def test_the_page_explains_every_outcome_and_holds_the_table() -> None:
    """The page uses the outcomes' names from the marks."""
    page = (DOCS / "faults.md").read_text(encoding="utf-8")
    for outcome, meaning in faults.OUTCOMES.items():
        assert f"* **{outcome}**: {meaning}." in page
    assert "<!-- generated: faults -->" in page


def test_every_fault_of_the_tests_is_in_the_table() -> None:
    """A cell that contains a bar stays one cell."""
    table = faults.fault_table()
    for fault in faults.read_faults():
        assert f"| {fault.what.replace('|', chr(92) + '|').replace('<', '&lt;')} | {fault.outcome} |" in table
