"""Fills the names into the templates of a new project."""

from __future__ import annotations

from dataclasses import asdict
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from torpor._version import __version__
from torpor.scaffold.tasks import task_values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

    from torpor.scaffold.names import Names
    from torpor.tasks.routes import Task

__all__ = ["project_files"]

_SUFFIX = ".template"
"""The suffix keeps tools from reading a template as a real file: linters, pytest, git (`.gitignore`), build backends."""

_DOT = "dot-"  # in place of the leading dot of a name
_MODULE = "MODULE"


def project_files(names: Names, *, engine: bool, task: Task = "chat") -> dict[str, str]:
    """Return the project's files as relative path (with `/`) to text, in alphabetical order.

    Args:
        names: the names to fill in.
        engine: whether the plugin launches an engine; that of the templates serves chats.
        task: what the app of another plugin serves, and what that plugin asks.
    """
    values = {**asdict(names), **_kind(engine=engine), **task_values(task)}
    root = files("torpor.scaffold") / "templates"
    made = {}
    for folder in ("shared", "engine" if engine else "plugin"):
        for path, template in _templates(root / folder):
            name = path.removesuffix(_SUFFIX).replace(_MODULE, names.module)
            made[name] = Template(template).substitute(values)
    return dict(sorted(made.items()))


def _kind(*, engine: bool) -> dict[str, str]:
    """Return values of shared files that differ between plugin and engine; lower bounds are Torpor's own."""
    release = ".".join(__version__.split(".")[:2])
    needs = [f"torpor>={release}", *(["uvicorn>=0.35"] if engine else [])]
    test_needs = ["torpor[testing]", *(["httpx>=0.28"] if engine else [])]
    return {
        "kind": "An engine" if engine else "A plugin",
        "needs": ", ".join(f'"{need}"' for need in needs),
        "test_needs": ", ".join(f'"{need}"' for need in test_needs),
    }


def _templates(folder: Traversable, before: str = "") -> Iterator[tuple[str, str]]:
    """Yield path and text of each template under the folder; the path has its leading dots."""
    for entry in folder.iterdir():
        name = f".{entry.name.removeprefix(_DOT)}" if entry.name.startswith(_DOT) else entry.name
        if entry.is_dir():
            yield from _templates(entry, f"{before}{name}/")
        elif name.endswith(_SUFFIX):
            yield f"{before}{name}", entry.read_text(encoding="utf-8")
