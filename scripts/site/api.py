"""The API pages: which names there are, where each one is described, and their docstrings as Markdown.

A page names what it describes, one directive a line: `::: torpor.Deployment`. mkdocstrings makes HTML of it. The Markdown next to
the HTML, for programs, gets signature and docstring by `expanded`.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["PACKAGES", "described", "directive", "expanded", "name_index", "public_names"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

PACKAGES = (
    "torpor",
    "torpor.client",
    "torpor.engine_plugins",
    "torpor.guard",
    "torpor.launcher",
    "torpor.listener",
    "torpor.platforms.local",
    "torpor.platforms.modal",
    "torpor.platforms.ray",
    "torpor.testing",
)
"""What people import from, as the docstring of `torpor` says."""

_DIRECTIVE = re.compile(r"^::: ([\w.]+)\n(?:    .*\n)*", re.MULTILINE)


def public_names() -> dict[str, tuple[str, ...]]:
    """The names of every public package, without those that begin with two underscores."""
    return {
        package: tuple(name for name in importlib.import_module(package).__all__ if not name.startswith("__"))
        for package in PACKAGES
    }


def described() -> dict[str, str]:
    """The page of each directive's name.

    Raises:
        ValueError: two pages describe the same name.
    """
    found: dict[str, str] = {}
    for file in sorted(DOCS.glob("*.md")):
        for name in _DIRECTIVE.findall(file.read_text(encoding="utf-8")):
            if name in found:
                raise ValueError(f"{found[name]} and {file.name} both describe {name}.")
            found[name] = file.name
    return found


def directive(package: str, name: str) -> str:
    """What a page writes after `:::` for a public name. A function that is named like its own module needs both names."""
    place = f"{package}.{name}"
    return f"{place}.{name}" if (ROOT / "core" / f"{place.replace('.', '/')}.py").is_file() else place


def name_index() -> str:
    """A table for each package: its names, each with a link and the first sentence of its docstring."""
    pages, sections = described(), []
    for package, names in public_names().items():
        places = {name: directive(package, name) for name in sorted(names, key=str.lower)}
        rows = [
            f"| [`{name}`]({pages[place]}#{place}) | {_summary(place)} |"
            for name, place in places.items()
            if place in pages
        ]
        sections.append("\n".join([f"## {package}", "", "| name | what it is |", "|---|---|", *rows]))
    return "\n\n".join(sections)


def expanded(pages: Mapping[str, str]) -> dict[str, str]:
    """Pages with signature and docstring in place of each directive."""
    return {name: _DIRECTIVE.sub(lambda one: _told(one[1]) + "\n", text) for name, text in pages.items()}


def _told(name: str) -> str:
    """A name as Markdown: signature, docstring, and the members that have a docstring."""
    node, docstring = _defined(name)
    pieces = [f"## {name}\n\n```python\n{_signature(node)}\n```\n", f"{docstring}\n"]
    for member in node.body if isinstance(node, ast.ClassDef) else ():
        told = ast.get_docstring(member) if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) else None
        if told and not member.name.startswith("_"):  # type: ignore[attr-defined]
            head = f"### {name}.{member.name}"  # type: ignore[attr-defined]
            pieces.append(f"{head}\n\n```python\n{_signature(member)}\n```\n\n{told}\n")
    return "\n".join(pieces)


def _signature(node: ast.stmt) -> str:
    """As the source has it: a class with its fields or the arguments of its `__init__`, a function with its types, a value."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"{node.name}({ast.unparse(node.args)}){returns}"
    if isinstance(node, ast.ClassDef):
        own = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        fields = [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign) and _is_field(one)]
        if fields and any("kw_only=True" in ast.unparse(one) for one in node.decorator_list):
            fields.insert(0, "*")
        taken = ast.unparse(own[0].args).removeprefix("self, ").removeprefix("self") if own else ", ".join(fields)
        return f"{node.name}({taken})"
    return ast.unparse(node)


def _is_field(node: ast.AnnAssign) -> bool:
    return not ast.unparse(node.annotation).startswith("ClassVar") and not ast.unparse(node.target).startswith("_")


def _summary(name: str) -> str:
    """The first paragraph of a docstring."""
    first = _defined(name)[1].partition("\n\n")[0]
    return " ".join(first.split()).replace("|", "\\|")


@functools.cache
def _defined(name: str) -> tuple[ast.stmt, str]:
    """Where a name is defined, with its docstring. The sources are read as text, so no package has to be installed.

    Raises:
        ValueError: there is no such name.
    """
    module, _, last = name.rpartition(".")
    body = _module(module)
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == last:
            return node, ast.get_docstring(node) or ""
        if isinstance(node, ast.Assign | ast.AnnAssign) and last in _targets(node):
            told = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
            return node, inspect.cleandoc(str(told))
    for imported in (one for node in body for one in ast.walk(node) if isinstance(one, ast.ImportFrom)):
        for alias in imported.names:
            if (alias.asname or alias.name) == last and (imported.module or "").startswith("torpor"):
                return _defined(f"{imported.module}.{alias.name}")
    raise ValueError(f"A page describes {name}, which does not exist.")


def _targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


@functools.cache
def _module(name: str) -> list[ast.stmt]:
    """The statements of a module of core; none if there is no such module. Those of an `if` count as the module's own."""
    place = ROOT / "core" / name.replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    body = ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
    return list(_flat(body))


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If):
            yield from _flat([*node.body, *node.orelse])
        else:
            yield node
