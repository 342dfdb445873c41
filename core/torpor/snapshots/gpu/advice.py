"""What is known about failed checkpoint calls of the CUDA driver: causes, and what to do.

The driver's own words say little: a checkpoint that succeeds proves nothing, and only the restore tells. Sources of each cause:
measured on two H200 with driver 580.159 (NCCL's memory), NVIDIA/cuda-checkpoint (README, issues 27, 44, 45), its release notes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.snapshots.gpu.calls_program import FORGOTTEN, TIMEOUT
from torpor.snapshots.store.paths import LIBRARIES_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torpor.snapshots.gpu.calls_program import Failure

__all__ = ["LOCK_S", "advice", "listed"]

LOCK_S = 20.0
"""Seconds that a lock waits for work that is still on the GPU."""

_BUSY = (
    f"Work was still on the GPU after {LOCK_S:g} s: every process of the engine has to be idle before the capture. One rank that "
    "is still busy, or waits for another one in NCCL, is enough."
)
_SHARED = (
    "A checkpoint also succeeds with GPU memory that processes share; only the restore fails. Known kinds: NCCL's memory between "
    "GPUs, if its communicators were not suspended before the sleep (NCCL 2.29.7 or newer can); imported handles of cuMemCreate "
    "(symmetric memory); NCCL's host memory (NCCL_CUMEM_HOST_ENABLE=0 turns it off)."
)
_IPC = (
    "The driver cannot checkpoint managed (UVM) memory, nor memory that processes share by CUDA IPC before driver 610. Known users "
    "of IPC: an engine's own all-reduce (--disable-custom-all-reduce), and NCCL unless NCCL_CUMEM_ENABLE=1."
)
_MULTICAST = (
    "Multicast memory (NVLink SHARP) lets checkpoints and restores hang before driver 595: NCCL_NVLS_ENABLE=0, "
    "TORCH_SYMM_MEM_DISABLE_MULTICAST=1 and NVSHMEM_DISABLE_NVLS=1 turn it off."
)
_PAIRS = (
    "The driver refused the list of GPUs to restore onto. It wants every GPU that the process could see at the capture, each with "
    "a GPU of the same chip; it cannot do so with MIG or MPS."
)
_MEMORY = (
    "There was too little free GPU memory (nvidia-smi shows who holds it); another start may have taken it at the same moment. The "
    "driver cannot restore this process again, but the snapshot can be restored again."
)
_ANY = {
    "MISSING": "GPU snapshots need libcuda of an NVIDIA driver 570 or newer. If the loader does not know its folder, name "
    f"it in {LIBRARIES_VARIABLE}.",
    "CUDA_ERROR_NOT_READY": _BUSY,
    "CUDA_ERROR_NOT_SUPPORTED": _IPC,
    "CUDA_ERROR_NOT_INITIALIZED": "A process that does not use CUDA holds the driver's files (inherited, or only for NVML): it has "
    "to close them or end before the capture.",
    "CUDA_ERROR_OUT_OF_MEMORY": _MEMORY,
    "CUDA_ERROR_NO_DEVICE": "The driver sees no GPU from inside the sandbox: check that there are /dev/nvidia* files.",
    TIMEOUT: "The call hangs. A stopped process (state T) never answers; otherwise look into the kernel's log (dmesg, Xid).",
    FORGOTTEN: "The driver contradicts itself; look into the kernel's log (dmesg, Xid), and update the driver.",
}
"""By the name of the error, whatever the call."""

_OF_CALL = {
    ("cuCheckpointProcessLock", TIMEOUT): _BUSY,
    ("cuCheckpointProcessCheckpoint", TIMEOUT): _MULTICAST,
    ("cuCheckpointProcessRestore", TIMEOUT): _MULTICAST,
    ("cuCheckpointProcessRestore", "CUDA_ERROR_NOT_SUPPORTED"): _SHARED,
    ("cuCheckpointProcessRestore", "CUDA_ERROR_UNKNOWN"): _SHARED,
    ("cuCheckpointProcessRestore", "CUDA_ERROR_INVALID_VALUE"): _PAIRS,
}
"""By call and error; said before what is known of the error alone."""

_INSTEAD = {_SHARED, _PAIRS}
"""Causes that leave no other."""


def advice(failures: Sequence[Failure]) -> str:
    """The known causes of the failures, a line each."""
    said: dict[str, None] = {}
    for one in failures:
        special = _OF_CALL.get((one["call"], one["name"]), "")
        plain = "" if special in _INSTEAD else _ANY.get(one["name"], "")
        said |= dict.fromkeys(filter(None, (special, plain)))
    return "".join(f"{line}\n" for line in said)


def listed(failures: Sequence[Failure], labels: Mapping[int, str]) -> str:
    """Failures, one per line: the process, the call, and the driver's name and text of the error.

    Args:
        failures: from the program of the calls.
        labels: by pid, the command of a process and its GPUs.
    """
    lines = []
    for one in failures:
        who = f"pid {one['pid']} ({labels.get(one['pid'], '?')}): " if one["pid"] else ""
        lines.append(f"  - {who}{one['call']}: {one['name']}: {one['text']}")
    return "\n".join(lines)
