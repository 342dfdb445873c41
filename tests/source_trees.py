"""The syntax trees of Python files. A worker parses each file once, for all tests that read sources."""

from __future__ import annotations

import ast
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["nodes", "parsed"]


@functools.cache
def parsed(file: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def nodes(file: Path) -> tuple[ast.AST, ...]:
    """Every node of a file's syntax tree, as `ast.walk` yields them."""
    return tuple(ast.walk(parsed(file)))
