"""Which snapshots this user has: a snapshot can lie anywhere, so each capture notes its folder under the cache root.

A note is a file of its own; `remove` deletes the snapshot and its note. A note whose folder no longer holds a snapshot does not
count.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError
from torpor.snapshots.store.folder import real_folder
from torpor.snapshots.store.found import found_instead
from torpor.snapshots.store.paths import cache_root
from torpor.snapshots.store.placing import remove_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["children", "known_snapshots", "note", "remove"]

_NOTE_BYTES = 1 << 16


def note(folder: Path) -> None:
    """Note where a snapshot lies. If the cache cannot be written, the snapshot is missing from the list, no more."""
    folder = real_folder(folder)
    with contextlib.suppress(OSError):
        _notes().mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = _notes() / f".{os.urandom(4).hex()}"
        unfinished.write_bytes(os.fsencode(folder))
        unfinished.rename(_note(folder))


def remove(folder: Path) -> Path:
    """Delete a snapshot. Running replicas go on: files that they map stay on the disk until the last of them ends.

    Args:
        folder: a symbolic link stands for its target; the link stays.

    Returns:
        The folder that was removed.

    Raises:
        SnapshotError: it is not a snapshot that Torpor wrote for this user; the message says what it is.
    """
    folder = real_folder(folder)
    if reason := found_instead(folder):
        raise SnapshotError(
            f"{folder} holds no snapshot: {reason}. Nothing was removed; to delete it anyway, do it yourself."
        )
    remove_folder(folder)
    with contextlib.suppress(OSError):
        _note(folder).unlink()
    return folder


def known_snapshots() -> tuple[Path, ...]:
    """Folders of the snapshots that were captured with this cache root and still exist."""
    found = {*_noted(), *children(cache_root() / "snapshots")}
    return tuple(sorted(folder for folder in found if not found_instead(folder)))


def _notes() -> Path:
    return cache_root() / "known-snapshots"


def _note(folder: Path) -> Path:
    return _notes() / hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]


def _noted() -> Iterator[Path]:
    for file in children(_notes()):
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                folder = Path(os.fsdecode(os.read(descriptor, _NOTE_BYTES)))
            finally:
                os.close(descriptor)
            if file.name == _note(folder).name:
                yield folder


def children(folder: Path) -> list[Path]:
    """Everything in a folder, in the order of names; empty if it cannot be read."""
    with contextlib.suppress(OSError):
        return sorted(folder.iterdir())
    return []
