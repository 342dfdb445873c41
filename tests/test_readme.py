"""The README: short enough to be read whole."""

from __future__ import annotations

from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
LINES = 150


def test_the_readme_is_short_enough_to_be_read() -> None:
    """What does not fit goes into docs/."""
    assert len(README.read_text().splitlines()) <= LINES
