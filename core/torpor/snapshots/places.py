"""Where things lie under the cache root: CRIU's prefix, scratch mount point, snapshots, working folders of replicas.

It imports nothing of the platform: a restore asks it before anything else.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["CACHE_VARIABLE", "cache_root", "criu_prefix", "scratch_folder", "snapshot_folder", "work_folder"]

CACHE_VARIABLE = "TORPOR_CACHE"
"""Folder for local volumes, the image's own disk, snapshots and records; the default is `~/.cache/torpor` (XDG rules)."""


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
    """A folder for one replica, made when missing: CRIU's log is in it."""
    folder = cache_root() / "run" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
