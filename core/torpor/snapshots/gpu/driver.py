"""The NVIDIA GPUs of this machine: what they are, how much of their memory is free, and who holds it.

Asked of NVML (`libnvidia-ml.so.1`) through ctypes, which needs no process of its own; where the library is missing, of
`nvidia-smi`. Neither makes a CUDA context. Signatures and structures were read from `nvidia-ml-py` 13.615 (`pynvml.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.snapshots.store.gpu_state import Gpu

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

__all__ = ["LIBRARIES_VARIABLE", "Driver", "GpuUse", "full_gpus", "library_candidates", "load_library", "look"]

LIBRARIES_VARIABLE = "TORPOR_NVIDIA_LIBRARIES"
"""A folder with the driver's libraries (libcuda.so.1, libnvidia-ml.so.1), for a machine whose loader does not know it."""

_MIB = 1 << 20
_USUAL_FOLDERS = ("/usr/local/nvidia/lib64", "/run/opengl-driver/lib", "/usr/lib/wsl/lib")
_SMI_TIMEOUT_S = 20.0
_TEXT_BYTES = 96
_INSUFFICIENT_SIZE = 7  # NVML_ERROR_INSUFFICIENT_SIZE
_NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE
_SMI_GPU = "uuid,name,memory.total,compute_cap,memory.used,memory.free,driver_version"
_SMI_PROCESS = "gpu_uuid,pid,used_memory"


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """A GPU and its memory now.

    Attributes:
        gpu: what it is.
        used_bytes: in use, by whomever.
        free_bytes: free.
        held_bytes: by pid as this machine counts them, what each process with a CUDA context holds; 0 where the driver does
            not say.
    """

    gpu: Gpu
    used_bytes: int
    free_bytes: int
    held_bytes: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What the driver says.

    Attributes:
        version: e.g. `580.159.04`; empty when there is no driver.
        uses: every GPU, in the driver's order.
        against: why nobody could be asked; empty when somebody could.
    """

    version: str
    uses: tuple[GpuUse, ...]
    against: str = ""

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """What the GPUs are."""
        return tuple(use.gpu for use in self.uses)

    @property
    def major(self) -> int:
        """The first number of the version; 0 when there is none."""
        first = self.version.partition(".")[0]
        return int(first) if first.isdigit() else 0

    def held_by(self, pids: Collection[int]) -> dict[str, int]:
        """By UUID, the bytes that these processes hold on each GPU where the driver lists one of them."""
        held: dict[str, int] = {}
        for use in self.uses:
            if found := [size for pid, size in use.held_bytes.items() if pid in pids]:
                held[use.gpu.uuid] = sum(found)
        return held


def look() -> Driver:
    """Ask NVML, else `nvidia-smi`; a machine without a driver has version "" and no GPUs."""
    try:
        return _ask_nvml()
    except OSError as error:
        against = str(error)
    try:
        return _ask_smi()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Driver(version="", uses=(), against=f"NVML: {against}; nvidia-smi: {error}")


def full_gpus(needed: Mapping[str, int], driver: Driver, *, copies: int = 1) -> Iterator[str]:
    """Why there is too little free GPU memory for copies of a snapshot, each as a sentence.

    It matters before anything is touched: a process whose restore ran out of GPU memory cannot be restored a second time
    (seen by others on drivers 580 and 595: NVIDIA/cuda-checkpoint issue 44).

    Args:
        needed: bytes for one copy, by UUID.
        driver: what `look` gave.
        copies: how many.
    """
    for use in driver.uses:
        wanted = needed.get(use.gpu.uuid, 0) * copies
        if use.free_bytes < wanted:
            holders = ", ".join(f"pid {pid} {size // _MIB} MiB" for pid, size in use.held_bytes.items())
            yield (
                f"GPU {use.gpu.uuid} ({use.gpu.name}) has {use.free_bytes // _MIB} MiB free and "
                f"{wanted // _MIB} MiB are needed" + (f"; held by {holders}" if holders else "")
            )


def library_candidates(name: str) -> tuple[str, ...]:
    """How to name one of the driver's libraries to the loader, in the order to be tried: bare, then where it usually lies."""
    if chosen := os.environ.get(LIBRARIES_VARIABLE):
        return (str(Path(chosen, name)),)
    return (name, *(str(Path(folder, name)) for folder in _USUAL_FOLDERS))


def load_library(name: str) -> ctypes.CDLL:
    """One of the driver's libraries.

    Raises:
        OSError: it is nowhere; the loader's first reason, and the places that were tried.
    """
    candidates = library_candidates(name)
    reasons = []
    for candidate in candidates:
        try:
            return ctypes.CDLL(candidate)
        except OSError as error:
            reasons.append(str(error))
    raise OSError(f"{reasons[0]} (tried: {', '.join(candidates)})")


