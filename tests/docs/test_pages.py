"""The tools for pages: what counts as a block, as a command, and as the same output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
