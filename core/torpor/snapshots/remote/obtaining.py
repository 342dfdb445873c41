"""Get a snapshot from a store onto this machine: compare first, then fetch, then note where its files lie.

    compare        every reason against it, in one error; nothing was fetched
    kept weights   fetched once for this machine, into the cache root
    pull           the snapshot's folder, below the cache root, named by its content
    here.json      where its files lie here, so that later starts compare sizes and times only

A restore begins when every file is there: CRIU reads pages in any order, and the check of a whole file is its last byte's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import SnapshotError
from torpor.snapshots.fit import changed_files
from torpor.snapshots.remote.comparing import compare, misfit_here, where
from torpor.snapshots.remote.opening import open_remote
from torpor.snapshots.remote.pull import pull, pull_file
from torpor.snapshots.store.here import read_here
from torpor.snapshots.store.index import note
from torpor.snapshots.store.manifest import MANIFEST, StageTime
from torpor.snapshots.store.outside import changed_now
from torpor.snapshots.store.paths import cache_root
from torpor.telemetry.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torpor.app_file import App
    from torpor.snapshots.remote.comparing import Missing
    from torpor.snapshots.remote.source import Source
    from torpor.snapshots.remote.values import Pulled, RemoteSnapshot
    from torpor.snapshots.store.here import Here

__all__ = ["Brought", "Obtained", "bring", "obtain", "pulled_folder"]

_DIGITS = 16


class Obtained(NamedTuple):
    """A snapshot of a store that is on this machine now, and fits.

    Attributes:
        folder: its folder.
        already: whether it was here before; then nothing was compared or fetched.
        fetched_bytes: bytes that were read from the store, kept weights included.
        stages: how long each part took.
    """

    folder: Path
    already: bool
    fetched_bytes: int
    stages: tuple[StageTime, ...]

    def as_json(self) -> dict[str, object]:
        """As a command prints it."""
        stages = [one._asdict() for one in self.stages]
        return {
            "folder": str(self.folder),
            "already": self.already,
            "fetched_bytes": self.fetched_bytes,
            "stages": stages,
        }

    def described(self) -> str:
        """One line for people."""
        if self.already:
            return f"pulled before: {self.folder}"
        took = ", ".join(f"{one.stage} {one.seconds:.3f}" for one in self.stages)
        return f"pulled {self.fetched_bytes / 1e6:.0f} MB into {self.folder}: {took} s"


class Brought(NamedTuple):
    """The outcome of `bring`.

    Attributes:
        pulled: of the folder.
        fetched_bytes: bytes that were read from the store, kept weights included.
        stages: how long each part took.
    """

    pulled: Pulled
    fetched_bytes: int
    stages: tuple[StageTime, ...]


def obtain(source: Source, app: App | None = None) -> Obtained:
    """Get a snapshot onto this machine; a second start, or another process, fetches nothing again.

    Args:
        source: the snapshot.
        app: the app to serve; by default the snapshot's own app file.

    Raises:
        SnapshotMisfitError: it does not fit this machine; every reason is listed, nothing was fetched.
        ConfigurationError: the URL or a key is wrong, or a package is missing.
        SnapshotError: the store cannot be read, nobody trusted signed, or the disk has too little room.
    """
    began = time.perf_counter()
    remote = open_remote(source.url, trust=source.trust, identity=source.identity)
    stages = [_since(Stage.OPEN, began)]
    folder = pulled_folder(remote)
    if _is_here(folder, where(remote.manifest, app)):
        return Obtained(folder, already=True, fetched_bytes=0, stages=tuple(stages))
    found = bring(remote, folder, app)
    return Obtained(folder, found.pulled.already, found.fetched_bytes, (*stages, *found.stages))


def bring(remote: RemoteSnapshot, folder: Path, app: App | None = None, *, jobs: int = 0) -> Brought:
    """Compare this machine with an opened snapshot, then pull it into a folder, with its kept weights.

    Args:
        remote: opened.
        folder: see `torpor.snapshots.remote.pull.pull`.
        app: the app to serve; by default the snapshot's own app file.
        jobs: how many transfers run at once; 0 for a number that suits this machine.

    Raises:
        SnapshotError: as of `obtain`.
    """
    began = time.perf_counter()
    compared = compare(remote, app)
    if compared.reasons:
        raise misfit_here(remote.url, compared.reasons)
    stages = [_since(Stage.COMPARE, began)]
    size, here, began = 0, compared.here, time.perf_counter()
    for missing in compared.missing:
        size += _fetched_once(remote, missing, jobs)
        here = here._replace(changed={**here.changed, missing.captured: changed_now(str(missing.target)) or 0})
    if compared.missing:
        stages.append(_since(Stage.PULL_WEIGHTS, began))
    began = time.perf_counter()
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pulled = pull(remote, folder, jobs=jobs)
    here.write(folder)
    note(folder)
    stages.append(_since(Stage.PULL, began))
    return Brought(pulled, size + pulled.fetched_bytes, tuple(stages))


def pulled_folder(remote: RemoteSnapshot) -> Path:
    """Where a snapshot of a store lies on this machine: below the cache root, named by its content."""
    name = remote.manifest.deployment.name.replace("/", "_")
    return cache_root() / "snapshots" / f"{name}-{remote.digest[:_DIGITS]}"


def _is_here(folder: Path, wanted: Here) -> bool:
    """Whether an earlier pull into this folder is complete, for this cache root and app file, and its outside files fit."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        here = read_here(folder)
        same = (here.moved, here.app_file) == (wanted.moved, wanted.app_file) and bool(here.changed)
        return same and not changed_files(folder)
    except SnapshotError:
        return False


def _fetched_once(remote: RemoteSnapshot, missing: Missing, jobs: int) -> int:
    """Fetch kept weights, unless another process did so meanwhile; the bytes that were read from the store."""
    missing.target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(missing.target):
        if changed_now(str(missing.target)) != missing.before:
            return 0
        return pull_file(remote, missing.file, missing.target, jobs=jobs)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Wait until no other process fetches the same file."""
    lock = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a disk without locks: both fetch, and the second one wins
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _since(stage: Stage, began: float) -> StageTime:
    return StageTime(stage=stage.value, seconds=time.perf_counter() - began)
