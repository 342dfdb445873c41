"""Which snapshots of this user there are: a snapshot can lie anywhere, so each capture notes its folder under the cache root.

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
from torpor.snapshots.store.folder import found_instead, real_folder, remove_folder
from torpor.snapshots.store.paths import cache_root

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["known_snapshots", "note", "remove"]

_NOTE_BYTES = 1 << 16


def note(folder: Path) -> None:
    """Remember where a snapshot lies; a cache that cannot be written only makes the list shorter."""
    folder = real_folder(folder)
    with contextlib.suppress(OSError):
        _notes().mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = _notes() / f".{os.urandom(4).hex()}"
        unfinished.write_bytes(os.fsencode(folder))
        unfinished.rename(_note(folder))


def remove(folder: Path) -> Path:
    """Delete a snapshot. Replicas that run go on: what they map of its files stays on the disk until the last of them ends.

    Args:
        folder: a symbolic link stands for what it leads to; it stays.

    Returns:
        The folder that was removed.

    Raises:
        SnapshotError: it is no snapshot that Torpor wrote for this user; the message says what it is.
    """
    folder = real_folder(folder)
    if reason := found_instead(folder):
        raise SnapshotError(
            f"{folder} holds no snapshot: {reason}. Nothing was removed; if it is to go all the same, delete it yourself."
        )
    remove_folder(folder)
    with contextlib.suppress(OSError):
        _note(folder).unlink()
    return folder


def known_snapshots() -> tuple[Path, ...]:
    """Folders of the snapshots of this user that a capture with this cache root made, and that are still there."""
    found = {*_noted(), *_inside(cache_root() / "snapshots")}
    return tuple(sorted(folder for folder in found if not found_instead(folder)))


def _notes() -> Path:
    return cache_root() / "known-snapshots"


def _note(folder: Path) -> Path:
    return _notes() / hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]


def _noted() -> Iterator[Path]:
    for file in _inside(_notes()):
        with contextlib.suppress(OSError, ValueError):
            descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                folder = Path(os.fsdecode(os.read(descriptor, _NOTE_BYTES)))
            finally:
                os.close(descriptor)
            if file.name == _note(folder).name:
                yield folder


def _inside(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(folder.iterdir())
    return []
