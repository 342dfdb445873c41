"""The part of a manifest about GPUs, and how the GPUs of two machines are compared: by kind, never by UUID.

It imports nothing: a restore reads a manifest before it imports anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torpor.snapshots.store.fields import Fields

__all__ = [
    "Gpu",
    "GpuPart",
    "GpuProcess",
    "different_gpus",
    "driver_major",
    "gpu_part",
    "read_gpu",
    "uuid_bytes",
]

_LAST_PID = 1 << 22  # PID_MAX_LIMIT of the kernel
_LONGEST_S = 4e9
_UUID_PARTS = [8, 4, 4, 4, 12]
_UUID_DIGITS = set("0123456789abcdefABCDEF-")


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

    @property
    def kind(self) -> tuple[str, int, str]:
        """What two GPUs have in common if one can take the other's place: name, memory and compute capability."""
        return self.name, self.memory_mib, self.compute_capability


class GpuProcess(NamedTuple):
    """A process whose GPU state was moved to host memory.

    Attributes:
        pid: inside the sandbox; a restore keeps it.
        command: for messages.
        lock_s: seconds to lock it.
        checkpoint_s: seconds to move its GPU memory to host memory.
        gpus: UUIDs of the GPUs on which the driver listed it; empty if the driver lists no processes.
    """

    pid: int
    command: str
    lock_s: float
    checkpoint_s: float
    gpus: tuple[str, ...]


class GpuPart(NamedTuple):
    """The GPU state of a snapshot.

    Attributes:
        processes: a restore moves their state back to their GPUs.
        memory: bytes of GPU memory by UUID; the checkpoint freed them, and a restore needs them again.
        awake: bytes by UUID that the engine held while it served, and needs again when it wakes; empty if nobody looked.
    """

    processes: tuple[GpuProcess, ...]
    memory: Mapping[str, int]
    awake: Mapping[str, int]

    @property
    def memory_bytes(self) -> int:
        """The bytes on all GPUs together, asleep."""
        return sum(self.memory.values())

    @property
    def needed(self) -> dict[str, int]:
        """Bytes that a replica needs until it serves, by UUID of the GPU: the GPUs that it uses."""
        uuids = dict.fromkeys([*self.memory, *self.awake])
        return {uuid: max(self.memory.get(uuid, 0), self.awake.get(uuid, 0)) for uuid in uuids}


def gpu_part(fields: Fields) -> GpuPart:
    """Read the GPU state from a manifest.

    Raises:
        SnapshotError: it is damaged.
    """
    part = GpuPart(
        processes=tuple(_process(one) for one in fields.each("processes")),
        memory=_sizes(fields.inner("memory")),
        awake=_sizes(fields.inner("awake")),
    )
    fields.end()
    return part


def _sizes(fields: Fields) -> dict[str, int]:
    return {uuid: fields.whole(uuid) for uuid in fields.names()}


def read_gpu(fields: Fields) -> Gpu:
    """Read one GPU from a manifest.

    Raises:
        SnapshotError: it is damaged.
    """
    uuid = fields.text("uuid")
    try:
        uuid_bytes(uuid)
    except ValueError:
        fields.refuse("uuid", uuid, "the UUID of a GPU: GPU- and 32 hexadecimal digits in five groups")
    gpu = Gpu(
        uuid=uuid,
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
        gpus=fields.texts("gpus"),
    )
    fields.end()
    return process


def uuid_bytes(uuid: str) -> bytes:
    """The 16 bytes of a GPU's UUID, as the driver takes them (`CUuuid`).

    Raises:
        ValueError: it is not `GPU-` and 32 hexadecimal digits in groups of 8, 4, 4, 4 and 12; that of a part of a GPU (MIG) is not.
    """
    prefix, _, digits = uuid.partition("-")
    if prefix != "GPU" or [len(part) for part in digits.split("-")] != _UUID_PARTS or set(digits) - _UUID_DIGITS:
        raise ValueError(f"{uuid} is not the UUID of a GPU")
    return bytes.fromhex(digits.replace("-", ""))


def driver_major(version: str) -> int:
    """The first number of a driver's version; 0 when there is none."""
    first = version.partition(".")[0]
    return int(first) if first.isdecimal() else 0


def different_gpus(seen_then: Sequence[Gpu], here: Sequence[Gpu]) -> Iterator[str]:
    """Why GPU state does not fit this machine, a sentence for each reason; free memory is not looked at.

    A restore names a GPU here for every GPU that the processes could see at the capture, also for those that they did not use:
    "it must contain every checkpointed GPU", and each pair has "the same chip type" (CUDA documentation of
    cuCheckpointProcessRestore). So the machine needs as many of each kind. It may have more.

    Args:
        seen_then: every GPU that the processes could see at the capture.
        here: every GPU of this machine.
    """
    kinds = [gpu.kind for gpu in here]
    for gpu in {gpu.kind: gpu for gpu in seen_then}.values():
        wanted, found = sum(one.kind == gpu.kind for one in seen_then), kinds.count(gpu.kind)
        if found < wanted:
            others = [f"GPU {at} {_differences(gpu, other)}" for at, other in enumerate(here) if other.kind != gpu.kind]
            yield (
                f"its engine could see {wanted} x {gpu}, used or not, and a restore needs a GPU of that kind for each; this "
                f"machine has {found}" + "".join(f"; {other}" for other in others)
            )


def _differences(then: Gpu, now: Gpu) -> str:
    """How a GPU differs from one of another kind, in words."""
    found = [
        f"{what} {seen} instead of {wanted}"
        for what, wanted, seen in (
            ("name", then.name, now.name),
            ("memory", f"{then.memory_mib} MiB", f"{now.memory_mib} MiB"),
            ("compute capability", then.compute_capability, now.compute_capability),
        )
        if wanted != seen
    ]
    return f"differs: {', '.join(found)}"
