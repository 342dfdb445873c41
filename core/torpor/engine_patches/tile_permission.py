"""Asks anew for the CPU's tile registers: a process that CRIU restored has lost the permission.

Linux lets a process use AMX only after it asked (arch_prctl(2), ARCH_REQ_XCOMP_PERM; Documentation/arch/x86/xstate.rst).
The permission belongs to the process, CRIU 4.2.1 does not carry it over, and the first matrix product of torch's oneDNN
then ends a restored scheduler with SIGILL (seen on a Xeon with amx_tile, SGLang 0.5.23, bfloat16).
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

__all__ = ["TilePermission", "ensure_tile_permission", "has_permission", "has_tiles", "request_permission"]

_SYS_ARCH_PRCTL = 158
_GET, _REQUEST = 0x1022, 0x1023  # ARCH_GET_XCOMP_PERM, ARCH_REQ_XCOMP_PERM (asm/prctl.h)
_TILE_DATA = 18  # XFEATURE_XTILEDATA


def has_permission() -> bool:
    """Whether this process may use the tile registers."""
    allowed = ctypes.c_uint64()
    return _arch_prctl(_GET, ctypes.byref(allowed)) == 0 and bool(allowed.value >> _TILE_DATA & 1)


def request_permission() -> None:
    """Ask for the tile registers, for every thread of this process.

    Raises:
        OSError: the kernel refuses, e.g. because a signal stack is too small for them.
    """
    if _arch_prctl(_REQUEST, ctypes.c_ulong(_TILE_DATA)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"the kernel does not allow the CPU's tile registers (AMX): {os.strerror(code)}")


def ensure_tile_permission() -> None:
    """Ask for the tile registers if the processor has them and this process may not use them.

    Raises:
        OSError: the kernel refuses.
    """
    if has_tiles() and not has_permission():
        request_permission()


class TilePermission:
    """Whether this process had it when it went to sleep; only then it is asked for anew."""

    def __init__(self) -> None:
        self._had = False

    def note(self) -> None:
        """Call it before the sleep."""
        self._had = has_permission()

    def renew(self) -> None:
        """Call it before anything is computed after the wake."""
        if self._had and not has_permission():
            request_permission()


def _arch_prctl(option: int, argument: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(ctypes.c_long(_SYS_ARCH_PRCTL), ctypes.c_int(option), argument))


def has_tiles() -> bool:
    """Whether the processor has the tile registers."""
    if platform.machine() != "x86_64":
        return False
    with Path("/proc/cpuinfo").open() as stream:
        flags = next((line for line in stream if line.startswith("flags")), "")
    return "amx_tile" in flags.split()
