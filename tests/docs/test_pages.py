"""The tools for pages: what counts as a block, as a command, and as the same output."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

import pytest
from scripts.site.pages import written

from tests.docs.pages import Block, blocks, command_lines, commands, matches

if TYPE_CHECKING:
    from pathlib import Path

PAGE = """# Title

    torpor plan app.py       # a comment
    $ torpor boots x
    one

Text, and a list:

1. first
    that goes on

```python title="a.py"
x = 1
```

```console
$ torpor key new
key ...
$ make run
```
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A small page."""
    file = tmp_path / "page.md"
    file.write_text(PAGE)
    return file


def test_blocks_are_fences_and_indented_lines_after_an_empty_one(page: Path) -> None:
    """A list item that continues is no block."""
    assert blocks(page) == [
        Block(page, 3, "", "", "torpor plan app.py       # a comment\n$ torpor boots x\none\n"),
        Block(page, 13, "python", "a.py", "x = 1\n"),
        Block(page, 17, "console", "", "$ torpor key new\nkey ...\n$ make run\n"),
    ]


def test_commands_are_returned_with_their_output(page: Path) -> None:
    """One without output has an empty text."""
    assert [(one.words, one.output) for one in commands(page)] == [
        ("torpor boots x", "one"),
        ("torpor key new", "key ..."),
        ("make run", ""),
    ]
    assert [words for _, words in command_lines(page)] == [
        "torpor plan app.py",
        "torpor boots x",
        "torpor key new",
        "make run",
    ]


@pytest.mark.parametrize(
    ("shown", "seen"),
    [
        ("a\n...\nz", "a\nb\nc\nz\n"),
        ("a\n...\nz", "a\nz"),
        ("took 1.25 s", "took 31.5 s"),
        ("a   b", "  a b"),
        ("key ... end", "key AbC end"),
    ],
)
def test_equal_outputs_match(shown: str, seen: str) -> None:
    """Text in place of `...`, decimal numbers and blanks may differ."""
    assert matches(shown, seen)


@pytest.mark.parametrize(
    ("shown", "seen"),
    [("a", "a\nb"), ("a\nz", "a\nb\nz"), ("24 tokens", "25 tokens"), ("a...c", "ab"), ("a", ""), ("...\na", "b")],
)
def test_different_outputs_do_not_match(shown: str, seen: str) -> None:
    """Nothing else may differ."""
    assert not matches(shown, seen)


@functools.cache
def pages() -> dict[str, str]:
    """The complete pages of the site, without their code."""
    return {name: re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL) for name, text in written().items()}


def cells(row: str) -> int:
    """How many cells a row of a table has. A bar in code, and one after a backslash, divides nothing."""
    return len(re.findall(r"(?<!\\)\|", re.sub(r"`[^`]*`", "", row.strip()))) - 1


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    """A row that another one took the place of is found."""
    wrong = []
    for name, text in pages().items():
        for table in re.findall(r"(?:^\|.*\n)+", text + "\n", re.MULTILINE):
            head, *rows = table.splitlines()
            wrong += [f"{name}: {row[:100]}" for row in rows if cells(row) != cells(head)]
    assert wrong == []


@pytest.mark.parametrize(
    ("row", "count"), [("| a | b |", 2), ("| `a | b` | c |", 2), (r"| a \| b | c |", 2), ("| a |", 1)]
)
def test_the_cells_of_a_row_are_counted(row: str, count: int) -> None:
    """As Markdown counts them."""
    assert cells(row) == count
