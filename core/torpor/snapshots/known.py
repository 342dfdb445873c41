"""Which snapshots there are, and what engines keep outside of them.

A snapshot can lie anywhere, so every capture notes its folder under the cache root, a file each; `remove` takes the note away.
A note whose folder holds no snapshot any more counts for nothing.

Engines may keep what is too large for every snapshot (weights) in a file of its own, named by its content, for all captures
of a deployment: in `images/<deployment>/kept` of the cache root. Such a file belongs to every snapshot that lists it
among the files that must be unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import SnapshotError
from torpor.snapshots.capture import outside_files
from torpor.snapshots.store.folder import found_instead, real_folder
from torpor.snapshots.store.paths import KEPT, cache_root

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["KeptFile", "forget", "kept_files", "known_snapshots", "note", "prune"]

_NOTE_BYTES = 1 << 16
_UNFINISHED_FOR_S = 3600.0


class KeptFile(NamedTuple):
    """A file that an engine keeps outside of its snapshots.

    Attributes:
        path: of it.
        size: room that it takes on the disk, in bytes.
        snapshots: folders of the known snapshots that need it.
    """

    path: Path
    size: int
    snapshots: tuple[Path, ...]


def note(folder: Path) -> None:
    """Remember where a snapshot lies; a cache that cannot be written only makes the list shorter."""
    folder = real_folder(folder)
    with contextlib.suppress(OSError):
        _notes().mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = _notes() / f".{os.urandom(4).hex()}"
        unfinished.write_bytes(os.fsencode(folder))
        unfinished.rename(_note(folder))


def forget(folder: Path) -> None:
    """A snapshot is gone."""
    with contextlib.suppress(OSError):
        _note(real_folder(folder)).unlink()


def known_snapshots() -> tuple[Path, ...]:
    """Folders of the snapshots of this user that a capture with this cache root made, and that are still there."""
    found = {*_noted(), *_inside(cache_root() / "snapshots")}
    return tuple(sorted(folder for folder in found if not found_instead(folder)))


def kept_files() -> tuple[KeptFile, ...]:
    """What engines keep outside of their snapshots, with the snapshots that need it."""
    users: dict[Path, list[Path]] = {}
    for folder in known_snapshots():
        with contextlib.suppress(SnapshotError):  # it cannot be restored, so it needs nothing
            for name in outside_files(folder):
                users.setdefault(Path(name), []).append(folder)
    found = []
    for kept in (cache_root() / "images").glob(f"*/{KEPT}"):
        for path in _inside(kept):
            with contextlib.suppress(OSError):
                facts = path.lstat()
                if stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid():
                    needing = users.get(path, []) + users.get(path.resolve(), [])
                    found.append(KeptFile(path, facts.st_blocks * 512, tuple(dict.fromkeys(needing))))
    return tuple(sorted(found))


def prune(only: Collection[Path] | None = None) -> tuple[KeptFile, ...]:
    """Delete the kept files that no known snapshot needs, but those that a process has open or may still write.

    Args:
        only: no others than these.

    Returns:
        What was deleted.

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
            continue  # two may prune at once
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


def _opened() -> set[tuple[int, int]]:
    """Device and number of every file that a process has open, as far as this user may see: an engine that sleeps has."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*/fd"):
        for descriptor in _inside(folder):
            with contextlib.suppress(OSError):
                facts = descriptor.stat()
                found.add((facts.st_dev, facts.st_ino))
    return found
