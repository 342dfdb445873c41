"""Which Python sources go into the container: Torpor, the plugins' packages, and what plugins ask for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.deployment import plugin_name
from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import PurePath

    from torpor.deployment import Deployment
    from torpor.recipe import Recipe

__all__ = ["is_left_out", "python_sources"]

_NOT_IN_CONTAINER = (
    "cli",
    "doctor",
    "plan",
    "platforms.local",
    "platforms.modal.prewarm",
    "platforms.ray",
    "report",
    "scaffold",
    "serving",
    "snapshots",
    "testing",
)
"""Modules of Torpor that no container on Modal imports: commands, reports, and the snapshots of one machine."""


def python_sources(deployment: Deployment, recipe: Recipe) -> tuple[str, ...]:
    """The top-level packages that the container needs.

    Modal mounts the app file itself, but no package that it imports. A plugin that is defined in the app file comes with
    that file.

    Raises:
        ConfigurationError: a package is not on this machine.
    """
    wanted = {"torpor": "torpor"}
    for plugin in deployment.plugins:
        package = type(plugin).__module__.partition(".")[0]
        if package != "__main__":
            wanted.setdefault(package, plugin_name(plugin))
    for package in recipe.image.python_sources:
        wanted.setdefault(package, recipe.origins[f"python source:{package}"])
    for package, wanting in wanted.items():
        if not _is_here(package):
            raise ConfigurationError(
                f"Plugin {wanting!r} needs the Python source {package!r} in the container, and there is no such package or "
                f"module on this machine ({sys.executable}). Install it (`pip install -e FOLDER`), or run from the folder that "
                "holds it."
            )
    return tuple(wanted)


def is_left_out(package: str, file: PurePath) -> bool:
    """Whether a file of a source package stays on this machine.

    Files that are no code stay, and so do Torpor's commands, reports, scaffolds, contract kit and local snapshots. Of other
    packages the tests stay. A module that this process has imported goes along anyway: an app may use the kit's stand-in.

    Args:
        package: the top-level package.
        file: path inside the package.
    """
    if file.suffix != ".py" or any(part.startswith(".") or part == "__pycache__" for part in file.parts):
        return True
    names = [*file.parts[:-1], *([] if file.stem == "__init__" else [file.stem])]
    if package == "torpor":
        parts = [part for part in _NOT_IN_CONTAINER if names[: part.count(".") + 1] == part.split(".")]
    else:
        parts = [".".join(names[: at + 1]) for at, name in enumerate(names) if _is_test(name)]
    return any(f"{package}.{part}" not in sys.modules for part in parts)


def _is_test(name: str) -> bool:
    return name in ("tests", "conftest") or name.startswith("test_")


def _is_here(package: str) -> bool:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = list(spec.submodule_search_locations or [spec.origin or ""])
    return any(Path(place).exists() for place in places if place)
