"""Requests the CPU's tile registers (AMX) again: a restored process has lost the permission.

Linux lets a process use AMX only on request (arch_prctl(2), ARCH_REQ_XCOMP_PERM; Documentation/arch/x86/xstate.rst). The
permission belongs to the process, and CRIU 4.2.1 does not restore it. The first matrix product of torch's oneDNN then ends a
restored scheduler with SIGILL (seen on a Xeon with amx_tile, SGLang 0.5.23, bfloat16).
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
    """Request the tile registers for every thread of this process.

    Raises:
        OSError: the kernel refuses, e.g. because a signal stack is too small for them.
    """
    if _arch_prctl(_REQUEST, ctypes.c_ulong(_TILE_DATA)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"the kernel does not allow the CPU's tile registers (AMX): {os.strerror(code)}")


def ensure_tile_permission() -> None:
    """Request the tile registers if the processor has them and this process may not use them.

    Raises:
        OSError: the kernel refuses.
    """
    if has_tiles() and not has_permission():
        request_permission()


class TilePermission:
    """Remembers whether this process had the permission before the sleep, and requests it again only then."""

    def __init__(self) -> None:
        self._had = False

    def note(self) -> None:
        """Note the permission; call it before the sleep."""
        self._had = has_permission()

    def renew(self) -> None:
        """Request the permission if it was lost; call it after the wake, before any computation."""
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
