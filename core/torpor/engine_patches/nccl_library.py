"""NCCL's own calls that let go of a communicator's memory and take it back, in the library that this process has loaded.

`ncclCommSuspend` unmaps the memory of the other GPUs and frees the communicator's buffers, but keeps their addresses, so that
captured CUDA graphs stay valid; `ncclCommResume` maps them again (NCCL 2.30.7: nccl.h, mem_manager.cc). Both are collective:
each waits for every rank of the communicator.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import NamedTuple

from torpor.engine_patches.nccl_versions import nccl_of_code
from torpor.errors import GpuSnapshotError

__all__ = ["MemoryStats", "NcclLibrary", "loaded_nccl"]

_SUSPEND_MEMORY = 1  # NCCL_SUSPEND_MEM
_HAS_CALLS = ("ncclCommSuspend", "ncclCommResume", "ncclCommMemStats")
_TORCH = re.compile(r"libtorch_cuda\.so")
_NCCL = re.compile(r"libnccl\.so[0-9.]*$")
_MAPS = Path("/proc/self/maps")


class MemoryStats(NamedTuple):
    """What `ncclCommMemStats` tells about one communicator on this GPU.

    Args:
        suspendable: bytes that a suspend frees; 0 if NCCL took its memory without cuMem (NCCL_CUMEM_ENABLE=0).
        suspended: 1 while the communicator is suspended, otherwise 0.
        stays: bytes that a suspend does not free.
        total: both together.
    """

    suspendable: int
    suspended: int
    stays: int
    total: int


class NcclLibrary:
    """NCCL as this process has loaded it.

    Args:
        library: its handle. Calls through it release the interpreter, so a deadline can hold while one of them waits.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.name = str(library._name)  # noqa: SLF001 - ctypes has no other place for it

    def version(self) -> tuple[int, int, int]:
        """NCCL's version."""
        number = ctypes.c_int()
        self._call("ncclGetVersion", ctypes.byref(number))
        return nccl_of_code(number.value)

    def can_suspend(self) -> bool:
        """Whether the library has the calls. RCCL, and NCCL before 2.29.7, lack them."""
        return all(hasattr(self._library, name) for name in _HAS_CALLS)

    def suspend(self, communicator: int) -> None:
        """Free the communicator's memory; waits for its other ranks.

        Raises:
            GpuSnapshotError: NCCL refused.
        """
        self._call("ncclCommSuspend", ctypes.c_void_p(communicator), ctypes.c_int(_SUSPEND_MEMORY))

    def resume(self, communicator: int) -> None:
        """Take the memory back; waits for the other ranks.

        Raises:
            GpuSnapshotError: NCCL refused.
        """
        self._call("ncclCommResume", ctypes.c_void_p(communicator))

    def stats(self, communicator: int) -> MemoryStats:
        """The communicator's memory on this GPU."""
        values = []
        for kind in range(len(MemoryStats._fields)):
            value = ctypes.c_uint64()
            self._call("ncclCommMemStats", ctypes.c_void_p(communicator), ctypes.c_int(kind), ctypes.byref(value))
            values.append(value.value)
        return MemoryStats(*values)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            text = self._library.ncclGetErrorString
            text.restype = ctypes.c_char_p
            said = (text(code) or b"unknown error").decode(errors="replace")
            raise GpuSnapshotError(
                f"{name} gave {code} ({said}); NCCL_DEBUG=WARN in the engine's environment says more"
            )


def loaded_nccl(maps: Path = _MAPS) -> NcclLibrary:
    """The NCCL that torch uses in this process.

    It is looked up where it is mapped. Loaded by name it could be another file, which knows none of the communicators.

    Args:
        maps: the process's memory map (proc_pid_maps(5)).

    Raises:
        GpuSnapshotError: none is loaded, or its file was replaced while it is in use.
    """
    paths = sorted({line.split(maxsplit=5)[5].strip() for line in maps.read_text().splitlines() if "/" in line})
    files = [path for path in paths if _NCCL.search(path.removesuffix(" (deleted)"))]
    if gone := [path for path in files if path.endswith(" (deleted)")]:
        raise GpuSnapshotError(f"{gone[0]}: NCCL's file was replaced while the engine runs; start the engine again")
    if len(files) == 1:
        return NcclLibrary(ctypes.CDLL(files[0]))
    for path in paths:
        if _TORCH.search(path):
            return NcclLibrary(ctypes.CDLL(path))  # looks through what it depends on, so it finds its own
    raise GpuSnapshotError(
        f"{len(files)} files of NCCL are loaded ({', '.join(files) or 'none'}), and torch's is not among them"
    )
