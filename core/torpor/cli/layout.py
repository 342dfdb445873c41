"""Lines of text for a width: fields with hanging indents, and command lines to read and paste."""

from __future__ import annotations

import ast
import shlex
from pathlib import PurePath
from typing import TYPE_CHECKING

from torpor.cli.console import LEVEL_STYLES, shown
from torpor.cli.console import console as make_console
from torpor.cli.terminal import output, width, wrapped
from torpor.values.plain_text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.values.findings import Finding

__all__ = ["Layout"]

_NARROW = 60
_NARROW_INDENT = 4
_PROGRAM = "PROGRAM"


class Layout:
    """Prints lines as results, with colours on a terminal.

    It wraps lines on a terminal and if COLUMNS is set; elsewhere a paragraph stays one line.
    """

    def __init__(self) -> None:
        self._console = make_console(results=True)
        self._width = width(output())

    def heading(self, text: str) -> None:
        """A line on its own."""
        self._show([text], "bold")

    def row(self, text: str) -> None:
        """A line that is not wrapped, as a row of a table."""
        self._show([text])

    def blank(self) -> None:
        """An empty line."""
        self._show([""])

    def field(self, before: str, text: str, style: str = "") -> None:
        """A paragraph whose further lines are indented to the first one's text.

        Args:
            before: stands before the first line.
            text: of one paragraph; line ends in it are shown escaped.
            style: of what stands before it.
        """
        rest = " " * (len(before) if self._width >= _NARROW else min(len(before), _NARROW_INDENT))
        lines = wrapped(one_line(text), self._width, first=before, rest=rest)
        self._show(lines, style, until=len(before))

    def finding(self, finding: Finding) -> None:
        """What was found, and below it what to do."""
        by = f" [{finding.plugin}]" if finding.plugin else ""
        self.field(f"  {finding.what}{by}: ", finding.seen, LEVEL_STYLES[finding.level])
        if finding.cure:
            self.field("      -> ", finding.cure)

    def command(self, indent: str, argv: Sequence[str]) -> None:
        """A command line, with a backslash at each line break; a program in Python or of several lines is shown below it."""
        words, programs = _without_programs(argv)
        lines, line = list[str](), indent
        for unit in _units(words):
            if line.strip() and len(f"{line} {unit} \\") > self._width:
                lines.append(f"{line} \\")
                line = f"{indent}    {unit}"
            else:
                line = f"{line} {unit}" if line.strip() else f"{indent}{unit}"
        self._show([*lines, line])
        for name, program in programs.items():
            self._show([f"{indent}  {name}:"], "dim")
            self._show([f"{indent}    {part}" for part in program.splitlines()])

    def _show(self, lines: Sequence[str], style: str = "", *, until: int | None = None) -> None:
        for number, line in enumerate(lines):
            text = shown(line)
            if style and (number == 0 or until is None):
                text.stylize(style, 0, until)
            self._console.print(text, soft_wrap=True)


def _units(words: Sequence[str]) -> list[str]:
    """Words that stay on one line, as a flag with its value."""
    units: list[str] = []
    for word in words:
        quoted = one_line(shlex.quote(word)) if word not in (_PROGRAM,) else word
        if (
            units
            and units[-1].startswith("-")
            and " " not in units[-1]
            and "=" not in units[-1]
            and not word.startswith("-")
        ):
            units[-1] = f"{units[-1]} {quoted}"
        else:
            units.append(quoted)
    return units


def _without_programs(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """A command line with names in place of programs, and the programs by these names."""
    words, programs = list(argv), dict[str, str]()
    for at, word in enumerate(words):
        program = _program(words[at - 2 : at], word) if at > 1 else ""
        if program or "\n" in word:
            name = f"{_PROGRAM}{len(programs) + 1 if programs else ''}"
            programs[name] = program or word
            words[at] = name
    return words, programs


def _program(before: Sequence[str], word: str) -> str:
    """The program of a `python -c`, one statement on each line; empty for anything else."""
    if not (PurePath(before[0]).name.startswith("python") and before[1] == "-c"):
        return ""
    try:
        return word if "\n" in word else ast.unparse(ast.parse(word))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return word
