"""The files outside of a snapshot that it depends on: how a capture notes them, and whether they have changed.

A restored process has already read its weights and imported its modules. Whoever replaces those files expects another server,
but a restore would give the old one. So a capture notes each file by size, time and hash, and each package of the engine's code
as one entry. A restore compares sizes and times only, and reads a file only if its time differs: on another machine, or after
another installation, files with the same content have other times.

For a file above 16 MiB the hash covers its size and 64 pieces, spread over the file. Weights have gigabytes, and further training
changes all of them.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import DamagedSnapshotError
from torpor.snapshots.store.fields import NEW_ONE
from torpor.snapshots.store.here import read_here
from torpor.snapshots.store.manifest import OUTSIDE
from torpor.snapshots.store.reading import read_part

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torpor.snapshots.store.fields import Fields

__all__ = [
    "Hashes",
    "Noted",
    "changed_now",
    "difference",
    "entries",
    "file_hash",
    "folder_hash",
    "hashed_bytes",
    "noted_files",
    "noted_folder",
    "outside_files",
    "python_files",
]

_OUTSIDE_BYTES = 64 << 20
_WHOLE_BYTES = 16 << 20
_PIECES, _PIECE_BYTES = 64, 64 << 10
_MOST_FILES = 50_000


class Noted(NamedTuple):
    """A file, or a folder of code, that lies outside of a snapshot and must be unchanged at a restore.

    Attributes:
        name: absolute path; a folder's ends with `/`.
        size: bytes; for a folder the number of its files.
        changed: time of change in nanoseconds; for a folder a digest of all names, sizes and times.
        content: a hash; empty if the file could not be read.
        opened: whether a process had the file open or mapped. Then it goes on reading there, so on another machine every byte
            has to be the same.
    """

    name: str
    size: int
    changed: int | str
    content: str
    opened: bool


class Hashes:
    """Where hashes come from: here every file is read. `torpor.snapshots.store.known_hashes` remembers."""

    def file(self, name: str) -> str:
        """The hash of a file, as `file_hash`."""
        return file_hash(name)

    def folder(self, name: str) -> str:
        """The hash of a folder of code, as `folder_hash`."""
        return folder_hash(name)


_READ = Hashes()


def outside_files(folder: Path) -> tuple[str, ...]:
    """Paths of the files outside of a snapshot that it depends on, without folders of code.

    Raises:
        DamagedSnapshotError: there is no list of them, or it is damaged.
    """
    return tuple(entry.name for entry in noted_files(folder) if not entry.name.endswith("/"))


def noted_files(folder: Path) -> Iterator[Noted]:
    """The files outside of a snapshot that it depends on, by their paths here.

    Raises:
        DamagedSnapshotError: there is no list of them, or it is damaged.
    """
    try:
        fields = read_part(folder, OUTSIDE, most=_OUTSIDE_BYTES)
    except OSError as error:
        raise DamagedSnapshotError(f"{folder / OUTSIDE} cannot be read ({error.strerror}); {NEW_ONE}") from error
    here = read_here(folder)
    for entry in entries(fields):
        yield entry._replace(name=here.path(entry.name), changed=here.changed.get(entry.name, entry.changed))


def entries(fields: Fields) -> Iterator[Noted]:
    """The entries of a list of outside files, as a capture wrote it.

    Raises:
        DamagedSnapshotError: one of them is damaged.
    """
    for name in fields.names():
        match noted := fields.take(name):
            case [int(size), int() | str() as changed, str(content), bool(opened)] if _is_path(name):
                yield Noted(name, size, changed, content, opened)
            case _:
                fields.refuse(name, noted, "an absolute path with a size, a time, a hash, and whether it was open")


def _is_path(name: str) -> bool:
    return name.startswith("/") and "\0" not in name


def difference(entry: Noted, *, full: bool, hashes: Hashes = _READ) -> str:
    """How a file or folder differs from what was noted, as a sentence; empty if it does not.

    Args:
        entry: from `noted_files`.
        full: compare its hash even if size and time are the same.
        hashes: gives hashes of files here.
    """
    if entry.name.endswith("/"):
        return _folder_difference(entry, full=full, hashes=hashes)
    try:
        facts = os.stat(entry.name)  # noqa: PTH116 - for thousands of files; pathlib would double the time
    except (OSError, ValueError) as error:
        return f"{entry.name}, which the engine has open or read, cannot be reached: {getattr(error, 'strerror', '') or error}"
    same = facts.st_size == entry.size
    if same and (facts.st_mtime_ns != entry.changed or full):
        # The content decides if it was hashed; otherwise only the time can.
        same = hashes.file(entry.name) == entry.content if entry.content else facts.st_mtime_ns == entry.changed
    return "" if same else f"{entry.name}, which the engine has open or read, has changed since"


def changed_now(name: str) -> int | str | None:
    """The time of change of a file as it is now, or a folder's digest; None if it is missing.

    Args:
        name: absolute path; a folder's ends with `/`.
    """
    if name.endswith("/"):
        count, quick = _quick(name)
        return quick if count else None
    try:
        return os.stat(name).st_mtime_ns  # noqa: PTH116
    except (OSError, ValueError):
        return None


def _folder_difference(entry: Noted, *, full: bool, hashes: Hashes) -> str:
    count, quick = _quick(entry.name)
    if not count:
        return f"the code in {entry.name}, which the engine runs, cannot be found"
    if (count, quick) == (entry.size, entry.changed) and not full:
        return ""
    same = hashes.folder(entry.name) == entry.content
    return "" if same else f"the code in {entry.name}, which the engine runs, has changed"


def noted_folder(name: str) -> Noted:
    """The entry for a folder of code.

    Args:
        name: its path, with `/` at the end.
    """
    count, quick = _quick(name)
    return Noted(name, count, quick, folder_hash(name) if count else "", opened=False)


def hashed_bytes(size: int) -> int:
    """How many bytes of a file `file_hash` reads."""
    return size if size <= _WHOLE_BYTES else _PIECES * _PIECE_BYTES


def file_hash(name: str) -> str:
    """The hash of a file; empty if it cannot be read."""
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


def _quick(folder: str) -> tuple[int, str]:
    """The number of Python files in a folder, and a digest of their names, sizes and times."""
    found = list(python_files(folder))
    listed = [(path, [(name, one.st_size, one.st_mtime_ns) for name, one in files]) for path, files in found if files]
    text = repr(listed)
    return sum(len(files) for _, files in found), hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def folder_hash(folder: str) -> str:
    """A digest of the content of the Python files in a folder."""
    digest = hashlib.sha256()
    for path, files in python_files(folder):
        for name, _ in files:
            digest.update(f"{path}{name}\0{file_hash(folder + path + name)}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def python_files(folder: str) -> Iterator[tuple[str, list[tuple[str, os.stat_result]]]]:
    """For each folder below, in a fixed order: name and status of each Python file. Takes 5 us a file."""
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
                    except OSError:  # a broken link, as editors leave them
                        continue
                    files.append((name, facts))
                elif "." not in name and name != "__pycache__" and entry.is_dir(follow_symlinks=False):
                    folders.append(f"{below}{name}/")
        except OSError:  # a folder that is missing or unreadable has no files
            pass
        files.sort(key=lambda one: one[0])
        folders.sort()
        left += folders
        count += len(files)
        yield below, files
