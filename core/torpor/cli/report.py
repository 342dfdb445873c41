"""`torpor report`: recorded starts as one page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.cli.outputs import check_output, write_output
from torpor.report import read_report
from torpor.report.page import page

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["run_report"]


def run_report(files: Sequence[Path], *, output: str) -> None:
    """Read every file, then write the page."""
    check_output("--output", output)
    write_output("--output", output, page([read_report(file) for file in files]))
