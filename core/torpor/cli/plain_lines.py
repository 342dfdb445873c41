"""Plain lines of the commands that serve: read without the full parser, whose import takes 0.1 s and 11 MB."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.cli.plain_serve import served_plainly
from torpor.cli.plain_up import started_plainly

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ran_plainly"]


def ran_plainly(words: Sequence[str]) -> bool:
    """Run a command line to its end, if it is a plain one; returns whether it is.

    Args:
        words: of the command line, without the program.
    """
    return served_plainly(words) or started_plainly(words)
