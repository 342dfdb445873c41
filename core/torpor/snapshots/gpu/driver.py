"""The NVIDIA GPUs of this machine: what they are, how much of their memory is free, and which processes hold it.

It asks NVML (`libnvidia-ml.so.1`, through `pynvml`), which needs no process; without the library it asks `nvidia-smi`. Neither
creates a CUDA context.
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
from typing import TYPE_CHECKING, Protocol, cast

from torpor.snapshots.store.gpu_state import Gpu, driver_major
from torpor.snapshots.store.paths import LIBRARIES_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

__all__ = ["Driver", "GpuUse", "library_candidates", "load_library", "look"]

_MIB = 1 << 20
_USUAL_FOLDERS = ("/usr/local/nvidia/lib64", "/run/opengl-driver/lib", "/usr/lib/wsl/lib")
_SMI_TIMEOUT_S = 20.0
_SMI_GPU = "uuid,name,memory.total,compute_cap,memory.used,memory.free,driver_version"
_SMI_PROCESS = "gpu_uuid,pid,used_memory"


@dataclass(frozen=True, kw_only=True)
class GpuUse:
    """A GPU and its memory now.

    Attributes:
        gpu: what it is.
        used_bytes: in use by any process.
        free_bytes: free.
        held_bytes: by host pid, the bytes of each process with a CUDA context; 0 where the driver does not tell.
        reserved_bytes: by host pid, what starts of other commands of this user are about to take; see
            `torpor.snapshots.gpu.claims`.
        mig: whether it is divided into instances (MIG); False where the driver does not tell.
    """

    gpu: Gpu
    used_bytes: int
    free_bytes: int
    held_bytes: Mapping[int, int] = field(default_factory=dict)
    reserved_bytes: Mapping[int, int] = field(default_factory=dict)
    mig: bool = False

    @property
    def room_bytes(self) -> int:
        """Free, and not about to be taken."""
        return max(0, self.free_bytes - sum(self.reserved_bytes.values()))


@dataclass(frozen=True, kw_only=True)
class Driver:
    """What the driver says.

    Attributes:
        version: e.g. `580.159.04`; empty when there is no driver.
        uses: every GPU, in the driver's order.
        against: why neither NVML nor nvidia-smi answered; empty when one did.
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
        return driver_major(self.version)

    def held_by(self, pids: Collection[int]) -> dict[str, int]:
        """Bytes that these processes hold, by UUID of the GPU; only GPUs for which the driver lists one of them."""
        held: dict[str, int] = {}
        for use in self.uses:
            if found := [size for pid, size in use.held_bytes.items() if pid in pids]:
                held[use.gpu.uuid] = sum(found)
        return held

    def gpus_of(self, pid: int) -> tuple[str, ...]:
        """UUIDs of the GPUs for which the driver lists this process."""
        return tuple(use.gpu.uuid for use in self.uses if pid in use.held_bytes)


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


def library_candidates(name: str) -> tuple[str, ...]:
    """Names under which to load one of the driver's libraries, in order: its bare name, then the usual folders."""
    if chosen := os.environ.get(LIBRARIES_VARIABLE):
        return (str(Path(chosen, name)),)
    return (name, *(str(Path(folder, name)) for folder in _USUAL_FOLDERS))


def load_library(name: str) -> ctypes.CDLL:
    """Load one of the driver's libraries.

    Raises:
        OSError: none could be loaded; has the loader's first reason and the names tried.
    """
    candidates = library_candidates(name)
    reasons = []
    for candidate in candidates:
        try:
            return ctypes.CDLL(candidate)
        except OSError as error:
            reasons.append(str(error))
    raise OSError(f"{reasons[0]} (tried: {', '.join(candidates)})")


class _Memory(Protocol):
    """Bytes."""

    total: int
    free: int
    used: int


class _Process(Protocol):
    """A process with a CUDA context; `usedGpuMemory` is None where the driver does not tell."""

    pid: int
    usedGpuMemory: int | None  # noqa: N815 - NVML's name


class _Device(Protocol):
    """NVML's handle of a GPU."""


