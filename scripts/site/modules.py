"""The map of modules: every module of core and plugins with the first sentence of its docstring, folder by folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path

__all__ = ["module_map", "packages"]

ROOT = Path(__file__).parents[2]
SOURCES = ("core", "plugins")


def packages() -> list[Path]:
    """Every package folder under the source roots, the framework first."""
    return [file.parent for source in SOURCES for file in sorted((ROOT / source).rglob("__init__.py"))]


def module_map() -> str:
    """A table for each package."""
    return "\n\n".join(_package(folder) for folder in packages())


def _package(folder: Path) -> str:
    rows = [f"| `{file.name}` | {_sentence(file)} |" for file in sorted(folder.glob("*.py"))]
    return "\n".join([f"### {folder.relative_to(ROOT)}/", "", "| module | what it is |", "| --- | --- |", *rows])


def _sentence(file: Path) -> str:
    """The first sentence of a module's docstring; empty for a module without one."""
    told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = " ".join(told.partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", first + " ", maxsplit=1)[0].replace("|", "\\|")
