"""Read the files of a snapshot, which may be damaged or hostile.

A file is opened once, relative to its folder's descriptor, and checked on its own descriptor: a regular file of this user that
nobody else may write, not a link, a pipe or a device. Size and time are bounded.

A restore reads a manifest before it imports anything else, so this module imports little.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import TYPE_CHECKING

from torpor.errors import DamagedSnapshotError
from torpor.snapshots.store.fields import NEW_ONE, parsed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torpor.snapshots.store.fields import Fields

__all__ = [
    "check_owned",
    "opened_file",
    "opened_folder",
    "opened_snapshot",
    "read_json",
    "read_part",
]

_OTHERS_WRITE = 0o022
_READ_S = 20.0
_PIECE_BYTES = 1 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def opened_folder(folder: Path) -> int:
    """A descriptor of a folder; a link to one is refused.

    Raises:
        OSError: there is none.
    """
    return os.open(folder, _FLAGS | os.O_DIRECTORY)


@contextlib.contextmanager
def opened_snapshot(folder: Path, part: str) -> Iterator[int]:
    """A descriptor of a snapshot's folder, closed after the block.

    Args:
        folder: the snapshot.
        part: name of the file that every snapshot has.

    Raises:
        DamagedSnapshotError: there is no folder, or the block did not find that file.
    """
    try:
        folder_fd = opened_folder(folder)
        try:
            yield folder_fd
        finally:
            os.close(folder_fd)
    except FileNotFoundError:
        raise DamagedSnapshotError(
            f"{folder} holds no snapshot: there is no {part} in it. `torpor snapshot create APP {folder}` takes one."
        ) from None
    except OSError as error:
        raise DamagedSnapshotError(
            f"{folder} holds no snapshot: it cannot be opened as a folder ({error.strerror})."
        ) from error


def opened_file(name: str, folder_fd: int, *, closed: bool = True) -> tuple[int, os.stat_result]:
    """Open a file of a snapshot and check it on its descriptor; the caller closes that.

    Args:
        name: path under the folder; the caller has checked every part but the last.
        folder_fd: of the folder.
        closed: refuse a file that others may write to.

    Raises:
        FileNotFoundError: there is none.
        DamagedSnapshotError: it is not a regular file, belongs to another user, or others may write to it. The message is the
            rest of a sentence about the file.
        OSError: it cannot be opened.
    """
    # The error for a link (O_NOFOLLOW) or a device without a driver would not say which of them it is.
    check_owned(os.stat(name, dir_fd=folder_fd, follow_symlinks=False), stat.S_IFREG, closed=closed)
    descriptor = os.open(name, _FLAGS, dir_fd=folder_fd)
    try:
        facts = os.fstat(descriptor)
        check_owned(facts, stat.S_IFREG, closed=closed)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, facts


def check_owned(facts: os.stat_result, kind: int, *, closed: bool = True) -> None:
    """Check that a file or folder is of the right kind, belongs to this user, and nobody else may write to it.

    Args:
        facts: its status.
        kind: `stat.S_IFREG` or `stat.S_IFDIR`.
        closed: refuse what others may write to.

    Raises:
        DamagedSnapshotError: the message is the rest of a sentence about the file.
    """
    seen = stat.S_IFMT(facts.st_mode)
    if seen != kind:
        wanted = "a regular file" if kind == stat.S_IFREG else "a folder"
        raise DamagedSnapshotError(f"is {_KINDS.get(seen, 'a regular file')}, not {wanted}")
    if facts.st_uid != os.geteuid():
        raise DamagedSnapshotError(f"belongs to user {facts.st_uid}, not to you ({os.geteuid()})")
    if closed and facts.st_mode & _OTHERS_WRITE:
        raise DamagedSnapshotError(
            f"may be written to by other users (mode {facts.st_mode & 0o7777:o}); if nobody has: chmod -R go= on the snapshot"
        )


def read_json(folder: Path, name: str, folder_fd: int, *, most: int, closed: bool = True) -> Fields:
    """Read a JSON object from a file of a snapshot.

    Args:
        folder: the snapshot, for messages.
        name: of the file.
        folder_fd: descriptor of the folder.
        most: the largest size allowed, bytes.
        closed: refuse a file that others may write to.

    Raises:
        FileNotFoundError: there is none.
        DamagedSnapshotError: it cannot be used; the message names file and field.
    """
    file = folder / name
    try:
        descriptor, facts = opened_file(name, folder_fd, closed=closed)
        try:
            data = _content(descriptor, facts.st_size, most)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except DamagedSnapshotError as error:
        raise DamagedSnapshotError(f"{file} cannot be used: it {error}; {NEW_ONE}") from None
    except OSError as error:
        raise DamagedSnapshotError(f"{file} cannot be read ({error.strerror or error}); {NEW_ONE}") from error
    return parsed(file, data)


def read_part(folder: Path, name: str, *, most: int) -> Fields:
    """Read a JSON object from a file of a snapshot; see `read_json`.

    Raises:
        FileNotFoundError: there is none.
        OSError: the folder cannot be opened.
        DamagedSnapshotError: the file cannot be used; the message names file and field.
    """
    folder_fd = opened_folder(folder)
    try:
        return read_json(folder, name, folder_fd, most=most)
    finally:
        os.close(folder_fd)


def _content(descriptor: int, size: int, most: int) -> bytes:
    """The content of a file, within a size limit and a deadline (a network disk or FUSE may hang)."""
    if size > most:
        raise DamagedSnapshotError(f"has {size} bytes; at most {most} are read")
    parts, got, deadline = [], 0, time.monotonic() + _READ_S
    while part := os.read(descriptor, min(_PIECE_BYTES, most + 1 - got)):
        parts.append(part)
        got += len(part)
        if got > most:
            raise DamagedSnapshotError(f"has more than {most} bytes, the most that is read")
        if time.monotonic() > deadline:
            raise DamagedSnapshotError(f"was not read after {_READ_S:g} s")
    return b"".join(parts)
