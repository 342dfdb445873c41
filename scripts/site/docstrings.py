"""Docstrings as this repository writes them: a summary, a text, and sections with a heading and an indented body."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

__all__ = ["Docstring", "parse", "prose"]

_HEADING = re.compile(r"^([A-Z][a-z]+(?: [a-z]+)?):$", re.MULTILINE)
_ENTRY = re.compile(r"^(\w+): ", re.MULTILINE)


@dataclass(frozen=True)
class Docstring:
    """One docstring.

    Attributes:
        summary: its first line.
        text: what stands before the first section, without the summary.
        sections: body by heading, in order, without the indentation.
    """

    summary: str
    text: str
    sections: dict[str, str]

    def entries(self, heading: str) -> dict[str, str]:
        """The `name: text` entries of a section such as `Attributes`, each text on one line."""
        body = self.sections.get(heading, "")
        pieces = _ENTRY.split(body)
        return {name: prose(told) for name, told in zip(pieces[1::2], pieces[2::2], strict=True)}


def parse(thing: object) -> Docstring:
    """The docstring of a class, function or module.

    Raises:
        ValueError: it has none.
    """
    whole = inspect.getdoc(thing)
    if not whole:
        raise ValueError(f"{thing!r} has no docstring, so no page can be made of it.")
    summary, _, rest = whole.partition("\n")
    pieces = _HEADING.split(rest)
    bodies = zip(pieces[1::2], pieces[2::2], strict=True)
    return Docstring(summary, pieces[0].strip(), {heading: inspect.cleandoc(body) for heading, body in bodies})


def prose(text: str) -> str:
    """Text of several lines on one."""
    return " ".join(text.split())
