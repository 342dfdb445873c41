"""Requests the CPU's tile registers (AMX) before a worker computes anything."""

from __future__ import annotations

from torpor.launcher import Patch, after_import, ensure_tile_permission, has_tiles
from torpor_vllm.versions import SUPPORTED_VERSIONS

__all__ = ["PATCH"]

_WORKER = "vllm.v1.worker.cpu_worker"
"""Only workers on a CPU import it."""

PATCH = Patch(
    name="tile-permission",
    reason=(
        "vLLM's own kernel for weights of at most 1 MiB uses AMX and does not ask Linux for it; without a larger matrix, for "
        "which oneDNN asks, the first request ends the worker with SIGILL (0.32.0: a small embedding model)"
    ),
    versions=SUPPORTED_VERSIONS,
    applies=has_tiles,
    apply=lambda: after_import(_WORKER, lambda _: ensure_tile_permission()),
)
