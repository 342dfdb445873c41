"""The local platform: the same lifecycle on this machine.

`BACKENDS` are the snapshot backends by name. `CACHE_VARIABLE` names the variable that sets `cache_root()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.platforms.local.backends import BACKENDS, NoSnapshot, SnapshotBackend, Standby
    from torpor.platforms.local.criu_backend import CriuBackend
    from torpor.platforms.local.private_replica import PrivateReplica
    from torpor.platforms.local.requirements import missing_packages
    from torpor.platforms.local.server import LocalServer
    from torpor.platforms.local.snapshots import create_snapshot, inspect_snapshot, remove_snapshot, restore_snapshot
    from torpor.snapshots.store.paths import CACHE_VARIABLE, cache_root

__all__ = [
    "BACKENDS",
    "CACHE_VARIABLE",
    "CriuBackend",
    "LocalServer",
    "NoSnapshot",
    "PrivateReplica",
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
        "torpor.platforms.local.backends": ("BACKENDS", "NoSnapshot", "SnapshotBackend", "Standby"),
        "torpor.platforms.local.criu_backend": ("CriuBackend",),
        "torpor.platforms.local.private_replica": ("PrivateReplica",),
        "torpor.platforms.local.requirements": ("missing_packages",),
        "torpor.platforms.local.server": ("LocalServer",),
        "torpor.platforms.local.snapshots": (
            "create_snapshot",
            "inspect_snapshot",
            "remove_snapshot",
            "restore_snapshot",
        ),
        "torpor.snapshots.store.paths": ("CACHE_VARIABLE", "cache_root"),
    },
)
