"""Find folders that may be gone when a snapshot is restored, before the engine starts.

A capture refuses open files in a temporary folder, but only after the minutes of a cold start. So the folders that a deployment
names are checked before: the cache root, the model, the interpreter, the engine's program, paths in its environment and command
line.

    refused     a file of the engine in a temporary folder, with these exceptions:
    kept        environments, checkouts, models and volumes: the user put them there knowingly (a warning)
    exempted    TORPOR_LASTING_FOLDERS=/tmp/mine:/var/tmp/other says that these folders stay
    never       /dev/shm: every sandbox has its own, so the engine does not find the file at all
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import ConfigurationError, SnapshotError
from torpor.snapshots.store.host_memory import lies_in_memory
from torpor.snapshots.store.paths import CACHE_VARIABLE, LIBRARIES_VARIABLE, cache_root
from torpor.values.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torpor.deployment import Deployment
    from torpor.recipe import Recipe

__all__ = [
    "LASTING_VARIABLE",
    "check_lasting",
    "exempted_folders",
    "kept_folders",
    "place_findings",
    "temporary_folder_of",
    "why_temporary",
]

LASTING_VARIABLE = "TORPOR_LASTING_FOLDERS"
"""Absolute temporary folders that stay, separated by `:`."""

_PRIVATE = Path("/dev/shm")  # noqa: S108 - private to every sandbox
_TEMPORARY = ("/tmp", "/var/tmp", "/run", "/var/run")  # noqa: S108 - to warn about, not to write to
_VARIABLES = ("TMPDIR", "TEMP", "TMP", "XDG_RUNTIME_DIR")
_CODE_VARIABLES = ("PYTHONPATH", "LD_LIBRARY_PATH", LIBRARIES_VARIABLE)
_HUB_VARIABLES = ("HF_HUB_CACHE", "HF_HOME")
_PATH = re.compile(r"(?:^|(?<=[=:,]))/(?!/)[^=:,\0]+")


class _Place(NamedTuple):
    """A path that the engine needs while it runs.

    Attributes:
        name: what names the path, in words.
        path: absolute.
        refused: whether a capture would refuse open files there.
        cure: where to put it instead.
    """

    name: str
    path: Path
    refused: bool
    cure: str


def temporary_folder_of(path: Path) -> Path | None:
    """The temporary folder that holds a path, with links resolved; None if there is none.

    Temporary are /tmp, /var/tmp, /run, /dev/shm and the folders that TMPDIR, TEMP, TMP and XDG_RUNTIME_DIR name.
    """
    named = (os.environ.get(name, "") for name in _VARIABLES)
    folders = {*_TEMPORARY, str(_PRIVATE), tempfile.gettempdir(), *filter(os.path.isabs, named)} - {"/"}
    both = (path.absolute(), Path(os.path.realpath(path)))
    for folder in sorted(map(Path, folders)):
        if any(one.is_relative_to(folder) for one in both):
            return folder
    return None


def exempted_folders() -> tuple[Path, ...]:
    """The folders that `TORPOR_LASTING_FOLDERS` names, and the targets of links among them.

    Raises:
        ConfigurationError: one of them is not absolute.
    """
    named = [folder for folder in os.environ.get(LASTING_VARIABLE, "").split(os.pathsep) if folder]
    if wrong := [folder for folder in named if not os.path.isabs(folder)]:  # noqa: PTH117 - text
        raise ConfigurationError(
            f"{LASTING_VARIABLE} holds {wrong[0]!r}; allowed are absolute folders separated by {os.pathsep!r}, e.g. "
            f"{LASTING_VARIABLE}={os.pathsep.join(('/tmp/mine', '/tmp/other'))}."  # noqa: S108 - an example
        )
    return tuple(Path(one) for folder in named for one in dict.fromkeys((folder, os.path.realpath(folder))))


def kept_folders(deployment: Deployment, recipe: Recipe) -> list[Path]:
    """Folders that may lie in a temporary place by the user's own choice: environments, model, volumes, exempted ones.

    Args:
        deployment: the engine's.
        recipe: relocated to this machine.
    """
    python = Path(deployment.engine.engine_python)
    folders = [Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[3], *exempted_folders()]
    if python.is_absolute():
        folders += [python.parent.parent, python.resolve().parent.parent]
    if deployment.model.path:
        folders.append(Path(deployment.model.path))
    folders += [Path(adapter.path) for adapter in deployment.model.adapters.values() if adapter.path]
    if deployment.model.draft is not None and deployment.model.draft.path:
        folders.append(Path(deployment.model.draft.path))
    folders += [Path(mount) for mount in recipe.volumes]
    folders += [folder for _, folder in _code_folders(recipe)]
    # For /bin/python the folder would be `/`, which holds everything.
    return [folder for folder in (*folders, *(one.resolve() for one in folders)) if folder != folder.parent]


def why_temporary(path: Path) -> str:
    """Why what lies at a path may be gone, as the end of a sentence."""
    folder = temporary_folder_of(path)
    if folder == _PRIVATE:
        return f"in {folder}, which each sandbox has for itself, so the engine does not find it there"
    if folder is None:
        return "in memory (tmpfs), which is empty after a reboot"
    return f"in {folder}, which a reboot or a timer empties, so it may be gone when the snapshot is restored"


def place_findings(deployment: Deployment, recipe: Recipe, root: Path | None = None) -> tuple[Finding, ...]:
    """What a deployment needs in folders that do not last.

    Args:
        deployment: to be captured on this machine.
        recipe: relocated to this machine.
        root: the cache root that the recipe was relocated to; `cache_root()` by default.

    Returns:
        An error for what a capture would refuse; a warning for what fails only once the folder is emptied.
    """
    kept, exempted = kept_folders(deployment, recipe), exempted_folders()
    found: dict[Path, Finding] = {}
    for place in _places(deployment, recipe, root):
        folder = temporary_folder_of(place.path)
        if folder is None and not _lies_in_memory(place.path):
            continue
        private = folder == _PRIVATE
        if _lies_in(place.path, exempted) and not private:
            continue
        refused = private or (folder is not None and place.refused and not _lies_in(place.path, kept))
        cure = place.cure
        if not private:
            cure += f"; if the folder stays: {LASTING_VARIABLE}={place.path}"
        if place.path in found and (found[place.path].level == "error" or not refused):
            continue
        found[place.path] = Finding(
            level="error" if refused else "warning",
            what="folders",
            seen=f"{place.name} is {place.path}, {why_temporary(place.path)}",
            cure=cure,
        )
    return tuple(found.values())


def check_lasting(deployment: Deployment, recipe: Recipe, root: Path | None = None) -> None:
    """Refuse a start whose capture would be refused for files in a temporary folder.

    Args:
        deployment: to be captured on this machine.
        recipe: relocated to this machine.
        root: the cache root that the recipe was relocated to; `cache_root()` by default.

    Raises:
        SnapshotError: there is such a folder; the message names each with the reason and the cure.
    """
    if errors := [one for one in place_findings(deployment, recipe, root) if one.level == "error"]:
        listed = "\n".join(f"  - {one.seen}: {one.cure}" for one in errors)
        raise SnapshotError(
            f"No snapshot of {deployment.name!r} could be taken, so nothing was started: its engine needs files that do not "
            f"last.\n{listed}"
        )


def _places(deployment: Deployment, recipe: Recipe, given: Path | None) -> Iterator[_Place]:
    """The paths that the engine will have open, as far as the deployment names them."""
    root = (given or cache_root()).absolute()
    if root == cache_root():
        source = CACHE_VARIABLE if os.environ.get(CACHE_VARIABLE) else "the cache root"
        move = f"set {CACHE_VARIABLE} to a folder that lasts"
    else:
        source, move = "the cache root that was given (root)", "give a folder that lasts"
    for name, path in _named_paths(deployment, recipe, root):
        if path.is_relative_to(root):
            yield _Place(f"{source} ({name} lies in it)", root, refused=True, cure=move)
        else:
            yield _Place(name, path, refused=True, cure="put it in a folder that lasts")
    yield _Place(source, root, refused=False, cure=move)
    yield from _adapter_places(deployment)
    if deployment.model.draft is not None and deployment.model.draft.path:
        yield _Place("Draft.path", Path(deployment.model.draft.path), refused=False, cure="move the draft's weights")
    if deployment.model.path:
        yield _Place("Model.path", Path(deployment.model.path), refused=False, cure="move the model")
    elif not any(name in recipe.env for name in _HUB_VARIABLES):
        for name in _HUB_VARIABLES:
            if os.path.isabs(os.environ.get(name, "")):  # noqa: PTH117 - may be empty
                yield _Place(name, Path(os.environ[name]), refused=True, cure="set it to a folder that lasts")
    python = Path(deployment.engine.engine_python)
    if python.is_absolute():
        cure = "make the environment in a folder that lasts"
        yield _Place("the engine's interpreter", python.parent.parent, refused=True, cure=cure)
        yield _Place("the engine's interpreter", python.resolve().parent.parent, refused=True, cure=cure)
    yield _Place(
        "the folder that Torpor is imported from", Path(__file__).parents[3], refused=False, cure="move the checkout"
    )
    for name, folder in _code_folders(recipe):
        yield _Place(name, folder, refused=False, cure="move that folder")


def _adapter_places(deployment: Deployment) -> Iterator[_Place]:
    for name, adapter in deployment.model.adapters.items():
        if adapter.path:
            yield _Place(f"Model.adapters[{name!r}]", Path(adapter.path), refused=False, cure="move the adapter")


def _named_paths(deployment: Deployment, recipe: Recipe, root: Path) -> Iterator[tuple[str, Path]]:
    """Paths in the engine's environment, its program, and paths on its command line under the cache root."""
    for name, value in recipe.env.items():
        if name not in _CODE_VARIABLES:
            yield from ((f"{name} of the engine's environment", Path(path)) for path in _PATH.findall(value))
    argv = deployment.engine.engine_argv(deployment, recipe)
    for at, word in enumerate(argv):
        for path in map(Path, _PATH.findall(word)):
            if at == 0 or path.is_relative_to(root):
                yield ("the engine's program" if at == 0 else f"{word} of the engine's command line"), path


def _code_folders(recipe: Recipe) -> Iterator[tuple[str, Path]]:
    env = {**os.environ, **recipe.env}
    for name in _CODE_VARIABLES:
        for folder in env.get(name, "").split(os.pathsep):
            if os.path.isabs(folder):  # noqa: PTH117 - many are empty
                yield f"an entry of {name}", Path(folder)


def _lies_in(path: Path, folders: Iterable[Path]) -> bool:
    both = (path, Path(os.path.realpath(path)))
    return any(one.is_relative_to(folder) for one in both for folder in folders)


def _lies_in_memory(path: Path) -> bool:
    there = next(one for one in (path, *path.parents) if one.exists())
    return lies_in_memory(there)
