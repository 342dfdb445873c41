"""The local platform: the same lifecycle on this machine.

`BACKENDS` are the snapshot backends by name. `CACHE_VARIABLE` names the variable that sets `cache_root()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.platforms.local.backends import BACKENDS, CriuBackend, NoSnapshot, SnapshotBackend, Standby
    from torpor.platforms.local.server import (
        LocalServer,
        create_snapshot,
        inspect_snapshot,
        missing_packages,
        remove_snapshot,
        restore_snapshot,
    )
    from torpor.snapshots.store.paths import CACHE_VARIABLE, cache_root

__all__ = [
    "BACKENDS",
    "CACHE_VARIABLE",
    "CriuBackend",
    "LocalServer",
    "NoSnapshot",
    "SnapshotBackend",
    "Standby",
    "cache_root",
    "create_snapshot",
    "inspect_snapshot",
    "missing_packages",
    "remove_snapshot",
    "restore_snapshot",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.platforms.local.backends": ("BACKENDS", "CriuBackend", "NoSnapshot", "SnapshotBackend", "Standby"),
        "torpor.platforms.local.server": (
            "LocalServer",
            "create_snapshot",
            "inspect_snapshot",
            "missing_packages",
            "remove_snapshot",
            "restore_snapshot",
        ),
        "torpor.snapshots.store.paths": ("CACHE_VARIABLE", "cache_root"),
    },
)
