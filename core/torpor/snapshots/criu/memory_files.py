"""The files of a snapshot from which replicas map memory: `memory-PID.img`, one for each process that does."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

__all__ = ["is_memory_file", "mapped_bytes"]

_MEMORY_FILE = re.compile(r"/.*/memory-\d+\.img")


def is_memory_file(path: str) -> bool:
    """Whether a path is that of a snapshot's memory file; false for one that was deleted (`... (deleted)`)."""
    return _MEMORY_FILE.fullmatch(path) is not None


def mapped_bytes(pid: int) -> int:
    """How much memory a process maps from a snapshot, in bytes; 0 for a process that cannot be read."""
    total = 0
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            words = line.split(None, 5)
            if is_memory_file(words[-1]):
                start, _, end = words[0].partition("-")
                total += int(end, 16) - int(start, 16)
    return total
