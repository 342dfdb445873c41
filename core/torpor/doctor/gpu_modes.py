"""What of this machine's GPUs and driver no checkpoint covers: divided GPUs, a shared CUDA context, moves before driver 580."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.snapshots.gpu.placement import FIRST_MOVING_DRIVER
from torpor.snapshots.gpu.requirements import LEAST_DRIVER
from torpor.values.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.gpu.driver import Driver
    from torpor.values.findings import Level

__all__ = ["mode_findings"]

_PROC = Path("/proc")
_MPS = "nvidia-cuda-mps"  # the kernel keeps 15 characters of nvidia-cuda-mps-control and nvidia-cuda-mps-server


def mode_findings(driver: Driver, bad: Level, *, proc: Path = _PROC) -> Iterator[Finding]:
    """What the driver cannot checkpoint, and what it cannot do with a snapshot on a machine of several GPUs.

    Managed (UVM) memory is not seen from outside: a capture finds it.

    Args:
        driver: of the GPUs.
        bad: the level of what prevents a snapshot.
        proc: the kernel's table of processes (proc(5)).
    """
    if divided := [use.gpu.uuid for use in driver.uses if use.mig]:
        yield Finding(
            level=bad,
            what="MIG",
            seen=f"{', '.join(divided)} {'is' if len(divided) == 1 else 'are'} in MIG mode, which the driver cannot checkpoint",
            cure="switch it off (nvidia-smi -mig 0), or use the standby backend (--backend standby)",
        )
    if pids := list(_mps(proc)):
        yield Finding(
            level=bad,
            what="MPS",
            seen=f"the Multi-Process Service runs (pid {', '.join(map(str, pids))}): the driver cannot checkpoint its clients",
            cure="end it (echo quit | nvidia-cuda-mps-control), or use the standby backend (--backend standby)",
        )
    if len(driver.uses) > 1 and LEAST_DRIVER <= driver.major < FIRST_MOVING_DRIVER:
        yield Finding(
            level="ok",
            what="other GPUs",
            seen=f"driver {driver.version} restores a replica only onto the GPU of its capture",
            cure=f"for --gpus, and for replicas on each of {len(driver.uses)} GPUs, update it to {FIRST_MOVING_DRIVER} or newer",
        )


def _mps(proc: Path) -> Iterator[int]:
    for file in proc.glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # the process has ended
            if file.read_text().strip() == _MPS:
                yield int(file.parent.name)
