"""How much memory a replica takes: of the host, and on each GPU of this machine."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psutil

from torpor.snapshots.gpu.driver import look

if TYPE_CHECKING:
    from torpor.platforms.local.running import Process

__all__ = ["gpu_bytes", "tree_bytes"]


def tree_bytes(leader: Process) -> int | None:
    """Host memory of a process and its descendants, in bytes; None if it is gone or cannot be read."""
    if not leader.alive:
        return None
    sizes = [size for process in _tree(leader.pid) if (size := _bytes(process)) is not None]
    return sum(sizes) if sizes else None


def _bytes(process: psutil.Process) -> int | None:
    """Its proportional memory (PSS); its resident memory if that cannot be read."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{process.pid}/smaps_rollup", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return None


def gpu_bytes(leader: Process) -> dict[int, int]:
    """Bytes that a process and its descendants hold, by the number of the GPU in the driver's order; without those they do not use.

    A process in a container of its own may be invisible to the driver; then the answer is empty.
    """
    pids = {process.pid for process in _tree(leader.pid)} if leader.alive else set()
    found: dict[int, int] = {}
    for number, use in enumerate(look().uses):
        if size := sum(held for pid, held in use.held_bytes.items() if pid in pids):
            found[number] = size
    return found


def _tree(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.Error:
        return []
