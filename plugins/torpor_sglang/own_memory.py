"""How much memory this process has on its GPU, by the driver: NVML tells it for each process.

The free memory of a whole card also changes with what other processes do. NVML names a process by the pid of its own view: in a
container or a sandbox that may be none of this process's pids, and then there is no figure, but a reason.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["OwnMemory", "own_memory", "own_pids"]


class OwnMemory(NamedTuple):
    """What the driver tells.

    Attributes:
        used: bytes of this process on its GPU; None if the driver does not tell.
        why: why there is no figure; empty if there is one.
    """

    used: int | None
    why: str = ""


class _Process(Protocol):
    pid: int
    usedGpuMemory: int | None  # noqa: N815 - NVML's name


class _Nvml(Protocol):
    """What is used of the module `pynvml` (package nvidia-ml-py, which SGLang depends on)."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802 - NVML's names
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object: ...  # noqa: N802
    def nvmlDeviceGetComputeRunningProcesses_v3(self, device: object) -> Sequence[_Process]: ...  # noqa: N802


def own_memory(uuid: str, *, nvml: _Nvml | None = None, pids: Iterable[int] | None = None) -> OwnMemory:
    """Ask the driver. NVML is shut down again: nothing of it may be in a snapshot.

    Args:
        uuid: of this process's GPU, as NVML has it (`GPU-...`).
        nvml: in place of `pynvml`.
        pids: what this process is called, in place of `own_pids`.
    """
    try:
        library = nvml or _pynvml()
        library.nvmlInit()
    except (ImportError, OSError) as error:
        return OwnMemory(None, f"NVML cannot be asked: {error}")
    except Exception as error:  # its own kind, whose name is in the module that could not be loaded
        return OwnMemory(None, f"NVML failed: {error}")
    try:
        device = library.nvmlDeviceGetHandleByUUID(uuid)
        listed = library.nvmlDeviceGetComputeRunningProcesses_v3(device)
    except (library.NVMLError, AttributeError) as error:  # an older pynvml lacks the function
        return OwnMemory(None, f"NVML failed: {error}")
    finally:
        with contextlib.suppress(library.NVMLError):
            library.nvmlShutdown()
    return _found(listed, set(own_pids() if pids is None else pids))


def _found(listed: Sequence[_Process], mine: set[int]) -> OwnMemory:
    own = [one for one in listed if one.pid in mine]
    if len(own) != 1:
        seen = ", ".join(str(one.pid) for one in listed) or "none"
        return OwnMemory(
            None, f"the driver lists the processes {seen}, and this one is {', '.join(map(str, sorted(mine)))}"
        )
    if not own[0].usedGpuMemory:
        return OwnMemory(None, "the driver does not tell what each process uses")
    return OwnMemory(own[0].usedGpuMemory)


def own_pids() -> tuple[int, ...]:
    """This process's pids in every pid namespace that its /proc shows (`NSpid`, Linux 4.1)."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")  # a name may hold anything
    except OSError:
        return (os.getpid(),)
    lines = (line.split()[1:] for line in text.splitlines() if line.startswith("NSpid:"))
    return tuple(map(int, next(lines, [str(os.getpid())])))


def _pynvml() -> _Nvml:
    import pynvml  # noqa: PLC0415 - pynvml: 68 ms on the host of an H200, which only a sleeping engine pays

    return cast("_Nvml", pynvml)
