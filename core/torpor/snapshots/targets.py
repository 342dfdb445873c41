"""Check that a snapshot can be written to a folder, before the minutes of a cold start."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import NoRoomError, SnapshotError
from torpor.network.shortage import is_disk_full
from torpor.snapshots.store.folder import real_folder
from torpor.snapshots.store.found import found_instead
from torpor.snapshots.store.placing import check_place, recover
from torpor.snapshots.store.stored import inspect

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_target", "check_writable", "last_bytes"]

_LEAST_BYTES = 64 << 20
"""Every snapshot is at least this large."""

_PAGE = 4096
_SHOWN = 60
_OTHERS = 0o077
_LONGEST_PATH = 4096 - 512
"""The longest path of a snapshot, bytes: Linux allows 4095, less the room for the files in it."""


def check_target(folder: Path) -> None:
    """Check that a snapshot can be put there: nothing is there, or an older snapshot, which is replaced.

    Args:
        folder: a symbolic link stands for its target.

    Raises:
        SnapshotError: something else is there, which the message names, or CRIU could not reach it.
    """
    folder = real_folder(folder)
    if folder.is_relative_to("/dev/shm"):  # noqa: S108 - refused
        raise SnapshotError(
            f"{folder} lies in /dev/shm, which every sandbox, and CRIU inside it, has for itself. For a snapshot in memory, "
            "mount a tmpfs elsewhere before the start: mount -t tmpfs -o size=32G,mode=700 snapshots /mnt/snapshots"
        )
    check_place(folder)
    recover(folder, clear=False)
    try:
        empty = not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise SnapshotError(f"{folder} cannot be read: {error.strerror}.") from error
    if not empty and (reason := found_instead(folder)):
        raise SnapshotError(
            f"{folder} exists and is not a snapshot; choose another folder, or remove it yourself. What was found: {reason}."
        )


def check_writable(folder: Path) -> None:
    """Check by a trial that a snapshot can be written there.

    The trial makes a private folder beside the target, and writes, maps and renames a file in it, as a capture and a restore
    do. Then it removes the folder. The size of an older snapshot tells how much room a new one needs.

    Args:
        folder: where the snapshot is to go; a symbolic link stands for its target.

    Raises:
        NoRoomError: the disk has too little room.
        SnapshotError: the disk refuses, or gives other users access; the message says which.
    """
    folder = Path(os.path.realpath(folder))
    if (length := len(os.fsencode(folder))) > _LONGEST_PATH:
        raise SnapshotError(
            f"The snapshot cannot be put there: the path {str(folder)[:_SHOWN]}... has {length} bytes, and {_LONGEST_PATH} are "
            "allowed. Choose another folder."
        )
    parent = next(one for one in folder.parents if os.path.lexists(one))
    with _told(folder, parent), _trial_folder(parent) as trial:
        facts = trial.stat()
        if facts.st_uid != os.geteuid() or facts.st_mode & _OTHERS:
            raise SnapshotError(
                f"A snapshot cannot be kept in {parent}: its file system does not keep the owner and mode of a folder (a "
                f"private one got mode {facts.st_mode & 0o777:o} and user {facts.st_uid}), so other users could read memory "
                "and keys. Choose a folder on a file system of Linux (ext4, xfs, btrfs, ...)."
            )
        file = trial / "written"
        file.write_bytes(b"\1" * _PAGE)
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), _PAGE, access=mmap.ACCESS_COPY) as mapped:
            mapped[0] = 2
        file.rename(trial / "renamed")
    _check_room(folder, parent)


def last_bytes(folder: Path) -> int:
    """The size of the snapshot that is there, bytes; 0 if there is none, or it cannot be read."""
    try:
        manifest = inspect(folder)
    except SnapshotError:
        return 0
    return manifest.image_bytes + manifest.side_file_bytes


def _check_room(folder: Path, parent: Path) -> None:
    facts = os.statvfs(parent)
    free, last = facts.f_bavail * facts.f_frsize, last_bytes(folder)
    wanted = max(last + last // 10, _LEAST_BYTES)
    if free < wanted:
        why = "as much as the old one, which stays until the new one is complete" if last else "at least"
        raise NoRoomError(
            f"{parent} has {free / 1e9:.2f} GB free; a snapshot takes {wanted / 1e9:.2f} GB ({why}). Free some room, remove the "
            f"old snapshot (torpor snapshot rm {folder}), or choose another folder."
        )
    if facts.f_files and not facts.f_favail:
        raise NoRoomError(
            f"The disk of {parent} has no room for more files (no inodes are left). Remove some, or choose another disk."
        )


@contextlib.contextmanager
def _trial_folder(parent: Path) -> Iterator[Path]:
    trial = parent / f".torpor-trial-{os.urandom(4).hex()}"
    trial.mkdir(mode=0o700)
    try:
        yield trial
    finally:
        shutil.rmtree(trial, ignore_errors=True)


@contextlib.contextmanager
def _told(folder: Path, parent: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        kind = NoRoomError if is_disk_full(error) else SnapshotError
        raise kind(
            f"The snapshot {folder} cannot be written: a small trial in {parent} failed ({said}). Choose another folder."
        ) from error
