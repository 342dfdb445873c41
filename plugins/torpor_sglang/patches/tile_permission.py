"""Asks anew for the CPU's tile registers when memory is resumed: a process that CRIU restored has lost the permission.

Linux lets a process use AMX only after it asked (arch_prctl(2), ARCH_REQ_XCOMP_PERM; Documentation/arch/x86/xstate.rst).
The permission belongs to the process, CRIU 4.2.1 does not carry it over, and the first matrix product of torch's oneDNN
then ends a restored scheduler with SIGILL (seen on a Xeon with amx_tile, SGLang 0.5.23, bfloat16).
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from torpor_sglang.patches import Patch
from torpor_sglang.patches.handlers import RELEASE, RESUME, around_handler

__all__ = ["PATCH", "has_permission", "request_permission"]

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


class _Permission:
    """Whether the scheduler had it when it went to sleep."""

    def __init__(self) -> None:
        self._had = False

    def note(self) -> None:
        self._had = has_permission()

    def renew(self) -> None:
        if self._had and not has_permission():
            request_permission()


def _arch_prctl(option: int, argument: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(ctypes.c_long(_SYS_ARCH_PRCTL), ctypes.c_int(option), argument))


def _has_tiles() -> bool:
    if platform.machine() != "x86_64":
        return False
    with Path("/proc/cpuinfo").open() as stream:
        flags = next((line for line in stream if line.startswith("flags")), "")
    return "amx_tile" in flags.split()


def _apply() -> None:
    permission = _Permission()
    around_handler(RELEASE, before=permission.note)
    around_handler(RESUME, before=permission.renew)


PATCH = Patch(
    name="tile-permission",
    reason=(
        "a process that CRIU restored may no longer use AMX, which torch chose when it started: its first matrix product "
        "would end the scheduler with SIGILL"
    ),
    versions=("0.5.16", "0.5.23"),
    applies=_has_tiles,
    apply=_apply,
)
