"""Where things lie under the cache root: CRIU's prefix, scratch mount point, snapshots, working folders of replicas."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import time
from pathlib import Path

from torpor.errors import NoRoomError, SnapshotError
from torpor.network.shortage import is_disk_full

__all__ = [
    "CACHE_VARIABLE",
    "KEPT",
    "LIBRARIES_VARIABLE",
    "cache_root",
    "criu_prefix",
    "logs_folder",
    "records_file",
    "release_work_folder",
    "scratch_folder",
    "snapshot_folder",
    "work_folder",
]

CACHE_VARIABLE = "TORPOR_CACHE"
"""Folder for local volumes, the image's own disk, snapshots and records; the default is `~/.cache/torpor` (XDG rules)."""

LIBRARIES_VARIABLE = "TORPOR_NVIDIA_LIBRARIES"
"""Folder of the NVIDIA driver's libraries (libcuda.so.1, libnvidia-ml.so.1), if the loader does not look there."""

KEPT = "kept"
"""Folder in a deployment's image for weights outside of snapshots; see `torpor.snapshots.kept_weights`."""

_LEFT_FOR_S = 3600.0
_WORK_NAME = re.compile(r".+-\d+-[0-9a-f]{8}", re.DOTALL)


def cache_root() -> Path:
    """The folder for local volumes, the image's own disk, snapshots and records."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "torpor"


def criu_prefix() -> Path:
    """CRIU's private prefix, with what is known about CRIU on this machine."""
    return cache_root() / "criu"


def scratch_folder() -> Path:
    """Mount point of the private scratch folders. Its path is short: paths of sockets in it are limited to 107 bytes (unix(7))."""
    return cache_root() / "box"


def snapshot_folder(name: str) -> Path:
    """The default folder of a deployment's snapshot."""
    return cache_root() / "snapshots" / name


def records_file(name: str) -> Path:
    """The default file for the stage records of a command that begins now.

    Args:
        name: the deployment's.
    """
    file = cache_root() / "records" / f"{name.replace('/', '_')}-{int(time.time())}.jsonl"
    return file.with_stem(f"{file.stem}-{os.getpid()}") if file.exists() else file


def logs_folder(name: str, *, root: Path | None = None) -> Path:
    """Where the output of a deployment's engines goes; see `torpor.engine.logs`."""
    return (root or cache_root()) / "logs" / name


def work_folder(name: str) -> Path:
    """A new folder for one replica of this process, for CRIU's log. Old folders of killed processes are removed.

    It is locked until `release_work_folder` or the end of this process, so that no other process removes it.

    Raises:
        SnapshotError: it cannot be made.
    """
    run = cache_root() / "run"
    folder = run / f"{name}-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        folder.mkdir(mode=0o700, parents=True)
        _locks[folder] = _locked(folder)
    except OSError as error:
        kind = NoRoomError if is_disk_full(error) else SnapshotError
        raise kind(
            f"The working folder {folder} cannot be made: {error.strerror}. {run} must be a folder that you may write to: "
            f"free it, or set {CACHE_VARIABLE} to another place."
        ) from error
    with contextlib.suppress(OSError):
        _sweep(run)
    return folder


def release_work_folder(folder: Path, *, remove: bool = True) -> None:
    """A replica no longer needs its working folder. Harmless to repeat.

    Args:
        folder: from `work_folder`.
        remove: delete it; otherwise it stays for a while, so that CRIU's log can be read.
    """
    if remove:
        shutil.rmtree(folder, ignore_errors=True)
    if (lock := _locks.pop(folder, None)) is not None:
        os.close(lock)


_locks: dict[Path, int] = {}


def _sweep(run: Path) -> None:
    """Remove old working folders that nobody has locked, and nothing else."""
    for entry in os.scandir(run):
        with contextlib.suppress(OSError):  # another process may remove it at the same time
            facts = entry.stat(follow_symlinks=False)
            old = time.time() - facts.st_mtime > _LEFT_FOR_S
            if not old or not _WORK_NAME.fullmatch(entry.name) or not stat.S_ISDIR(facts.st_mode):
                continue
            if facts.st_uid != os.geteuid():
                continue
            lock = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor of a folder, with a lock on it if its disk has locks."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return lock
