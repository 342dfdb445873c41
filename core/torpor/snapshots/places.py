"""Where things lie under the cache root: CRIU's prefix, scratch mount point, snapshots, working folders of replicas.

It imports nothing of the platform: a restore asks it before anything else.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

__all__ = ["CACHE_VARIABLE", "cache_root", "criu_prefix", "scratch_folder", "snapshot_folder", "work_folder"]

CACHE_VARIABLE = "TORPOR_CACHE"
"""Folder for local volumes, the image's own disk, snapshots and records; the default is `~/.cache/torpor` (XDG rules)."""

_LEFT_FOR_S = 3600.0


def cache_root() -> Path:
    """The folder for local volumes, the image's own disk, snapshots and records."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "torpor"


def criu_prefix() -> Path:
    """CRIU's private prefix, and what is kept about CRIU on this machine."""
    return cache_root() / "criu"


def scratch_folder() -> Path:
    """Mount point of the private scratch folders: short, because sockets lie in it (107 bytes, unix(7))."""
    return cache_root() / "box"


def snapshot_folder(name: str) -> Path:
    """Where a deployment's snapshot goes when nobody says otherwise."""
    return cache_root() / "snapshots" / name


def work_folder(name: str) -> Path:
    """A new folder for one replica of this process: CRIU's log is in it. What killed processes left long ago goes."""
    run = cache_root() / "run"
    folder = run / f"{name}-{os.getpid()}-{os.urandom(4).hex()}"
    folder.mkdir(mode=0o700, parents=True)
    _sweep(run)
    return folder


def _sweep(run: Path) -> None:
    """Remove folders whose process is gone; not at once, as the cache may be shared with a container that has pids of its own."""
    for left in run.iterdir():
        pid = left.name.rsplit("-", 2)[-2]
        if not Path("/proc", pid).exists():
            with contextlib.suppress(OSError):  # two may sweep at once
                if time.time() - left.stat().st_mtime > _LEFT_FOR_S:
                    import shutil  # noqa: PLC0415 - hardly ever

                    shutil.rmtree(left)
