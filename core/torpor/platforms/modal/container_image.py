"""A deployment as a container image of Modal's, and the volumes that its containers mount.

Every function gives the same values on the machine that deploys and in the container that imports the app: Modal matches
the objects of the two by their order. Facts about the client are of version 1.6.4, seen by running it.
"""

from __future__ import annotations

import functools
import shlex
from typing import TYPE_CHECKING

import modal

from torpor.build_steps.command import runner_file, script_file, step_command
from torpor.engine_plugins.nccl_needed import replaces_nccl
from torpor.errors import ConfigurationError
from torpor.lifecycle import Lifecycle
from torpor.platforms.modal.sources import is_left_out, python_sources
from torpor.recipe import IMAGE_ROOT
from torpor.values.checks import LINE_BREAK

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.recipe import BuildStep, Recipe

__all__ = ["CONTAINER_REQUIREMENTS", "PYTHON_LINK", "image", "requirements_line", "serving_volume", "volume"]

CONTAINER_REQUIREMENTS = ("pluggy>=1.6", "httpx>=0.28", "structlog>=25.1", "typing_extensions>=4.12", "psutil>=7.0")
"""What Torpor imports in the container; Modal brings its own client. huggingface-hub is missing on purpose: the engine's
image has one, and its version belongs to the engine (transformers 4 wants 0.x, transformers 5 wants 1.x)."""

PYTHON_LINK = (
    "command -v python > /dev/null"
    ' || { found="$(command -v python3)" && ln -s python3 "$(dirname "$found")/python"; }'
    " || { echo 'This base image has neither python nor python3 on its PATH, and Modal needs one.' >&2; exit 1; }"
)
"""A shell line that gives an image a `python` where it has only `python3`.

The link is in the folder of `python3`. Through a link elsewhere, a virtual environment's interpreter would not find its packages.
"""

_RUNNER = f"{IMAGE_ROOT}/buildstep.py"
_CONSTRAINTS = f"{IMAGE_ROOT}/constraints.txt"

_images: dict[int, tuple[Deployment, modal.Image]] = {}
_volumes: dict[str, modal.Volume] = {}
_read_only: dict[str, modal.Volume] = {}


def image(deployment: Deployment) -> modal.Image:
    """The deployment's container image, layer by layer: what changes most often comes last.

    base (with a `python` where it has only `python3`), Debian packages, Python packages, Torpor's own requirements,
    environment, build-step scripts, build steps in their order. At the end, mounted and not copied: the Python sources of
    Torpor and of every plugin.

    Raises:
        ConfigurationError: no plugin names a base image, a source package is not on this machine, or a build step
            cannot be written as one shell line.
    """
    if id(deployment) not in _images:  # one object for all users: Modal would send and build two of them twice
        _images[id(deployment)] = (deployment, _render(deployment, Lifecycle(deployment).recipe()))
    return _images[id(deployment)][1]


def volume(name: str) -> modal.Volume:
    """The volume of that name, writable; Modal creates it if there is none."""
    if name not in _volumes:
        _volumes[name] = modal.Volume.from_name(name, create_if_missing=True)
    return _volumes[name]


def serving_volume(name: str, *, writable: bool) -> modal.Volume:
    """A volume as the serving container mounts it: by default read-only, so that no fault or intruder changes the weights."""
    if writable:
        return volume(name)
    if name not in _read_only:
        _read_only[name] = volume(name).with_mount_options(read_only=True)
    return _read_only[name]


def requirements_line() -> str:
    """A shell line that installs Torpor's requirements, with everything in the image as a constraint.

    A clash then fails the build and names both sides. Without the constraint, pip would change a version that the engine
    was built and tested with. The line uses `pip list --format=freeze`, because `pip freeze` writes local builds as URLs.
    """
    pip = "python3 -m pip --disable-pip-version-check"
    wanted = shlex.join(CONTAINER_REQUIREMENTS)
    return (
        f"mkdir -p {IMAGE_ROOT} && {pip} list --format=freeze > {_CONSTRAINTS}"
        f" && PIP_BREAK_SYSTEM_PACKAGES=1 {pip} install --no-cache-dir --constraint {_CONSTRAINTS} {wanted}"
    )


def _render(deployment: Deployment, recipe: Recipe) -> modal.Image:
    rendered = _with_packages(_base(deployment, recipe), recipe)
    rendered = rendered.add_local_file(runner_file(), _RUNNER, copy=True)
    for script in dict.fromkeys(step.script for step in recipe.steps if step.script):
        rendered = rendered.add_local_file(script_file(script), _script_path(script), copy=True)
    for step in recipe.steps:
        rendered = rendered.run_commands(
            _step_line(step),
            gpu=deployment.gpu if step.gpu else None,
            volumes={path: volume(name) for path, name in {**recipe.volumes, **step.volumes}.items()},
            secrets=[modal.Secret.from_name(name) for name in step.secrets],
            env=dict(step.env),
        )
    for package in python_sources(deployment, recipe):
        rendered = rendered.add_local_python_source(package, ignore=functools.partial(is_left_out, package))
    return rendered


def _base(deployment: Deployment, recipe: Recipe) -> modal.Image:
    if recipe.image.base is None:
        raise ConfigurationError(
            f"Deployment {deployment.name!r} has no base image: no plugin's prepare_image names one. Set the engine plugin's "
            "`image` option to a registry reference of an image that holds the engine."
        )
    # Modal's own lines come right after FROM and may call `python`, so the link has to come before them.
    first = [f"RUN {PYTHON_LINK}"] if recipe.image.python_link else []
    return modal.Image.from_registry(recipe.image.base, setup_dockerfile_commands=first).entrypoint([])


def _with_packages(rendered: modal.Image, recipe: Recipe) -> modal.Image:
    if recipe.image.apt:
        rendered = rendered.apt_install(*recipe.image.apt)
    others = [line for line in recipe.image.pip if not replaces_nccl(line)]
    if others:
        rendered = rendered.pip_install(*others)
    # torch pins its NCCL: pip refuses another one beside a package that needs torch, and such a package, installed later, would
    # bring the pinned one again.
    for line in filter(replaces_nccl, recipe.image.pip):
        rendered = rendered.pip_install(line, extra_options="--no-deps")
    rendered = rendered.run_commands(requirements_line())
    return rendered.env(dict(recipe.env)) if recipe.env else rendered


def _script_path(module: str) -> str:
    """Where a build step's script lies in the image."""
    return f"{IMAGE_ROOT}/scripts/{module}.py"


def _step_line(step: BuildStep) -> str:
    """A build step as one shell line.

    Raises:
        ConfigurationError: a part of the step has a line break, which would end the Dockerfile's command.
    """
    script = _script_path(step.script) if step.script else None
    argv = step_command(step, python="python3", runner=_RUNNER, script=script)
    broken = [token for token in argv if LINE_BREAK.search(token)]
    if broken:
        raise ConfigurationError(
            f"Build step {step.name!r} has a line break in {broken[0]!r}; a step is one line of a Dockerfile. "
            "Put the text into a file, or name a `script`."
        )
    return shlex.join(argv)
