"""The code can print every line that the troubleshooting page quotes."""

from __future__ import annotations

import ast
import functools
import re

import pytest

import torpor.errors
from tests import ROOT
from tests.docs.pages import DOCS
from tests.source_trees import nodes
from torpor.errors import TorporError

PAGE = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [text for _, text in re.findall(r"^(`+)(.+)\1\n:   ", PAGE, re.MULTILINE)]
LEAST = 25
HOLE = "\0"
"""Marks a place of a message that is filled in at run time."""


@functools.cache
def messages() -> tuple[str, ...]:
    """Every string of core and plugins except docstrings, with holes for what is filled in."""
    found = []
    for folder in ("core", "plugins"):
        for file in (ROOT / folder).rglob("*.py"):
            docstrings = {id(node.value) for node in nodes(file) if isinstance(node, ast.Expr)}
            found += [message(node) for node in nodes(file) if id(node) not in docstrings]
    return tuple(text for text in found if text)


def message(node: ast.AST) -> str:
    """The text of a string, an f-string or a sum of these; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(message(part) or HOLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = message(node.left), message(node.right)
        return (left or HOLE) + (right or HOLE) if left or right else ""
    return ""


def can_print(quoted: str) -> bool:
    """Whether a message gives the quoted text when something fills each ellipsis and nothing else."""
    pieces = [re.escape(piece) for piece in re.split("\N{HORIZONTAL ELLIPSIS}+", quoted)]
    pattern = re.compile(f"{HOLE}+".join(pieces))
    return any(pattern.search(text) for text in messages())


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_line_is_in_the_source(quoted: str) -> None:
    """Character by character."""
    assert can_print(quoted)


def test_the_page_covers_the_likely_errors() -> None:
    """It has many messages, each once, and every kind of error."""
    assert len(QUOTED) >= LEAST
    assert len(set(QUOTED)) == len(QUOTED)
    kinds = [getattr(torpor.errors, name) for name in torpor.errors.__all__]
    leaves = {kind.__name__ for kind in kinds if kind not in (TorporError, torpor.errors.EngineError)}
    assert leaves - set(re.findall(r"`(\w+Error)`", PAGE)) == set()


@pytest.mark.parametrize("quoted", ["This line is in no source", "Port … is in use…: another program", ""])
def test_a_line_that_no_code_prints_is_found(quoted: str) -> None:
    """Except the empty one, which is no line."""
    assert can_print(quoted) is (quoted == "")
