"""What a snapshot depends on outside of itself: files that its processes have open, the model's, the engine's code.

A restored process has read its weights and imported its modules already. Whoever replaces either expects another server, and
would get the old one back. So a capture notes each file by size, time and hash, and each package of the engine's code as one
entry. A restore compares sizes and times only; it reads a file where its time differs, because content counts: on another
machine, or after another installation, the same files have other times.

Of a file of more than 16 MiB the hash covers its size and 64 pieces that are spread over it: weights have gigabytes, and a
model that was trained on differs everywhere.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError
from torpor.snapshots.store.stored import Noted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torpor.deployment import Deployment
    from torpor.recipe import Recipe

__all__ = ["code_of", "difference", "model_files", "noted", "plugin_files"]

_WHOLE_BYTES = 16 << 20
_PIECES, _PIECE_BYTES = 64, 64 << 10
_MOST_FILES = 50_000
_MOST_MODEL_ENTRIES, _MODEL_TIMEOUT_S = 50_000, 60.0
"""Bounds of the look into a model's folder: the largest repositories have some thousand files."""

_MOST_BYTES = 64 << 30
"""What is read of all files together: more than a capture of any model takes, at 4 to 16 MiB a file."""

_THREADS = 4
_KERNELS = frozenset({"/dev", "/proc", "/sys"})
_NOTES = frozenset({".lock", ".log", ".md", ".part", ".pyc", ".tmp"})
"""Suffixes of what may change in a model's folder without another answer."""

_LEAST_UNNAMED_BYTES = 1 << 20
"""A file without a suffix counts from this size on: smaller ones are licences and notes."""

_GUARD_SIDE = ("guard", "launcher")  # of Torpor itself: what runs in the engine's process
_WITH_MODULE = "-m"


def noted(opened: Mapping[str, tuple[int, int]], more: Iterable[Path], folders: Iterable[Path]) -> dict[str, object]:
    """The entries of a capture, as they are written.

    Args:
        opened: files that the tree has open, with size and time.
        more: further files.
        folders: folders with code.

    Raises:
        SnapshotError: they are too large together.
    """
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - a restore has no use for it

    facts = dict(opened)
    for path in more:
        try:
            found = path.stat()
        except OSError:
            continue
        facts.setdefault(str(path), (found.st_size, found.st_mtime_ns))
    total = sum(size if size <= _WHOLE_BYTES else _PIECES * _PIECE_BYTES for size, _ in facts.values())
    if total > _MOST_BYTES:
        raise SnapshotError(
            f"The {len(facts)} files of the model and of the engine's code are too many to note what the snapshot depends on: "
            f"{total / 1e9:.1f} GB of them would be read; allowed are {_MOST_BYTES / 1e9:.1f} GB. Let Model.path name the folder "
            "of the model alone."
        )
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = dict(zip(facts, pool.map(_hash, facts), strict=True))
        code = list(pool.map(_noted_folder, sorted({f"{folder}/" for folder in folders})))
    files = {name: [size, changed, hashes[name]] for name, (size, changed) in sorted(facts.items())}
    return {**files, **{one.name: [one.size, one.changed, one.content] for one in code if one.size}}


def difference(entry: Noted, *, full: bool) -> str:
    """How something differs from what was noted, as a sentence; empty when it does not.

    Args:
        entry: what was noted.
        full: read it even where size and time are the same.
    """
    if entry.name.endswith("/"):
        count, quick = _quick(entry.name)
        if not count:
            return f"the code in {entry.name}, which the engine runs, cannot be found"
        if (count, quick) == (entry.size, entry.changed) and not full:
            return ""
        return (
            ""
            if _content(entry.name) == entry.content
            else f"the code in {entry.name}, which the engine runs, has changed"
        )
    try:
        facts = os.stat(entry.name)  # noqa: PTH116 - thousands of them: pathlib would double the time
    except (OSError, ValueError) as error:
        return f"{entry.name}, which the engine has open or read, cannot be reached: {getattr(error, 'strerror', '') or error}"
    same = facts.st_size == entry.size
    if same and (facts.st_mtime_ns != entry.changed or full):
        # Without a hash the time is all that there is; with one, content counts.
        same = _hash(entry.name) == entry.content if entry.content else facts.st_mtime_ns == entry.changed
    return "" if same else f"{entry.name}, which the engine has open or read, has changed since"


