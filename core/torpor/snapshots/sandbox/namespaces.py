"""The namespaces of a sandbox, and which processes are in them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Namespaces", "command_line"]

_KINDS = ("pid", "mnt", "net", "ipc")


class Namespaces:
    """The namespaces of a process, held open: the kernel would give the number of a removed namespace to a new one.

    Args:
        pid: a process in them.
    """

    def __init__(self, pid: int) -> None:
        self._held = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in _KINDS]
        self._inodes = {kind: os.fstat(held).st_ino for kind, held in zip(_KINDS, self._held, strict=True)}

    def members(self) -> list[int]:
        """Pids (outside) of all processes that are in at least one of the namespaces."""
        return self._members(_KINDS)

    def host_pids(self) -> dict[int, int]:
        """Pid inside to pid outside, of every process in the pid namespace."""
        found = {}
        for pid in self._members(("pid",)):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                numbers = status.partition("NSpid:")[2].partition("\n")[0].split()
                found[int(numbers[-1])] = pid
        return found

    def close(self) -> None:
        """Let the namespaces go."""
        while self._held:
            os.close(self._held.pop())

    def _members(self, kinds: Sequence[str]) -> list[int]:
        members = []
        for name in os.listdir("/proc"):  # noqa: PTH208
            with contextlib.suppress(OSError):
                if name.isdigit() and any(
                    os.stat(f"/proc/{name}/ns/{kind}").st_ino == self._inodes[kind]  # noqa: PTH116 - hundreds of them
                    for kind in kinds
                ):
                    members.append(int(name))
        return members


def command_line(pid: int) -> str:
    """The command line of a process, for messages."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:200]
    except OSError:
        return "ended meanwhile"
