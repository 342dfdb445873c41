"""Numbers about the code's structure: imports inside functions, long functions, public names without a docstring."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests import ROOT
from tests.source_trees import nodes, parsed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FUNCTION_LINES = 40
"""Lines of the longest function, from `def` to its end; decorators do not count."""

INNER_IMPORTS = 90
"""Imports inside functions; the number only falls."""

REASON = re.compile(
    r"noqa: PLC0415(?:, \w+)? - (?:"
    r".*\b\d+(?:\.\d+)? (?:ms|s|MB)\b"  # what it saves, as measured
    r"|the engine's\b"  # there is no such module outside of the engine's process
    r"|only (?:with the extra `\w+`|where .+ (?:is installed|has it))"  # an optional package, or a newer Python
    r")"
)
"""Why an import is inside a function: a figure with its unit, or one of two reasons why the module may be missing."""

SOURCES = tuple(file for folder in ("core", "plugins") for file in sorted((ROOT / folder).rglob("*.py")))


class InnerImport(NamedTuple):
    """An import statement inside a function."""

    where: str
    has_reason: bool


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method, nested ones included."""
    for node in nodes(file):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def inner_imports(file: Path) -> list[InnerImport]:
    """Imports inside functions. The first of several in a row gives the reason for all of them."""
    lines = file.read_text(encoding="utf-8").splitlines()
    outside = {id(node) for node in _outside_functions(parsed(file))}
    imports = [
        node for node in nodes(file) if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in outside
    ]
    found: list[InnerImport] = []
    reason_until, has_reason = 0, False
    for first, last in sorted((node.lineno, node.end_lineno or node.lineno) for node in imports):
        own = REASON.search(lines[first - 1]) is not None
        has_reason = own or (has_reason and first == reason_until + 1)
        reason_until = last
        found.append(InnerImport(f"{file.relative_to(ROOT)}:{first}", has_reason))
    return found


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """The statements of a module that are in no function."""
    for below in ast.iter_child_nodes(node):
        if not isinstance(below, ast.FunctionDef | ast.AsyncFunctionDef | ast.expr):
            yield below
            yield from _outside_functions(below)


def public(node: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions, classes and methods of a module or class."""
    for below in node.body:
        if isinstance(below, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not below.name.startswith("_"):
            yield below
            if isinstance(below, ast.ClassDef):
                yield from public(below)


def is_override(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether a base class has its docstring."""
    return any(isinstance(one, ast.Name) and one.id == "override" for one in node.decorator_list)


def test_functions_are_short() -> None:
    """Cut a longer one into steps with names."""
    found = [
        f"{file.relative_to(ROOT)}:{function.lineno} {function.name}"
        for file in SOURCES
        for function in functions(file)
        if (function.end_lineno or 0) - function.lineno >= FUNCTION_LINES
    ]
    assert found == []


def test_imports_inside_functions_are_few_and_say_why() -> None:
    """Each names its measured gain, e.g. `# noqa: PLC0415 - httpx: 46 ms of a restore`."""
    found = [one for file in SOURCES for one in inner_imports(file)]
    assert len(found) <= INNER_IMPORTS
    assert [one.where for one in found if not one.has_reason] == []


def test_public_names_have_docstrings() -> None:
    """Modules, classes, functions and methods. An override has the docstring of its base class."""
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
        for file in SOURCES
        for node in public(parsed(file))
        if ast.get_docstring(node) is None and not is_override(node)
    ]
    assert found == []


@pytest.mark.parametrize(
    "why",
    [
        "httpx: 46 ms of a restore",
        "tarfile: 1.2 ms, while the sandboxes get ready",
        "the engine's",
        "only with the extra `testing`",
        "only where h11 is installed",
        "only where Python has it: 3.14",
    ],
)
def test_a_reason_is_a_figure_or_a_missing_module(why: str) -> None:
    """The test recognises every kind."""
    assert REASON.search(f"import one  # noqa: PLC0415 - {why}")


@pytest.mark.parametrize("why", ["hardly ever", "saves 2 imports", "only in `fetch`", "slow: many ms", "as above"])
def test_a_reason_without_a_figure_is_none(why: str) -> None:
    """A number needs a unit, and `only` the package that may be missing."""
    assert not REASON.search(f"import one  # noqa: PLC0415 - {why}")