def model_files(deployment: Deployment, recipe: Recipe) -> Iterator[Path]:
    """The model's files, by absolute paths: of a folder, or of a repository in the hub's cache. A path of a file is that file.

    Raises:
        SnapshotError: there is more in the folder than any model has, or it cannot be looked through in time.
    """
    model = deployment.model
    if model.path is not None:
        path = Path(model.path).absolute()
        yield from [path] if path.is_file() else filter(_is_of_model, _files_of(path))
    elif model.repo_id is not None and model.revision is not None and (cache := recipe.env.get("HF_HUB_CACHE")):
        yield from _files_of(Path(cache, f"models--{model.repo_id.replace('/', '--')}", "snapshots", model.revision))


def _is_of_model(file: Path) -> bool:
    if file.suffix:
        return file.suffix not in _NOTES
    try:
        return file.stat().st_size >= _LEAST_UNNAMED_BYTES
    except OSError:
        return False


def code_of(deployment: Deployment, recipe: Recipe) -> tuple[list[Path], list[Path]]:
    """The engine's code: folders of Python packages, and further files.

    That is the package that has the engine plugin's name, scripts and modules that the command line names with what lies
    beside them, the plugins themselves, Torpor's guard and launcher, and of every other package that is installed for the
    engine its list of files, which another installation changes.
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
    """Plugins, and what of Torpor runs in the engine's process."""
    root = Path(__file__).parents[2]
    folders = [root / name for name in _GUARD_SIDE]
    for plugin in deployment.plugins:
        name = type(plugin).__module__
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and "." in name:  # for others see `plugin_files`
            folders.append(Path(file).parent)
    return folders


def plugin_files(deployment: Deployment) -> Iterator[Path]:
    """Plugins that are a file each, e.g. beside the app file; it may itself be one of them."""
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
    """Files at any depth; a device or a pipe would be read without end, and the kernel's own file systems have no model."""
    deadline, seen = time.monotonic() + _MODEL_TIMEOUT_S, 0
    for folder, folders, names in os.walk(place):
        seen += 1 + len(names)
        if seen > _MOST_MODEL_ENTRIES or time.monotonic() > deadline:
            why = (
                f"holds more than {_MOST_MODEL_ENTRIES} files and folders"
                if seen > _MOST_MODEL_ENTRIES
                else f"was not looked through in {_MODEL_TIMEOUT_S:g} s"
            )
            raise SnapshotError(
                f"The model's folder {place} {why}, so it cannot be noted what the snapshot depends on. Let Model.path name the "
                "folder of the model alone."
            )
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and str(Path(folder, name)) not in _KERNELS
        )
        found = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        yield from (file for file in found if file.is_file())


def _noted_folder(name: str) -> Noted:
    count, quick = _quick(name)
    return Noted(name, count, quick, _content(name) if count else "")


def _quick(folder: str) -> tuple[int, str]:
    """How many Python files a folder has, and a digest of their names, sizes and times."""
    import hashlib  # noqa: PLC0415 - imported while CRIU works

    found = list(_python_files(folder))
    text = repr([(path, files) for path, files in found if files])
    return sum(len(files) for _, files in found), hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def _content(folder: str) -> str:
    import hashlib  # noqa: PLC0415

    digest = hashlib.sha256()
    for path, files in _python_files(folder):
        for name, _, _ in files:
            digest.update(f"{path}{name}\0{_hash(folder + path + name)}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _python_files(folder: str) -> Iterator[tuple[str, list[tuple[str, int, int]]]]:
    """By folder below, always in the same order: name, size and time of each Python file. Thousands: 5 us each."""
    left, count = [""], 0
    while left and count <= _MOST_FILES:
        below = left.pop()
        files, folders = [], []
        try:
            for entry in os.scandir(folder + below):
                name = entry.name
                if name.endswith(".py"):
                    try:
                        facts = entry.stat()
                    except OSError:  # a link to nothing, as editors leave them
                        continue
                    files.append((name, facts.st_size, facts.st_mtime_ns))
                elif "." not in name and name != "__pycache__" and entry.is_dir(follow_symlinks=False):
                    folders.append(f"{below}{name}/")
        except OSError:  # a folder that is gone or closed has no files
            pass
        files.sort()
        folders.sort()
        left += folders
        count += len(files)
        yield below, files


def _hash(name: str) -> str:
    """A file's hash; empty when it cannot be read."""
    import hashlib  # noqa: PLC0415

    try:
        with open(name, "rb", buffering=0) as stream:  # noqa: PTH123
            size = os.fstat(stream.fileno()).st_size
            if size <= _WHOLE_BYTES:
                return hashlib.file_digest(stream, "sha256").hexdigest()
            digest = hashlib.sha256(str(size).encode())
            for number in range(_PIECES):
                digest.update(os.pread(stream.fileno(), _PIECE_BYTES, (size - _PIECE_BYTES) * number // (_PIECES - 1)))
            return digest.hexdigest()
    except (OSError, ValueError):
        return ""
