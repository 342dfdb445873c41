"""Parses the pages of the documentation: code blocks, commands with their output, links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DOCS = ROOT / "docs"
PAGES = tuple(sorted([*(ROOT / f"{name}.md" for name in ("README", "SECURITY", "CONTRIBUTING")), *DOCS.glob("*.md")]))

_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?<=\n\n)(?:    .*\n|\n(?=    ))+")


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        page: the file that holds it.
        line: number of its first line.
        language: of the fence; empty for none, and for an indented block.
        title: name of the file that it shows, if any.
        text: what is in it, without indentation.
    """

    page: Path
    line: int
    language: str
    title: str
    text: str

    @property
    def where(self) -> str:
        """Page and line of a block."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        block: the block that contains it.
        words: the command line.
        output: what the page shows as its output; empty where it shows none.
    """

    block: Block
    words: str
    output: str


def blocks(page: Path) -> list[Block]:
    """Every code block of a page, fenced or indented, in order."""
    text = page.read_text(encoding="utf-8")
    found = [Block(page, _line(text, one.start()) + 1, one[1], one[2] or "", one[3]) for one in _FENCE.finditer(text)]
    rest = _FENCE.sub(lambda one: "\n" * one[0].count("\n"), text)
    for one in _INDENTED.finditer(rest):
        lines = "".join(line[4:] if line.strip() else line for line in one[0].splitlines(keepends=True))
        found.append(Block(page, _line(rest, one.start()), "", "", lines))
    return sorted(found, key=lambda block: block.line)


def commands(page: Path) -> Iterator[Command]:
    """Every line of a page's blocks that begins with `$ `, with the lines below it."""
    for block in blocks(page):
        pieces = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)
        for words, output in zip(pieces[1::2], pieces[2::2], strict=True):
            yield Command(block, words.strip(), output.rstrip("\n"))


def command_lines(page: Path) -> Iterator[tuple[Block, str]]:
    """Every line of a page's blocks that is a command, with or without `$ `. Text after a blank and `#` is a comment."""
    for block in blocks(page):
        for line in block.text.splitlines() if block.language in ("", "console") else ():
            words = re.split(r"\s#", line.removeprefix("$ "), maxsplit=1)[0].strip()
            if line.startswith("$ ") or re.match(r"(torpor|make|modal|python) ", words):
                yield block, words


def matches(shown: str, seen: str) -> bool:
    """Whether a command's output is the one that a page shows.

    `...` on a line of its own stands for any lines, within a line for any text. Decimal numbers, which are measured, may
    differ, and so may the amount of blanks.
    """
    pattern = ""
    for line in _plain(shown):
        if line == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(piece) for piece in line.split("...")) + r"\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _plain(seen))) is not None


def _plain(text: str) -> list[str]:
    lines = [re.sub(r"\d+\.\d+", "#", " ".join(line.split())) for line in text.strip("\n").splitlines()]
    return [line for line in lines if line]


def _line(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1
