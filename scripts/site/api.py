"""The API pages: which names there are, where each one is described, and their docstrings as Markdown.

A page names what it describes, one directive a line: `::: torpor.Deployment`. mkdocstrings makes HTML of it. The Markdown next to
the HTML, for programs, gets signature and docstring by `expanded`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    thing = _object(name)
    head = f"## {name}\n\n```python\n{_signature(thing)}\n```\n"
    members = [
        f"### {name}.{one.name}\n\n```python\n{_signature(one)}\n```\n\n{_docstring(one)}\n"
        for one in thing.members.values()
        if thing.is_class and not one.name.startswith("_") and (one.is_function or one.is_attribute) and one.docstring
    ]
    return "\n".join([head, f"{_docstring(thing)}\n", *members])


def _signature(thing: Any) -> str:
    """As the source has it: a class with its fields, a function with its types, a value with its own."""
    if thing.is_attribute:
        value = f" = {thing.value}" if thing.value is not None else ""
        return f"{thing.name}: {thing.annotation}{value}" if thing.annotation is not None else f"{thing.name}{value}"
    return str(thing.signature())


def _docstring(thing: Any) -> str:
    return inspect.cleandoc(thing.docstring.value) if thing.docstring else ""


def _summary(name: str) -> str:
    """The first paragraph of a docstring."""
    first = _docstring(_object(name)).partition("\n\n")[0]
    return " ".join(first.split()).replace("|", "\\|")


def _object(name: str) -> Any:
    """A name as griffe, which mkdocstrings uses too, reads it from the source. Nothing of the package is imported.

    Raises:
        ValueError: there is no such name.
    """
    try:
        found = _package()[name.removeprefix("torpor.")]
    except KeyError:
        raise ValueError(f"A page describes {name}, which does not exist.") from None
    return found.final_target if found.is_alias else found


@functools.cache
def _package() -> Any:
    import griffe  # noqa: PLC0415 - only where the site is built

    return griffe.load("torpor", search_paths=[ROOT / "core"], resolve_aliases=True)
