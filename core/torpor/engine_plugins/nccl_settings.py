"""Variables that an engine on several GPUs needs for a snapshot, each with its reason.

`needed` says what was seen when snapshots of two H200 were restored (SGLang 0.5.16, NCCL 2.31.2, driver 580.159.04): without it
there is no restore. The others were set as well, and were not taken away one by one; their reasons are what others report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.deployment import Deployment

__all__ = ["NCCL_SETTINGS", "NCCL_SNAPSHOT_ENV", "NcclSetting", "nccl_refusals", "wants_nccl_suspended"]


class NcclSetting(NamedTuple):
    """One variable of the engine's environment.

    Args:
        variable: its name.
        value: its only allowed value.
        reason: what happens without it.
        source: where that is known from.
        needed: whether it was seen to be needed; otherwise it was set as well.
    """

    variable: str
    value: str
    reason: str
    source: str
    needed: bool


NCCL_SETTINGS = (
    NcclSetting(
        "NCCL_CUMEM_ENABLE",
        "1",
        "NCCL would share its buffers by CUDA IPC handles, which it cannot let go of: a suspend frees nothing, and the restore "
        "fails. SGLang sets 0 unless it is set",
        "NCCL 2.30.7 include/alloc.h, mem_manager.cc; SGLang 0.5.16 entrypoints/engine.py",
        needed=True,
    ),
    NcclSetting(
        "NCCL_CUMEM_HOST_ENABLE",
        "0",
        "NCCL would take host memory by cuMem handles, with which a restore is known to fail",
        "NVIDIA Dynamo Snapshot, NCCL 2.30.7 transport/shm.cc; made no difference on two H200",
        needed=False,
    ),
    NcclSetting(
        "NCCL_NVLS_ENABLE",
        "0",
        "NCCL would map NVLink multicast memory, with which a checkpoint hangs on drivers before 595",
        "NVIDIA driver notes, NVIDIA/cuda-checkpoint#45",
        needed=False,
    ),
    NcclSetting(
        "TORCH_SYMM_MEM_DISABLE_MULTICAST",
        "1",
        "torch's symmetric memory would map NVLink multicast memory",
        "torch 2.13 c10d/symm_mem/CUDASymmetricMemory.cu",
        needed=False,
    ),
    NcclSetting(
        "NVSHMEM_DISABLE_NVLS",
        "1",
        "NVSHMEM would map NVLink multicast memory",
        "NVSHMEM 3, environment variables",
        needed=False,
    ),
    NcclSetting(
        "NCCL_SHM_DISABLE",
        "1",
        "ranks would share host memory in /dev/shm that is registered with the GPU",
        "NCCL 2.30.7 transport/shm.cc",
        needed=False,
    ),
    NcclSetting(
        "NCCL_IB_DISABLE",
        "1",
        "NCCL would open InfiniBand devices, which no snapshot can hold",
        "NCCL 2.30.7 transport/net_ib",
        needed=False,
    ),
    NcclSetting(
        "NCCL_SOCKET_IFNAME",
        "lo",
        "ranks would connect over a network card that a restored replica does not have; loopback is in every sandbox",
        "NCCL user guide, environment variables",
        needed=False,
    ),
    NcclSetting(
        "NCCL_RAS_ENABLE",
        "0",
        "each rank would run a thread with a port and connections of its own",
        "NCCL user guide, environment variables",
        needed=False,
    ),
    NcclSetting(
        "TORCH_NCCL_ENABLE_MONITORING",
        "0",
        "torch's monitor would take the time that the engine was asleep for a hang, and end the process",
        "torch 2.13 c10d/ProcessGroupNCCL.hpp",
        needed=False,
    ),
    NcclSetting(
        "TORCH_NCCL_DUMP_ON_TIMEOUT",
        "0",
        "torch would poll the store of all ranks from a thread of each",
        "torch 2.13 c10d/ProcessGroupNCCL.hpp",
        needed=False,
    ),
)
"""For every engine whose ranks use NCCL. What else an engine shares between GPUs is switched off by its own flags."""

NCCL_SNAPSHOT_ENV = {setting.variable: setting.value for setting in NCCL_SETTINGS}
"""The same as an environment."""


def wants_nccl_suspended(deployment: Deployment, *, device: str, gpus: int) -> bool:
    """Whether an engine's NCCL communicators have to be suspended: it is on several GPUs and will be put to sleep.

    Args:
        deployment: whose snapshots.
        device: `cuda` or `cpu`.
        gpus: GPUs that the engine takes.
    """
    return device == "cuda" and gpus > 1 and bool(deployment.gpu_snapshot)


def nccl_refusals(environ: Mapping[str, str]) -> list[str]:
    """Variables of the table that an environment has otherwise, each as a sentence; none if all are right."""
    found = []
    for setting in NCCL_SETTINGS:
        if (value := environ.get(setting.variable, "")) != setting.value:
            is_now = f"is {value!r}" if value else "is not set"
            found.append(f"{setting.variable} {is_now} and has to be {setting.value!r}: otherwise {setting.reason}")
    return found
