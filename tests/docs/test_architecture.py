"""The map of the code: its folders exist, and each function on the path of a start is in the named module."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from tests.docs.pages import DOCS, PAGES
from tests.source_trees import parsed

if TYPE_CHECKING:
    from pathlib import Path

PAGE = (DOCS / "architecture.md").read_text(encoding="utf-8")
STEPS = sorted(set(re.findall(r"`([\w/.-]+\.py):([\w.]+)`", PAGE)))
NAMED = re.compile(
    r"`((?:core|plugins|apps|examples|benchmarks|scripts|requirements|tests|docs)/[\w./-]*)(?::[\w.]+)?`"
)


def defined(file: Path) -> set[str]:
    """Names of a module's functions and classes, and of methods with their class."""
    names = set()
    for node in parsed(file).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        for below in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(below, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(f"{node.name}.{below.name}")  # type: ignore[attr-defined]
    return names


@pytest.mark.parametrize(("file", "name"), STEPS)
def test_a_step_of_the_path_is_where_the_map_says(file: str, name: str) -> None:
    """The test finds a function, class or method that has moved."""
    assert name in defined(ROOT / file)


def test_the_path_is_complete() -> None:
    """It names each file that carries the lifecycle, from the command to the serving replica."""
    assert len(STEPS) > 25
    files = {file for file, _ in STEPS}
    for file in (
        "cli/up",
        "app_file",
        "lifecycle",
        "recipe",
        "runtime/boot",
        "engine/start",
        "runtime/readiness",
        "runtime/canary",
        "runtime/guard_client",
        "telemetry/records",
    ):
        assert f"core/torpor/{file}.py" in files


def test_every_folder_is_on_the_map() -> None:
    """The framework's folders, and those at the top of the repository."""
    table = PAGE.partition("## Folders")[2].partition("## The path")[0]
    core = ROOT / "core" / "torpor"
    for folder in core.iterdir():
        if (folder / "__init__.py").exists():
            assert f"`core/torpor/{folder.name}/`" in table
    for name in ("plugins", "apps", "benchmarks", "scripts", "requirements", "tests"):
        assert f"`{name}/`" in table


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    """Files and folders of the repository."""
    for path in NAMED.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path
