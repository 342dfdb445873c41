"""The example of a third-party plugin is written with public names only; tests/scaffold/test_made_projects.py runs it."""

from __future__ import annotations

import ast

import torpor
from tests import ROOT
from torpor import guard, launcher, listener, testing

EXAMPLE = ROOT / "examples" / "torpor-llamacpp"
PUBLIC = {module.__name__: module.__all__ for module in (torpor, guard, testing, launcher, listener)}


def test_the_example_uses_public_names_only() -> None:
    """A third party's plugin needs nothing else of Torpor."""
    for file in EXAMPLE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not [alias.name for alias in node.names if alias.name.partition(".")[0] == "torpor"], file
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torpor":
                assert {alias.name for alias in node.names} <= set(PUBLIC[node.module or ""]), f"{file}:{node.lineno}"
