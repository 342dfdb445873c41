"""Find the files outside of a snapshot that it will depend on: the model's, the engine's code, and files that it has open.

`torpor.snapshots.store.outside` says how they are noted and compared.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError
from torpor.snapshots.store.outside import file_hash, hashed_bytes, noted_folder
from torpor.values.model_source import hub_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torpor.deployment import Deployment, Model
    from torpor.recipe import Recipe
    from torpor.values.drafts import Draft

__all__ = ["code_of", "model_files", "noted", "plugin_files"]

_MOST_MODEL_ENTRIES, _MODEL_TIMEOUT_S = 50_000, 60.0
"""Limits for a model's folder: the largest repositories have a few thousand files."""

_MOST_BYTES = 64 << 30
"""The most that is read of all files together: more than any model needs, at 4 to 16 MiB a file."""

_THREADS = 4
_KERNELS = frozenset({"/dev", "/proc", "/sys"})
_NOTES = frozenset({".lock", ".log", ".md", ".part", ".pyc", ".tmp"})
"""Suffixes of files in a model's folder that do not change its answers."""

_LEAST_UNNAMED_BYTES = 1 << 20
"""A smaller file without a suffix does not count: it is a licence or a note."""

_GUARD_SIDE = ("guard", "launcher")  # the parts of Torpor that run in the engine's process
_WITH_MODULE = "-m"


def noted(opened: Mapping[str, tuple[int, int]], more: Iterable[Path], folders: Iterable[Path]) -> dict[str, object]:
    """The entries of the outside files, in the form in which a snapshot holds them.

    Args:
        opened: files that the tree has open, with size and time.
        more: further files.
        folders: folders of code.

    Raises:
        SnapshotError: together they are too large.
    """
    facts = dict(opened)
    for path in more:
        try:
            found = path.stat()
        except OSError:
            continue
        facts.setdefault(str(path), (found.st_size, found.st_mtime_ns))
    total = sum(hashed_bytes(size) for size, _ in facts.values())
    if total > _MOST_BYTES:
        raise SnapshotError(
            f"The {len(facts)} files of the model and of the engine's code are too many to note what the snapshot depends on: "
            f"{total / 1e9:.1f} GB of them would be read; allowed are {_MOST_BYTES / 1e9:.1f} GB. Let Model.path name a folder "
            "with nothing but the model."
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = dict(zip(facts, pool.map(file_hash, facts), strict=True))
        code = list(pool.map(noted_folder, sorted({f"{folder}/" for folder in folders})))
    files = {name: [size, changed, hashes[name], name in opened] for name, (size, changed) in sorted(facts.items())}
    return {**files, **{one.name: [one.size, one.changed, one.content, one.opened] for one in code if one.size}}


def model_files(deployment: Deployment, recipe: Recipe) -> Iterator[Path]:
    """The files of the model, its draft and its adapters as absolute paths: a file, a folder, or a repository in the hub's cache.

    Raises:
        SnapshotError: the folder holds more than any model, or listing it takes too long.
    """
    for source in (deployment.model, deployment.model.draft):
        if source is not None:
            yield from _files_of_source(source, recipe.env.get("HF_HUB_CACHE"))
    for adapter in deployment.model.adapters.values():
        if folder := adapter.folder(recipe.env):
            files = _files_of(folder)
            yield from files if adapter.path is None else filter(_is_of_model, files)


def _files_of_source(source: Model | Draft, cache: str | None) -> Iterator[Path]:
    if source.path is not None:
        path = Path(source.path).absolute()
        yield from [path] if path.is_file() else filter(_is_of_model, _files_of(path))
    elif source.repo_id is not None and source.revision is not None and cache:
        yield from _files_of(hub_snapshot(cache, source.repo_id, source.revision))


def _is_of_model(file: Path) -> bool:
    if file.suffix:
        return file.suffix not in _NOTES
    try:
        return file.stat().st_size >= _LEAST_UNNAMED_BYTES
    except OSError:
        return False


def code_of(deployment: Deployment, recipe: Recipe) -> tuple[list[Path], list[Path]]:
    """The engine's code: folders of Python packages, and further files.

    It consists of the package with the engine plugin's name, the scripts and modules on the command line with the files beside
    them, the plugins, and Torpor's guard and launcher. Every other package that is installed for the engine counts by its list
    of files, which another installation changes.
    """
    engine = deployment.engine
    argv = engine.engine_argv(deployment, recipe)
    folders = _torpor_code(deployment)
    files: list[Path] = []
    places = [Path(place) for place in recipe.env.get("PYTHONPATH", "").split(os.pathsep) if place.startswith("/")]
    installed = list(_site_packages(Path(engine.engine_python)))
    named = [engine.plugin_name]
    for word, following in zip(argv, (*argv[1:], ""), strict=True):
        if word == _WITH_MODULE:
            named.append(following.partition(".")[0])
        elif word.endswith(".py") and Path(word).is_file():
            script = Path(word).absolute()
            files += script.parent.glob("*.py")
            folders += [inner.parent for inner in script.parent.glob("*/__init__.py")]
    for place in (*places, *installed):
        folders += [place / name for name in named if name and (place / name).is_dir()]
        files += [place / f"{name}.py" for name in named if name and (place / f"{name}.py").is_file()]
    for place in installed:
        files += [*place.glob("*.dist-info/RECORD"), *place.glob("*.pth")]
    return folders, files


def _torpor_code(deployment: Deployment) -> list[Path]:
    """Folders of the plugins and of the parts of Torpor that run in the engine's process."""
    root = Path(__file__).parents[2]
    folders = [root / name for name in _GUARD_SIDE]
    for plugin in deployment.plugins:
        name = type(plugin).__module__
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and "." in name:  # single files: see `plugin_files`
            folders.append(Path(file).parent)
    return folders


def plugin_files(deployment: Deployment) -> Iterator[Path]:
    """Plugins that are single files, e.g. beside the app file; the app file may be one of them."""
    for plugin in deployment.plugins:
        name = type(plugin).__module__
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and "." not in name:
            yield Path(file).absolute()


def _site_packages(python: Path) -> Iterator[Path]:
    if python.is_absolute():
        for folder in sorted({python.parent.parent, python.resolve().parent.parent}):
            yield from sorted(folder.glob("lib/python3*/site-packages"))


def _files_of(place: Path) -> Iterator[Path]:
    """Regular files at any depth, without the kernel's file systems: reading a device or a pipe might never end."""
    deadline, seen = time.monotonic() + _MODEL_TIMEOUT_S, 0
    for folder, folders, names in os.walk(place):
        seen += 1 + len(names)
        if seen > _MOST_MODEL_ENTRIES or time.monotonic() > deadline:
            why = (
                f"holds more than {_MOST_MODEL_ENTRIES} files and folders"
                if seen > _MOST_MODEL_ENTRIES
                else f"could not be listed within {_MODEL_TIMEOUT_S:g} s"
            )
            raise SnapshotError(
                f"The model's folder {place} {why}, so the files of the snapshot's model cannot be noted. Let Model.path name a "
                "folder with nothing but the model."
            )
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and str(Path(folder, name)) not in _KERNELS
        )
        found = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        yield from (file for file in found if file.is_file())
