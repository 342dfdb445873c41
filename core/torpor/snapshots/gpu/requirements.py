"""What prevents GPU snapshots on this machine, independent of the deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.snapshots.criu.probe import Reason
from torpor.snapshots.gpu.driver import Driver, load_library, look
from torpor.snapshots.store.paths import LIBRARIES_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.snapshots.store.manifest import Mode

__all__ = ["LEAST_DRIVER", "against_gpu"]

LEAST_DRIVER = 570
"""The first driver that has the checkpoint functions in libcuda and closes NVML's files (NVIDIA/cuda-checkpoint, README)."""

_STANDBY = "the standby backend needs none of this (--backend standby)"
_FUNCTIONS = tuple(f"cuCheckpointProcess{what}" for what in ("GetState", "Lock", "Checkpoint", "Restore", "Unlock"))


def against_gpu(mode: Mode | None = None, driver: Driver | None = None) -> tuple[Reason, ...]:
    """Why GPU snapshots cannot be captured or restored here, as far as the GPU matters; empty when they can.

    Args:
        mode: the mode that was asked for.
        driver: from `torpor.snapshots.gpu.driver.look`, which is called by default.
    """
    return tuple(_against(mode, driver or look()))


def _against(mode: Mode | None, driver: Driver) -> Iterator[Reason]:
    if mode == "rootless":
        yield Reason(
            code="gpu_rootless",
            seen="rootless snapshots of a deployment with a GPU are untried",
            cure=f"run as root and leave --mode out, or say root; {_STANDBY}",
        )
    if not driver.version:
        yield Reason(
            code="gpu_driver",
            seen=f"no NVIDIA driver answers ({driver.against or 'it has no version'})",
            cure=f"install driver {LEAST_DRIVER} or newer; if it is installed but the loader does not know its libraries, name "
            f"their folder in {LIBRARIES_VARIABLE}; {_STANDBY}",
        )
        return
    if driver.major < LEAST_DRIVER:
        yield Reason(
            code="gpu_driver_old",
            seen=f"the NVIDIA driver is {driver.version}",
            cure=f"update it to {LEAST_DRIVER} or newer; {_STANDBY}",
        )
    elif not driver.uses:
        yield Reason(code="gpu_missing", seen="the NVIDIA driver lists no GPU", cure=f"use another machine; {_STANDBY}")
    yield from _against_libcuda()


def _against_libcuda() -> Iterator[Reason]:
    try:
        library = load_library("libcuda.so.1")
    except OSError as error:
        yield Reason(
            code="libcuda_missing",
            seen=f"libcuda cannot be loaded: {error}",
            cure=f"install the driver's CUDA library, or name its folder in {LIBRARIES_VARIABLE}; {_STANDBY}",
        )
        return
    if missing := [name for name in _FUNCTIONS if not hasattr(library, name)]:
        yield Reason(
            code="libcuda_old",
            seen=f"libcuda lacks {', '.join(missing)}",
            cure=f"update the driver to {LEAST_DRIVER} or newer; {_STANDBY}",
        )
