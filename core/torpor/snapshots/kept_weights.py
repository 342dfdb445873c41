"""Weights that engines keep outside of their snapshots, and which snapshot needs which.

An engine may keep what is too large for every snapshot (weights) in a file of its own, named by its content. All captures of a
deployment share it, in `images/<deployment>/kept` of the cache root. Such a file belongs to every snapshot that lists it among
the files that must be unchanged.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import SnapshotError
from torpor.snapshots.store.index import children, known_snapshots
from torpor.snapshots.store.outside import outside_files
from torpor.snapshots.store.paths import KEPT, cache_root

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["KeptFile", "kept_files", "prune"]

_UNFINISHED_FOR_S = 3600.0


class KeptFile(NamedTuple):
    """A file that an engine keeps outside of its snapshots.

    Attributes:
        path: its path.
        size: bytes on the disk.
        snapshots: folders of the known snapshots that need it.
    """

    path: Path
    size: int
    snapshots: tuple[Path, ...]


def kept_files() -> tuple[KeptFile, ...]:
    """The files that engines keep outside of their snapshots, each with the snapshots that need it."""
    users: dict[Path, list[Path]] = {}
    for folder in known_snapshots():
        with contextlib.suppress(SnapshotError):  # it cannot be restored, so it needs no weights
            for name in outside_files(folder):
                users.setdefault(Path(name), []).append(folder)
    found = []
    for kept in (cache_root() / "images").glob(f"*/{KEPT}"):
        for path in children(kept):
            with contextlib.suppress(OSError):
                facts = path.lstat()
                if stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid():
                    needing = users.get(path, []) + users.get(path.resolve(), [])
                    found.append(KeptFile(path, facts.st_blocks * 512, tuple(dict.fromkeys(needing))))
    return tuple(sorted(found))


def prune(only: Collection[Path] | None = None) -> tuple[KeptFile, ...]:
    """Delete kept files that no known snapshot needs, except those that a process has open or may still write.

    Args:
        only: delete only these of them.

    Returns:
        The deleted files.

    Raises:
        SnapshotError: one cannot be deleted.
    """
    removed = []
    opened = _opened()
    for file in kept_files():
        if only is not None and file.path not in only:
            continue
        try:
            facts = file.path.lstat()
        except FileNotFoundError:
            continue  # another prune deleted it
        unfinished = file.path.name.startswith(".") and time.time() - facts.st_mtime < _UNFINISHED_FOR_S
        if file.snapshots or unfinished or (facts.st_dev, facts.st_ino) in opened:
            continue
        try:
            file.path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SnapshotError(f"{file.path} cannot be deleted: {error.strerror}.") from error
        removed.append(file)
    return tuple(removed)


def _opened() -> set[tuple[int, int]]:
    """Device and inode of every file that a process has open, as far as this user may see. A sleeping engine has some."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*/fd"):
        for descriptor in children(folder):
            with contextlib.suppress(OSError):
                facts = descriptor.stat()
                found.add((facts.st_dev, facts.st_ino))
    return found
