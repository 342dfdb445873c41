"""The processes of a sandbox that hold device files of the NVIDIA driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.snapshots.before_capture.external_resources import open_paths
from torpor.snapshots.sandbox.namespaces import command_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.snapshots.sandbox.sandbox import Sandbox

__all__ = ["DEVICES", "Holder", "holders", "named"]

DEVICES = ("/dev/nvidia",)
"""How the paths of the driver's device files begin: nvidia0, nvidiactl, nvidia-uvm, nvidia-caps/..."""

_SHOWN = 8
_COMMAND_CHARACTERS = 120


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that holds device files of the driver, open or mapped.

    Attributes:
        pid: inside the sandbox.
        host_pid: as this process sees it.
        command: its command line.
        files: the device files.
    """

    pid: int
    host_pid: int
    command: str
    files: tuple[str, ...]

    @property
    def shown_files(self) -> str:
        """Some of the files, for messages."""
        return ", ".join(self.files[:_SHOWN])


def holders(sandbox: Sandbox, devices: Sequence[str] = DEVICES) -> tuple[Holder, ...]:
    """The processes of a tree that hold device files of the driver, in the order of their pids.

    Args:
        sandbox: with the tree.
        devices: how the files' paths begin.
    """
    found = []
    for inside, outside in sorted(sandbox.host_pids().items()):
        files = tuple(sorted({path for path in open_paths(outside) if path.startswith(tuple(devices))}))
        if files and inside != 1:
            command = command_line(outside)[:_COMMAND_CHARACTERS]
            found.append(Holder(pid=inside, host_pid=outside, command=command, files=files))
    return tuple(found)


def named(left: Sequence[Holder]) -> str:
    """Some of these processes with their files, one per line, for messages."""
    return "\n".join(f"  - pid {one.pid} ({one.command}): {one.shown_files}" for one in left[:_SHOWN])
