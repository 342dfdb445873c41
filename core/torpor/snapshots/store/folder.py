"""A snapshot's folder: that it is this user's own, and still the same one at the end of a restore."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import DamagedSnapshotError, SnapshotError
from torpor.snapshots.store.manifest import MANIFEST
from torpor.snapshots.store.placing import check_parents, recover
from torpor.snapshots.store.reading import opened_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Mark", "check_same", "checked", "real_folder", "unchanged"]

_PRIVATE_BITS = 0o077


class Mark(NamedTuple):
    """Identifies a folder and its manifest: device, inode of each, and the manifest's time of change."""

    device: int
    folder: int
    manifest: int
    changed_ns: int


def real_folder(folder: Path) -> Path:
    """The folder that a path stands for: absolute, and without symbolic links. It need not exist."""
    return Path(os.path.realpath(folder))


def checked(folder: Path) -> Mark:
    """Check that a snapshot is this user's own and private, and identify it.

    A snapshot is memory that will run. So nobody else may write it, and nobody else may read it.

    Args:
        folder: without links.

    Raises:
        DamagedSnapshotError: there is none, or it is open to others.
        SnapshotError: anybody may put another folder in its place.
    """
    check_parents(folder)
    if not folder.exists():
        recover(folder, clear=False)
    with opened_snapshot(folder, MANIFEST) as folder_fd:
        facts = os.fstat(folder_fd)
        manifest, changed_ns = 0, 0
        try:
            inner = os.stat(MANIFEST, dir_fd=folder_fd, follow_symlinks=False)
            manifest, changed_ns = inner.st_ino, inner.st_mtime_ns
        except FileNotFoundError:
            if not _is_private(facts):
                raise  # a folder of something else, such as /tmp: no advice to close it
        _check_private(folder, facts)
        return Mark(facts.st_dev, facts.st_ino, manifest, changed_ns)


def check_same(folder: Path, mark: Mark) -> None:
    """Check that the folder is still the one that was checked before.

    Raises:
        SnapshotError: another folder took its place.
    """
    try:
        same = checked(folder) == mark
    except SnapshotError as error:
        raise SnapshotError(f"The snapshot was changed while it was being restored: {error}") from error
    if not same:
        raise SnapshotError(
            f"The snapshot {folder} was replaced by another while it was being restored; nothing of it runs. Restore again."
        )


@contextlib.contextmanager
def unchanged(folder: Path, mark: Mark) -> Iterator[None]:
    """Check before and after the block that the folder is still the one that was checked.

    Raises:
        SnapshotError: another folder took its place; also said if the block failed because of that.
    """
    check_same(folder, mark)
    try:
        yield
    except SnapshotError:
        check_same(folder, mark)
        raise
    check_same(folder, mark)


def _is_private(facts: os.stat_result) -> bool:
    return facts.st_uid == os.geteuid() and not facts.st_mode & _PRIVATE_BITS


def _check_private(folder: Path, facts: os.stat_result) -> None:
    if facts.st_uid != os.geteuid():
        raise DamagedSnapshotError(
            f"{folder} belongs to user {facts.st_uid}, not to you ({os.geteuid()}): a restore would run their code. "
            "Take a snapshot of your own."
        )
    if facts.st_mode & _PRIVATE_BITS:
        raise DamagedSnapshotError(
            f"{folder} is open to other users (mode {facts.st_mode & 0o777:o}): it holds memory and keys. If nobody has "
            f"changed it: chmod 700 {folder}"
        )
