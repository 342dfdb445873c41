"""Tables, colours and live lines by rich, with markup, emoji codes and highlighting off (see `torpor.cli.terminal`)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from torpor._override import override
from torpor.cli import terminal
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from rich.console import HighlighterType, JustifyMethod, OverflowMethod
    from rich.style import Style

__all__ = ["LEVEL_STYLES", "PlainConsole", "console", "shown"]

LEVEL_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}
"""Styles of findings, by their level."""


class PlainConsole(Console):
    """Shows every string unchanged: markup is off, and control characters are escaped."""

    @override
    def render_str(
        self,
        text: str,
        *,
        style: str | Style = "",
        justify: JustifyMethod | None = None,
        overflow: OverflowMethod | None = None,
        emoji: bool | None = None,
        markup: bool | None = None,
        highlight: bool | None = None,
        highlighter: HighlighterType | None = None,
    ) -> Text:
        return Text(plain(text), style=style, justify=justify, overflow=overflow)


def console(*, results: bool = False) -> PlainConsole:
    """A console as wide as the terminal; elsewhere as wide as COLUMNS, or unlimited. It obeys NO_COLOR and FORCE_COLOR.

    Args:
        results: print to standard output instead of standard error.
    """
    stream = terminal.output() if results else sys.stderr
    return PlainConsole(
        file=stream,
        width=terminal.width(stream) if results or not stream.isatty() else None,
        markup=False,
        emoji=False,
        highlight=False,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
    )


def shown(text: str, style: str = "") -> Text:
    """A text from outside, safe for places where rich reads markup, and for a cell with a style."""
    return Text(plain(text), style=style)