class _Memory(ctypes.Structure):
    """`nvmlMemory_t`: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Process(ctypes.Structure):
    """`nvmlProcessInfo_t` of the calls ending in `_v3`."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used_bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _Nvml:
    """The library, initialised, with its error codes as OSError."""

    def __init__(self) -> None:
        self._library = load_library("libnvidia-ml.so.1")
        self.call("nvmlInit_v2")

    def call(self, name: str, *arguments: object, accepted: tuple[int, ...] = (0,)) -> int:
        try:
            function = self._library[name]
        except AttributeError:
            raise OSError(f"{name} is missing in libnvidia-ml.so.1: the driver is too old") from None
        function.restype = ctypes.c_int
        code = int(function(*arguments))
        if code not in accepted:
            raise OSError(f"{name} failed: {self._error_text(code)}")
        return code

    def text(self, name: str, *before: object) -> str:
        buffer = ctypes.create_string_buffer(_TEXT_BYTES)
        self.call(name, *before, buffer, ctypes.c_uint(_TEXT_BYTES))
        return buffer.value.decode(errors="replace")

    def _error_text(self, code: int) -> str:
        with contextlib.suppress(AttributeError):
            function = self._library["nvmlErrorString"]
            function.restype = ctypes.c_char_p
            return f"{function(code).decode(errors='replace')} ({code})"
        return f"code {code}"


def _ask_nvml() -> Driver:
    """Ask NVML.

    Raises:
        OSError: it is not there, or refused.
    """
    nvml = _opened(library_candidates("libnvidia-ml.so.1"))
    count = ctypes.c_uint()
    nvml.call("nvmlDeviceGetCount_v2", ctypes.byref(count))
    return Driver(
        version=nvml.text("nvmlSystemGetDriverVersion"),
        uses=tuple(_nvml_use(nvml, number) for number in range(count.value)),
    )


@functools.cache
def _opened(_candidates: tuple[str, ...]) -> _Nvml:
    """The library, once; it stays open as long as this process lives.

    Without persistence mode a GPU that nobody has open goes to rest, and whoever comes next waits until it is up again.
    """
    return _Nvml()


def _nvml_use(nvml: _Nvml, number: int) -> GpuUse:
    device = ctypes.c_void_p()
    nvml.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(number), ctypes.byref(device))
    memory, major, minor = _Memory(), ctypes.c_int(), ctypes.c_int()
    nvml.call("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
    nvml.call("nvmlDeviceGetCudaComputeCapability", device, ctypes.byref(major), ctypes.byref(minor))
    return GpuUse(
        gpu=Gpu(
            uuid=nvml.text("nvmlDeviceGetUUID", device),
            name=nvml.text("nvmlDeviceGetName", device),
            memory_mib=memory.total // _MIB,
            compute_capability=f"{major.value}.{minor.value}",
        ),
        used_bytes=memory.used,
        free_bytes=memory.free,
        held_bytes=_nvml_holders(nvml, device),
    )


def _nvml_holders(nvml: _Nvml, device: ctypes.c_void_p) -> dict[int, int]:
    name, accepted = "nvmlDeviceGetComputeRunningProcesses_v3", (0, _INSUFFICIENT_SIZE)
    count, listed = ctypes.c_uint(0), (_Process * 0)()
    try:
        while nvml.call(name, device, ctypes.byref(count), listed if listed else None, accepted=accepted):
            count.value = count.value * 2 + 8  # more may start meanwhile
            listed = (_Process * count.value)()
    except OSError:  # a driver that does not tell (old, or divided by MIG)
        return {}
    return {one.pid: 0 if one.used_bytes == _NOT_AVAILABLE else one.used_bytes for one in listed[: count.value]}


def _ask_smi() -> Driver:
    """Ask `nvidia-smi`.

    Raises:
        OSError: it is not there.
        ValueError: it said something else than it was asked for.
        SubprocessError: it failed.
    """
    if shutil.which("nvidia-smi") is None:
        raise FileNotFoundError("there is none on PATH")
    held: dict[str, dict[int, int]] = {}
    for uuid, pid, size in _smi_rows("compute-apps", _SMI_PROCESS):
        held.setdefault(uuid, {})[int(pid)] = int(size) * _MIB if size.isdigit() else 0
    uses, versions = [], [""]
    for uuid, name, total, capability, used, free, version in _smi_rows("gpu", _SMI_GPU):
        gpu = Gpu(uuid=uuid, name=name, memory_mib=int(total), compute_capability=capability)
        holders = held.get(uuid, {})
        uses.append(GpuUse(gpu=gpu, used_bytes=int(used) * _MIB, free_bytes=int(free) * _MIB, held_bytes=holders))
        versions.append(version)
    return Driver(version=versions[-1], uses=tuple(uses))


def _smi_rows(what: str, columns: str) -> Iterator[Sequence[str]]:
    argv = ["nvidia-smi", f"--query-{what}={columns}", "--format=csv,noheader,nounits"]
    from torpor.engine.child_process import run_child  # noqa: PLC0415 - NVML answers first

    listed = run_child(argv, timeout_s=_SMI_TIMEOUT_S)
    if listed.returncode != 0:
        said = (listed.stdout + listed.stderr).decode(errors="replace").strip()
        raise ValueError(f"{' '.join(argv)} gave code {listed.returncode}: {said}")
    for line in filter(str.strip, listed.stdout.decode(errors="replace").splitlines()):
        row = [word.strip() for word in line.split(",")]
        if len(row) != len(columns.split(",")):
            raise ValueError(f"{' '.join(argv)} said {line!r}")
        yield row
