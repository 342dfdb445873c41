"""Pull an opened snapshot from its store: every chunk is checked, the folder appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from torpor.errors import DamagedSnapshotError, NoRoomError, SnapshotError
from torpor.network.shortage import is_disk_full
from torpor.snapshots.remote.fetching import Fetching
from torpor.snapshots.remote.location import location_of
from torpor.snapshots.remote.parallel import jobs_here
from torpor.snapshots.remote.store import Store
from torpor.snapshots.remote.values import Pulled
from torpor.snapshots.remote.work_folder import made_files, work_folder
from torpor.snapshots.store.files import damaged_files
from torpor.snapshots.store.folder import real_folder
from torpor.snapshots.store.index import note
from torpor.snapshots.store.manifest import MANIFEST, OUTSIDE
from torpor.snapshots.store.placing import made_whole
from torpor.snapshots.store.stored import inspect
from torpor.snapshots.targets import check_target, check_writable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torpor.snapshots.remote.values import RemoteFile, RemoteSnapshot

__all__ = ["pull", "pull_file", "wanted_bytes"]

_SPARE_BYTES = 16 << 20
_PAGE = 4096


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
    begun = time.monotonic()
    folder = real_folder(folder)
    check_target(folder)
    if not _is_there(remote, folder):
        with _disk_errors(folder):
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_writable(folder)
            with work_folder(folder, remote.digest) as (work, left):
                if not _is_there(remote, folder):  # another pull may have finished meanwhile
                    fetching = _fetched(remote, work, jobs or jobs_here(), left=left)
                    _place(work, folder)
                    seconds = time.monotonic() - begun
                    return Pulled(
                        folder,
                        False,
                        fetching.fetched,
                        fetching.fetched_bytes,
                        fetching.kept,
                        seconds,
                    )
    return Pulled(folder, already=True, fetched=0, fetched_bytes=0, kept=0, seconds=time.monotonic() - begun)


def pull_file(remote: RemoteSnapshot, file: RemoteFile, target: Path, *, jobs: int = 0) -> int:
    """Fetch one file of `remote.outside`, such as kept weights: checked, private (0600), complete or not at all.

    Args:
        remote: from `open_remote`.
        file: one of `remote.outside`.
        target: where it goes; what is there is replaced. Its folder has to exist.
        jobs: how many transfers run at once.

    Returns:
        Bytes that were read from the store; 0 if another process fetched it meanwhile.

    Raises:
        NoRoomError: the disk has too little room.
        DamagedSnapshotError: a chunk is missing or not what was pushed; the target is as it was.
        StoreError: the store cannot be read.
    """
    inner, before = file._replace(path="content"), _mark(target)
    with _disk_errors(target), work_folder(target, file.sha256) as (work, left):
        if (now := _mark(target)) and now != before and now[1] == file.size:
            return 0  # another pull finished while this one waited for it
        made_files(work, [inner], {})
        _check_room(target, [inner], work)
        fetching = Fetching(_store(remote), remote.codec, work, [inner], remote.chunks)
        fetching.run(jobs or jobs_here(), left=left)
        (work / inner.path).replace(target)
    return fetching.fetched_bytes


def _mark(target: Path) -> tuple[int, int] | None:
    """Inode and size of what is at a place; None for nothing."""
    try:
        facts = target.lstat()
    except FileNotFoundError:
        return None
    return facts.st_ino, facts.st_size


def wanted_bytes(files: Sequence[RemoteFile]) -> int:
    """The most bytes that files take on the disk; zeros and holes of a block and more take none."""
    return sum(piece.length for file in files for piece in file.pieces) + _PAGE * len(files)


def _fetched(remote: RemoteSnapshot, work: Path, jobs: int, *, left: bool) -> Fetching:
    """Everything in the work folder, checked."""
    documents = {name: remote.documents[name] for name in (MANIFEST, OUTSIDE)}
    made_files(work, remote.files, documents)
    _check_room(work, remote.files, work)
    fetching = Fetching(_store(remote), remote.codec, work, remote.files, remote.chunks)
    fetching.run(jobs, left=left)
    if damages := damaged_files(work, remote.manifest, full=False):
        raise DamagedSnapshotError(
            f"What was pulled from {remote.url} is damaged: {'; '.join(damages)}. Push it again."
        )
    return fetching


def _store(remote: RemoteSnapshot) -> Store:
    return Store(location_of(remote.url).store)


def _is_there(remote: RemoteSnapshot, folder: Path) -> bool:
    """Whether the folder holds this very snapshot, undamaged as far as sizes and first bytes tell."""
    try:
        manifest = inspect(folder)
        same = (folder / MANIFEST).read_bytes() == remote.documents[MANIFEST]
    except (SnapshotError, OSError):
        return False
    return same and not damaged_files(folder, manifest, full=False)


def _check_room(place: Path, files: Sequence[RemoteFile], work: Path) -> None:
    """Check that the disk has room for what is missing.

    Raises:
        NoRoomError: it has not.
    """
    facts = os.statvfs(work)
    free = facts.f_bavail * facts.f_frsize
    there = sum((work / file.path).stat().st_blocks * 512 for file in files)
    wanted = max(wanted_bytes(files) - there, 0) + _SPARE_BYTES
    if free < wanted:
        raise NoRoomError(
            f"{place.parent} has {free / 1e9:.2f} GB free; the pull needs {wanted / 1e9:.2f} GB. Free some room, or choose "
            "another folder."
        )


def _place(work: Path, folder: Path) -> None:
    """Put what was pulled in its place, in one step."""
    with made_whole(folder) as partial:
        for entry in sorted(work.iterdir()):
            entry.rename(partial / entry.name)
    note(folder)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Make errors of this machine's disk errors of the snapshot."""
    try:
        yield
    except OSError as error:
        kind = NoRoomError if is_disk_full(error) else SnapshotError
        raise kind(f"{folder} cannot be written: {error.strerror or error}.") from error