class _Pynvml(Protocol):
    """What is used of the module `pynvml` (package nvidia-ml-py), which has no type annotations."""

    NVMLError: type[Exception]
    NVMLError_FunctionNotFound: type[Exception]
    nvmlLib: ctypes.CDLL  # noqa: N815 - its name

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's names
    def nvmlSystemGetDriverVersion(self) -> str: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> _Device: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, device: _Device) -> str: ...  # noqa: N802
    def nvmlDeviceGetName(self, device: _Device) -> str: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, device: _Device) -> _Memory: ...  # noqa: N802
    def nvmlDeviceGetCudaComputeCapability(self, device: _Device) -> tuple[int, int]: ...  # noqa: N802
    def nvmlDeviceGetMigMode(self, device: _Device) -> list[int]: ...  # noqa: N802
    def nvmlDeviceGetComputeRunningProcesses_v3(self, device: _Device) -> list[_Process]: ...  # noqa: N802


def _ask_nvml() -> Driver:
    """Ask NVML.

    Raises:
        OSError: the library is missing, or a call failed.
    """
    nvml = _initialised(library_candidates("libnvidia-ml.so.1"))
    with _told_as_os_error(nvml):
        count = nvml.nvmlDeviceGetCount()
        return Driver(
            version=nvml.nvmlSystemGetDriverVersion(),
            uses=tuple(_nvml_use(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)),
        )


@functools.cache
def _initialised(_candidates: tuple[str, ...]) -> _Pynvml:
    """`pynvml` with the library loaded and initialised, once per process; NVML stays initialised until the process ends.

    Without persistence mode a GPU that no process has open goes to rest, and the next process waits until it is up again.
    """
    library = load_library("libnvidia-ml.so.1")
    import pynvml  # noqa: PLC0415 - pynvml: 68 ms on the host of an H200, which only such a machine pays

    nvml = cast("_Pynvml", pynvml)
    nvml.nvmlLib = library  # `nvmlInit` would look for it only where the loader does
    with _told_as_os_error(nvml):
        nvml.nvmlInit()
    return nvml


@contextlib.contextmanager
def _told_as_os_error(nvml: _Pynvml) -> Iterator[None]:
    try:
        yield
    except nvml.NVMLError_FunctionNotFound as error:
        missing = error.__context__ or error  # the loader's error names library and function
        raise OSError(f"libnvidia-ml.so.1 lacks a function, so the driver is too old ({missing})") from error
    except nvml.NVMLError as error:
        raise OSError(f"NVML failed: {error}") from error


def _nvml_use(nvml: _Pynvml, device: _Device) -> GpuUse:
    memory = nvml.nvmlDeviceGetMemoryInfo(device)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(device)
    return GpuUse(
        gpu=Gpu(
            uuid=nvml.nvmlDeviceGetUUID(device),
            name=nvml.nvmlDeviceGetName(device),
            memory_mib=memory.total // _MIB,
            compute_capability=f"{major}.{minor}",
        ),
        used_bytes=memory.used,
        free_bytes=memory.free,
        held_bytes=_nvml_holders(nvml, device),
        mig=_nvml_mig(nvml, device),
    )


def _nvml_mig(nvml: _Pynvml, device: _Device) -> bool:
    try:
        return nvml.nvmlDeviceGetMigMode(device)[0] == 1  # of the current and the pending mode; NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:  # a GPU that has no such mode
        return False


def _nvml_holders(nvml: _Pynvml, device: _Device) -> dict[int, int]:
    try:
        listed = nvml.nvmlDeviceGetComputeRunningProcesses_v3(device)
    except nvml.NVMLError:  # a driver that does not tell (old, or with MIG)
        return {}
    return {one.pid: one.usedGpuMemory or 0 for one in listed}


def _ask_smi() -> Driver:
    """Ask `nvidia-smi`.

    Raises:
        OSError: there is no nvidia-smi.
        ValueError: its output is not what was asked for.
        SubprocessError: it did not finish in time.
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
    from torpor.engine.child_process import run_child  # noqa: PLC0415 - child_process: 5 ms; NVML mostly answers

    listed = run_child(argv, timeout_s=_SMI_TIMEOUT_S)
    if listed.returncode != 0:
        said = (listed.stdout + listed.stderr).decode(errors="replace").strip()
        raise ValueError(f"{' '.join(argv)} gave code {listed.returncode}: {said}")
    for line in filter(str.strip, listed.stdout.decode(errors="replace").splitlines()):
        row = [word.strip() for word in line.split(",")]
        if len(row) != len(columns.split(",")):
            raise ValueError(f"{' '.join(argv)} said {line!r}")
        yield row
