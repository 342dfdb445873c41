"""Pull an opened snapshot from its store: every chunk is checked, the folder appears complete or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.snapshots.remote.values import Pulled, RemoteFile, RemoteSnapshot

__all__ = ["pull", "pull_file"]


def pull(remote: RemoteSnapshot, folder: Path, *, jobs: int = 0) -> Pulled:
    """Pull a snapshot into a folder.

    A pull that was interrupted goes on where it was. If another process pulls the same snapshot into the same folder, this
    one waits for it. If the folder holds the snapshot already, nothing is fetched.

    Args:
        remote: from `open_remote`.
        folder: takes the place of nothing, of an empty folder or of an older snapshot; anything else is refused.
        jobs: how many transfers run at once; 0 for a number that suits this machine.

    Raises:
        NoRoomError: the disk has too little room.
        DamagedSnapshotError: a chunk is missing or not what was pushed; nothing is left.
        StoreError: the store cannot be read.
        SnapshotError: the folder cannot be put there.
    """
    raise NotImplementedError(remote, folder, jobs)


def pull_file(remote: RemoteSnapshot, file: RemoteFile, target: Path, *, jobs: int = 0) -> int:
    """Fetch one file of `remote.outside`, such as kept weights: checked, private (0600), complete or not at all.

    Args:
        remote: from `open_remote`.
        file: one of `remote.outside`.
        target: where it goes; what is there is replaced. Its folder has to exist.
        jobs: how many transfers run at once.

    Returns:
        Bytes that were read from the store.

    Raises:
        NoRoomError: the disk has too little room.
        DamagedSnapshotError: a chunk is missing or not what was pushed; the target is as it was.
        StoreError: the store cannot be read.
    """
    raise NotImplementedError(remote, file, target, jobs)
