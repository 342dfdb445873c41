"""The part of a manifest about GPUs, and how the GPUs of two machines are compared.

It imports nothing: a restore reads a manifest before it imports anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torpor.snapshots.store.fields import Fields

__all__ = ["Gpu", "GpuPart", "GpuProcess", "described", "different_gpus", "gpu_part", "read_gpu"]

_LAST_PID = 1 << 22  # PID_MAX_LIMIT of the kernel
_LONGEST_S = 4e9


class Gpu(NamedTuple):
    """One GPU.

    Attributes:
        uuid: from the driver: `GPU-` and 32 hex digits.
        name: e.g. `NVIDIA H200`.
        memory_mib: its total memory according to the driver.
        compute_capability: e.g. `9.0`.
    """

    uuid: str
    name: str
    memory_mib: int
    compute_capability: str

    def __str__(self) -> str:
        return f"{self.name} ({self.memory_mib} MiB, compute capability {self.compute_capability})"


class GpuProcess(NamedTuple):
    """A process whose GPU state was moved to host memory.

    Attributes:
        pid: inside the sandbox; a restore keeps it.
        command: for messages.
        lock_s: seconds to lock it.
        checkpoint_s: seconds to move its GPU memory to host memory.
    """

    pid: int
    command: str
    lock_s: float
    checkpoint_s: float


class GpuPart(NamedTuple):
    """The GPU state of a snapshot.

    Attributes:
        processes: a restore moves their state back to their GPUs.
        memory: bytes of GPU memory by UUID; the checkpoint freed them, and a restore needs them again.
    """

    processes: tuple[GpuProcess, ...]
    memory: Mapping[str, int]

    @property
    def memory_bytes(self) -> int:
        """The bytes on all GPUs together."""
        return sum(self.memory.values())


def gpu_part(fields: Fields) -> GpuPart:
    """Read the GPU state from a manifest.

    Raises:
        SnapshotError: it is damaged.
    """
    memory = fields.inner("memory")
    part = GpuPart(
        processes=tuple(_process(one) for one in fields.each("processes")),
        memory={uuid: memory.whole(uuid) for uuid in memory.names()},
    )
    fields.end()
    return part


def read_gpu(fields: Fields) -> Gpu:
    """Read one GPU from a manifest.

    Raises:
        SnapshotError: it is damaged.
    """
    gpu = Gpu(
        uuid=fields.text("uuid"),
        name=fields.text("name"),
        memory_mib=fields.whole("memory_mib"),
        compute_capability=fields.text("compute_capability"),
    )
    fields.end()
    return gpu


def _process(fields: Fields) -> GpuProcess:
    process = GpuProcess(
        pid=fields.whole("pid", 1, _LAST_PID),
        command=fields.text("command"),
        lock_s=fields.number("lock_s", _LONGEST_S),
        checkpoint_s=fields.number("checkpoint_s", _LONGEST_S),
    )
    fields.end()
    return process


def described(gpus: Sequence[Gpu]) -> str:
    """How many of which kind, e.g. `2 x NVIDIA H200`; `none`."""
    names = [gpu.name for gpu in gpus]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"


def different_gpus(made_with: Sequence[Gpu], here: Sequence[Gpu]) -> Iterator[str]:
    """Why GPU state does not fit this machine, a sentence for each reason.

    A process goes back to the same GPU. The driver could move it to another GPU with the same chip (`CUcheckpointGpuPair`, CUDA
    documentation of cuCheckpointProcessRestore). That was never tried here, so it is refused.

    Args:
        made_with: the GPUs that the engine used at the capture.
        here: every GPU of this machine.
    """
    known = {gpu.uuid: gpu for gpu in here}
    for gpu in made_with:
        now = known.get(gpu.uuid)
        if now is None:
            there = ", ".join(f"{one.uuid} ({one.name})" for one in here) or "none"
            yield (
                f"its GPU {gpu.uuid}, {gpu}, is not in this machine, which has {there}; a restore onto another GPU, even of "
                "the same kind, is untried"
            )
            continue
        for what, then, seen in (
            ("name", gpu.name, now.name),
            ("memory", f"{gpu.memory_mib} MiB", f"{now.memory_mib} MiB"),
            ("compute capability", gpu.compute_capability, now.compute_capability),
        ):
            if then != seen:
                yield f"the {what} of its GPU {gpu.uuid} was {then}; here it is {seen}"
