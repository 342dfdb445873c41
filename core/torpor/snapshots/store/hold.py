"""Locks on a snapshot's folder: who uses it, and who writes it. The kernel releases them when their process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from torpor.snapshots.store.reading import opened_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Hold", "lock_alone", "unused"]


class Hold:
    """Says that this process uses a snapshot, by a shared lock on its folder.

    A prune leaves such a snapshot alone (`unused`). The folder's time of change says when it was last used. Neither is needed to
    restore: a folder that is gone, read-only, or on a disk without locks is no error.
    """

    def __init__(self) -> None:
        self._folder_fd = -1

    def take(self, folder: Path, *, used: bool = True) -> None:
        """Hold a snapshot, and release the one held before.

        Args:
            folder: without links.
            used: set the time of last use to now.
        """
        with contextlib.suppress(OSError):
            folder_fd = opened_folder(folder)
            self.release()
            self._folder_fd = folder_fd
            fcntl.flock(folder_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if used:
            with contextlib.suppress(OSError):
                os.utime(folder)

    def release(self) -> None:
        """Release the snapshot. Harmless to repeat."""
        if self._folder_fd >= 0:
            os.close(self._folder_fd)
            self._folder_fd = -1


@contextlib.contextmanager
def unused(folder: Path) -> Iterator[bool]:
    """Whether no process holds a snapshot; none can take it during the block. True on a disk without locks."""
    try:
        folder_fd = opened_folder(folder)
    except OSError:
        yield True
        return
    try:
        yield lock_alone(folder_fd, without_locks=True)
    finally:
        os.close(folder_fd)


def lock_alone(folder_fd: int, *, without_locks: bool) -> bool:
    """Lock a folder exclusively until its descriptor is closed.

    Args:
        folder_fd: descriptor of the folder.
        without_locks: what to return on a disk without locks.

    Returns:
        Whether the folder is locked now; False if another process has locked it.
    """
    try:
        fcntl.flock(folder_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return without_locks
    return True
