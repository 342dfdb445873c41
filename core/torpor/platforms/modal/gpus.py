"""The GPUs of this container, as `nvidia-smi` lists them: for listeners. A container has none but its own."""

from __future__ import annotations

import subprocess

from torpor.engine.child_process import run_child
from torpor.listener import GpuFacts

__all__ = ["container_gpus"]

_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader")
_TIMEOUT_S = 5.0


def container_gpus() -> tuple[GpuFacts, ...]:
    """Its GPUs in the driver's order; empty without a GPU, and if `nvidia-smi` does not answer."""
    try:
        done = run_child(_QUERY, timeout_s=_TIMEOUT_S)
        return tuple(map(_gpu, done.stdout.decode().splitlines())) if done.returncode == 0 else ()
    except (OSError, ValueError, subprocess.SubprocessError):
        return ()


def _gpu(line: str) -> GpuFacts:
    number, uuid, name = (word.strip() for word in line.split(",", 2))
    return GpuFacts(number=int(number), uuid=uuid, name=name)
