"""Where a pull writes: a private folder beside the target, `.NAME.pull-DIGEST`, locked while somebody writes.

An interrupted pull leaves it. The next pull of the same snapshot finds it by its name, compares every chunk with its hash, and
fetches the rest. If nobody does, `torpor snapshot prune` and the next capture or pull to that place clear it after an hour
(`torpor.snapshots.store.placing`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from typing import TYPE_CHECKING

from torpor.errors import DamagedSnapshotError, NoRoomError, SnapshotError
from torpor.network.shortage import is_disk_full
from torpor.snapshots.store.hold import lock_alone
from torpor.snapshots.store.reading import check_owned, opened_folder
from torpor.telemetry.progress import tell

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torpor.snapshots.remote.values import RemoteFile

__all__ = ["made_files", "opened_file_at", "work_folder"]

_TAG_DIGITS = 16
_LOOK_S = 0.5
_PRIVATE_BITS = 0o077
_ATTEMPTS = 100
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@contextlib.contextmanager
def work_folder(target: Path, digest: str) -> Iterator[tuple[Path, bool]]:
    """The locked work folder of a snapshot, and whether an earlier pull left it; waits while another pull holds it.

    It stays after an error that a later pull may not meet, and goes after success, if what was pulled is damaged, or if the
    disk is full.

    Args:
        target: where the snapshot will be.
        digest: of the snapshot.

    Raises:
        SnapshotError: the folder cannot be made.
    """
    folder = target.with_name(f".{target.name}.pull-{digest[:_TAG_DIGITS]}")
    folder_fd, left = _locked(folder)
    try:
        yield folder, left
    except BaseException as error:
        if (
            isinstance(error, DamagedSnapshotError)
            or is_disk_full(error)
            or (isinstance(error, NoRoomError) and not left)
        ):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(folder_fd)


def made_files(folder: Path, files: Sequence[RemoteFile], documents: Mapping[str, bytes]) -> None:
    """Make every file in its size, private (0600), and write the documents. What an earlier pull wrote stays.

    Raises:
        OSError: the disk refuses, or something else lies there.
    """
    for path in (*documents, *(file.path for file in files)):
        (folder / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in files:
        descriptor = opened_file_at(folder, file.path, make=True)
        try:
            os.ftruncate(descriptor, file.size)
        finally:
            os.close(descriptor)
    for name, content in documents.items():
        descriptor = opened_file_at(folder, name, make=True)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
        finally:
            os.close(descriptor)


def opened_file_at(folder: Path, path: str, *, make: bool = False) -> int:
    """A descriptor of a file in a work folder, to read and to write.

    Args:
        folder: the work folder.
        path: under it.
        make: make the file if it is not there. A transfer does not: its folder may have just been deleted.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(folder / path, _FLAGS | (os.O_CREAT if make else 0), 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PermissionError(f"{folder / path} is not a regular file")
    return descriptor


def _locked(folder: Path) -> tuple[int, bool]:
    """A locked descriptor of the folder, and whether it was there before."""
    told = False
    for _ in range(_ATTEMPTS):
        left = True
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            left = False
        try:
            folder_fd = opened_folder(folder)
        except FileNotFoundError:
            continue  # another pull has just finished
        while not lock_alone(folder_fd, without_locks=True):
            if not told:
                tell("another pull of this snapshot is at work; waiting for it")
                told = True
            time.sleep(_LOOK_S)
        if _is_same(folder, folder_fd):
            _check(folder, folder_fd)
            return folder_fd, left
        os.close(folder_fd)  # whoever held it has put it in place
    raise SnapshotError(f"{folder} cannot be used: other processes keep making and removing it.")


def _is_same(folder: Path, folder_fd: int) -> bool:
    try:
        return os.path.samestat(folder.lstat(), os.fstat(folder_fd))
    except FileNotFoundError:
        return False


def _check(folder: Path, folder_fd: int) -> None:
    facts = os.fstat(folder_fd)
    why = f"is open to other users (mode {facts.st_mode & 0o777:o})" if facts.st_mode & _PRIVATE_BITS else ""
    try:
        check_owned(facts, stat.S_IFDIR)
    except DamagedSnapshotError as error:
        why = str(error)
    if why:
        os.close(folder_fd)
        raise SnapshotError(f"{folder}, which an earlier pull left, {why}; remove it.")
