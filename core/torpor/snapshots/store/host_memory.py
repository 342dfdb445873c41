"""How much memory this process and its children can still use, on the machine and in its control groups."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MEMORY_VARIABLE", "available_bytes", "lies_in_memory"]

MEMORY_VARIABLE = "TORPOR_HOST_MEMORY_GB"
"""The most memory that this machine can have, GB, for a virtual machine whose memory (MemTotal) grows on use."""

_IN_MEMORY = ("tmpfs", "ramfs")
_ESCAPED = re.compile(rb"\\([0-3][0-7]{2})")


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be used without swapping or being killed: the lowest limit of the machine and its control groups.

    Args:
        proc: mount point of procfs.
        cgroups: mount point of the control groups, version 2 or the `memory` controller of version 1.
    """
    text = (proc / "meminfo").read_text()
    total, available = (
        1024 * int(found.group(1)) if (found := re.search(rf"^{name}: +(\d+) kB", text, re.MULTILINE)) else 0
        for name in ("MemTotal", "MemAvailable")
    )
    with contextlib.suppress(ValueError, OverflowError):  # not set, or not a number
        available = max(available, int(float(os.environ.get(MEMORY_VARIABLE, "")) * 1e9) - (total - available))
    return min([available, *_groups(proc, cgroups)])


def lies_in_memory(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether files in a folder use memory: the folder is on a tmpfs.

    Args:
        folder: an existing one.
        mounts: the table of mounts (proc_pid_mounts(5)); of two mounts on one path, the last is visible.
    """
    device = folder.stat().st_dev
    kind = ""
    for line in mounts.read_bytes().splitlines():
        _, point, what, *_ = line.split()
        with contextlib.suppress(OSError):
            path = Path(os.fsdecode(_ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), point)))
            if folder.is_relative_to(path) and path.stat().st_dev == device:
                kind = os.fsdecode(what)
    return kind in _IN_MEMORY


def _groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Bytes left in each control group of this process that has a limit, parents included."""
    for line in (proc / "self" / "cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            root, files = cgroups, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, files = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = root / name.lstrip("/")
        for folder in [group, *group.parents]:
            if not folder.is_relative_to(root):
                break
            with contextlib.suppress(OSError, ValueError):  # no limit: the root has no such file, others say "max"
                limit, used = (int((folder / file).read_text()) for file in files)
                yield max(0, limit - used + _reclaimable(folder))


def _reclaimable(folder: Path) -> int:
    """Bytes of cached files in a group: they count as used, but the kernel frees them on demand."""
    with contextlib.suppress(OSError):
        text = (folder / "memory.stat").read_text()
        return sum(map(int, re.findall(r"^(?:in)?active_file (\d+)$", text, re.MULTILINE)))
    return 0
