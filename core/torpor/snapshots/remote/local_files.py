"""The files of a store that is a folder of this machine, or of a disk that is mounted here.

A file is written under a temporary name and renamed, so it is complete or not there. New folders and files get the permissions of
the store's folder: whoever may read that may read them. A store that a push makes is private.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError
from torpor.snapshots.remote.values import Stored
from torpor.snapshots.store.placing import check_parents

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["INCOMING", "LocalFiles"]

INCOMING = "incoming"
"""Folder of files that are being written."""

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_WRITE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_OTHERS_WRITE = 0o022
_PRIVATE_MODE = 0o700


class LocalFiles:
    """Files below a folder.

    Args:
        root: the store; it need not exist before the first write.
    """

    in_one_step = False
    keeps_times = True

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str, most: int) -> bytes:
        """The content of a file, but at most `most` bytes of it.

        Raises:
            OSError: it cannot be read, or is no regular file.
        """
        try:
            descriptor = os.open(self._root / path, _READ_FLAGS)
        except NotADirectoryError as error:
            raise FileNotFoundError(error.errno, "A part of the path is a file", path) from error
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise PermissionError(f"{path} is not a regular file")
            content = os.read(descriptor, min(facts.st_size, most))
            while len(content) < most and (more := os.read(descriptor, most - len(content))):
                content += more
            return content
        finally:
            os.close(descriptor)

    def write(self, path: str, content: bytes) -> None:
        """Write a file; it appears complete.

        Raises:
            OSError: the disk refuses; nothing is left.
        """
        mode = self._made(self._root)
        target = self._root / path
        for folder in (self._root / INCOMING, target.parent):
            self._made(folder, mode)
        unfinished = self._root / INCOMING / os.urandom(16).hex()
        try:
            descriptor = os.open(unfinished, _WRITE_FLAGS, mode & 0o666)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                os.fchmod(descriptor, mode & 0o666)
                left = memoryview(content)
                while left:
                    left = left[file.write(left) or 0 :]
            unfinished.rename(target)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise

    def listed(self, folder: str) -> dict[str, Stored]:
        """Every file below a folder by its path under the folder. Empty if there is no such folder."""
        return dict(_below(self._root / folder, ""))

    def delete(self, path: str) -> None:
        """Delete a file; one that is gone is no error."""
        (self._root / path).unlink(missing_ok=True)

    def missing(self) -> str:
        """Why there is no store in this place, as the rest of a sentence; empty if there can be one."""
        try:
            return "" if stat.S_ISDIR(self._root.stat().st_mode) else "it is a file; a store is a folder"
        except NotADirectoryError:
            return "a part of its path is a file"
        except FileNotFoundError:
            return "there is no such folder"

    def unwritable(self) -> str:
        """Why a push cannot make its files here, as the rest of a sentence; empty if it can."""
        there = next(place for place in (self._root, *self._root.absolute().parents) if os.path.lexists(place))
        if not there.is_dir():
            return f"{there} is {'a link that leads nowhere' if there.is_symlink() else 'a file'}; a store is a folder"
        return "" if os.access(there, os.W_OK | os.X_OK) else f"you may not write to {there}"

    def foreign(self, path: str) -> str:
        """Why a file of the store may be somebody else's work; empty if only this user can have written it."""
        file = self._root / path
        try:
            check_parents(Path(os.path.realpath(self._root)))
            for place in (self._root, file.parent, file):
                facts = place.stat()
                if facts.st_uid != os.geteuid():
                    return f"{place} belongs to user {facts.st_uid}, not to you ({os.geteuid()})"
                if facts.st_mode & _OTHERS_WRITE:
                    return f"{place} may be written to by other users (mode {facts.st_mode & 0o7777:o})"
        except SnapshotError as error:
            return str(error)
        return ""

    def _made(self, folder: Path, mode: int = _PRIVATE_MODE) -> int:
        """Make a folder unless it is there; its permissions."""
        with contextlib.suppress(FileNotFoundError):
            return folder.stat().st_mode & 0o777
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=_PRIVATE_MODE)
            folder.chmod(mode)
        return mode


def _below(folder: Path, prefix: str) -> Iterator[tuple[str, Stored]]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _below(folder / entry.name, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    facts = entry.stat(follow_symlinks=False)
                    yield f"{prefix}{entry.name}", Stored(facts.st_size, facts.st_mtime)
