"""What goes into a container image, as plain strings: Torpor's own needs, the lines of build steps, source packages.

Everything here is the same on the machine that builds the image and in the container that imports the app.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.build_steps.command import step_command
from torpor.deployment import plugin_name
from torpor.errors import ConfigurationError
from torpor.recipe import IMAGE_ROOT, LINE_BREAK

if TYPE_CHECKING:
    from pathlib import PurePath

    from torpor.deployment import Deployment
    from torpor.recipe import BuildStep, Recipe

__all__ = [
    "CONTAINER_REQUIREMENTS",
    "PYTHON_LINK",
    "RUNNER",
    "filling_steps",
    "is_left_out",
    "python_sources",
    "requirements_line",
    "script_path",
    "step_line",
]

CONTAINER_REQUIREMENTS = ("pluggy>=1.6", "httpx>=0.28", "structlog>=25.1", "typing_extensions>=4.12", "psutil>=7.0")
"""What Torpor imports in the container; Modal brings its own client. No huggingface-hub: the engine's image has one,
and the version belongs to the engine (transformers 4 wants 0.x, transformers 5 wants 1.x)."""

RUNNER = f"{IMAGE_ROOT}/buildstep.py"
"""Where the build-step runner lies in the image."""

PYTHON_LINK = (
    "command -v python > /dev/null"
    ' || { found="$(command -v python3)" && ln -s python3 "$(dirname "$found")/python"; }'
    " || { echo 'This base image has neither python nor python3 on its PATH, and Modal needs one.' >&2; exit 1; }"
)
"""Gives an image a `python` where it has `python3` alone, as one line of a shell.

The link lies beside `python3`: through a link elsewhere an interpreter of a virtual environment would not find its packages.
"""

_CONSTRAINTS = f"{IMAGE_ROOT}/constraints.txt"


def requirements_line() -> str:
    """Install what Torpor needs, with everything that the image holds as a constraint.

    A clash then fails the build and names both sides; without the constraint pip would change a version that the
    engine was built and tested with. `pip list --format=freeze`, because `pip freeze` writes local builds as URLs.
    """
    pip = "python3 -m pip --disable-pip-version-check"
    wanted = shlex.join(CONTAINER_REQUIREMENTS)
    return (
        f"mkdir -p {IMAGE_ROOT} && {pip} list --format=freeze > {_CONSTRAINTS}"
        f" && PIP_BREAK_SYSTEM_PACKAGES=1 {pip} install --no-cache-dir --constraint {_CONSTRAINTS} {wanted}"
    )


def script_path(module: str) -> str:
    """Where a build step's script lies in the image."""
    return f"{IMAGE_ROOT}/scripts/{module}.py"


def step_line(step: BuildStep) -> str:
    """A build step as one shell line.

    Raises:
        ConfigurationError: a part of it has a line break, which would end the Dockerfile's command.
    """
    script = script_path(step.script) if step.script else None
    argv = step_command(step, python="python3", runner=RUNNER, script=script)
    broken = [token for token in argv if LINE_BREAK.search(token)]
    if broken:
        raise ConfigurationError(
            f"Build step {step.name!r} has a line break in {broken[0]!r}; a step is one line of a Dockerfile. "
            "Put the text into a file, or name a `script`."
        )
    return shlex.join(argv)


def python_sources(deployment: Deployment, recipe: Recipe) -> tuple[str, ...]:
    """The top-level packages that the container needs: Torpor, every plugin's own, and what plugins ask for.

    Modal mounts the app file by itself and no package that it imports. A plugin that is defined in the app file comes
    with it.

    Raises:
        ConfigurationError: one of them is not on this machine.
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


_NOT_SERVING = (
    *("cli", "report", "scaffold", "snapshots", "testing"),
    *("doctor", "plan_diff", "prewarm", "running", "service_manager", "platforms.local", "platforms.local_start"),
)
"""Parts of Torpor that no container of a platform imports: commands, reports, and the snapshots of one machine."""


def is_left_out(package: str, file: PurePath) -> bool:
    """Whether a file of a source package stays on this machine: it is no code, or code that the container does not import.

    Left out of Torpor are commands, reports, scaffolds, the contract kit and the snapshots of one machine; of any other package
    its tests. What the process that deploys has imported itself goes along: an app may be built of the kit's stand-in.

    Args:
        package: the top-level package.
        file: path inside of it.
    """
    if file.suffix != ".py" or any(part.startswith(".") or part == "__pycache__" for part in file.parts):
        return True
    names = [*file.parts[:-1], *([] if file.stem == "__init__" else [file.stem])]
    if package == "torpor":
        parts = [part for part in _NOT_SERVING if names[: part.count(".") + 1] == part.split(".")]
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


def filling_steps(deployment: Deployment, recipe: Recipe) -> tuple[BuildStep, ...]:
    """The steps whose volumes the serving container mounts too; a compile cache, which only builds use, is none of them.

    Raises:
        ConfigurationError: there are none.
    """
    steps = tuple(step for step in recipe.steps if step.volumes and step.volumes.items() <= recipe.volumes.items())
    if not steps:
        raise ConfigurationError(
            f"Deployment {deployment.name!r} has no build step that fills a volume of the serving class, so there is nothing to "
            "download: drop the download function, or add a plugin that downloads (torpor_hf_cache.HFCache)."
        )
    return steps
