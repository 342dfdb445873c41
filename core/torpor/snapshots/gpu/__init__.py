"""GPUs: the NVIDIA driver, its checkpoint of what processes hold on them, and which replica gets which.

A restore looks up the GPUs that a user names only if there are some: the driver's module is imported then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.snapshots.gpu.choice import gpus_for_replicas
    from torpor.snapshots.gpu.claims import choosing, claim, claimed

__all__ = ["choosing", "claim", "claimed", "gpus_for_replicas"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.snapshots.gpu.choice": ("gpus_for_replicas",),
        "torpor.snapshots.gpu.claims": ("choosing", "claim", "claimed"),
    },
)
