"""`torpor.errors`: the tree has every error, and core raises each kind of snapshot error."""

from __future__ import annotations

import ast
import functools
import re
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.source_trees import nodes
from torpor import errors
from torpor.errors import SnapshotError, TorporError

if TYPE_CHECKING:
    from pathlib import Path

CORE = ROOT / "core" / "torpor"

ELSEWHERE = {
    "OutputError": "cli/terminal.py",  # of the command line only
    "RulesError": "guard/rules.py",  # runs in the engine's process
    "UnansweredError": "snapshots/gpu/calls.py",  # caught in its own package
}
"""Errors that no caller of the library meets, by file."""

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SnapshotError)]


@functools.cache
def others(naming: str) -> tuple[Path, ...]:
    """Every other module of core whose text has a match of a pattern: only those are parsed."""
    pattern = re.compile(naming, re.MULTILINE)
    files = (file for file in CORE.rglob("*.py") if file.name != "errors.py")
    return tuple(file for file in files if pattern.search(file.read_text(encoding="utf-8")))


@functools.cache
def used() -> set[str]:
    """The names that core raises, returns or assigns."""
    return {
        node.id
        for file in others("|".join(kind.__name__ for kind in KINDS))
        for statement in nodes(file)
        if isinstance(statement, ast.Raise | ast.Return | ast.Assign)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name)
    }


def test_every_error_of_core_is_in_the_tree() -> None:
    """Except internal errors that never reach a caller."""
    known = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, TorporError)}
    found = {
        node.name: str(file.relative_to(CORE))
        for file in others(r"^ *class \w+\([^)]*Error")
        for node in nodes(file)
        if isinstance(node, ast.ClassDef) and known & {base.id for base in node.bases if isinstance(base, ast.Name)}
    }
    assert found == ELSEWHERE


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_of_snapshot_error_is_raised(kind: type[SnapshotError]) -> None:
    """Core calls or selects each class somewhere, so `except SnapshotError` covers real errors."""
    assert kind.__name__ in used()
    assert kind.exit_code == SnapshotError.exit_code
