"""Finds memory of other GPUs that is mapped into this process by anything but an NCCL communicator.

A checkpoint with such memory in it succeeds, and its restore fails (CUDA error 801), or the checkpoint fails; see
docs/gpu-snapshots.md. Nothing takes it away for the sleep, so the engine must not use it; the settings that switch each kind off
are those of the engine's plugin.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PEER_MEMORY", "peer_memory"]

PEER_MEMORY: dict[str, tuple[str, tuple[str, ...]]] = {
    "CustomAllreduce": ("custom all-reduce, buffers shared by CUDA IPC handles", ("_ptr", "meta_ptrs")),
    "CustomAllReduceV2": ("custom all-reduce, buffers in symmetric memory", ("obj",)),
    "QuickAllReduce": ("quick all-reduce, buffers shared by IPC handles", ("_ptr",)),
    "TorchSymmMemCommunicator": ("all-reduce in torch's symmetric memory", ("buffer",)),
    "SymmMemCommunicator": ("all-reduce in torch's symmetric memory", ("buffer",)),
    "PyMscclppCommunicator": ("MSCCL++ all-reduce", ("_context", "comm_group")),
    "PcieIpcCommunicator": ("FlashInfer's all-reduce over PCIe, buffers shared by IPC handles", ("_workspace",)),
    "FlashInferWorkspaceManager": ("FlashInfer's fused all-reduce, its workspace", ("workspace",)),
    "AllReduceFusionWorkspace": ("FlashInfer's fused all-reduce, its workspace", ("__dict__",)),
    "TRTLLMAllReduceFusionWorkspace": ("FlashInfer's fused all-reduce, its workspace", ("__dict__",)),
    "MNNVLAllReduceFusionWorkspace": ("FlashInfer's fused all-reduce over NVLink, its workspace", ("__dict__",)),
    "SymmDeviceMemory": ("memory shared by handles and multicast (FlashInfer)", ("__dict__",)),
    "McastGPUBuffer": ("NVLink multicast memory (FlashInfer)", ("__dict__",)),
    "MnnvlMemory": ("NVLink memory of several nodes (FlashInfer, TensorRT-LLM)", ("__dict__",)),
}
"""Classes whose objects map memory of other GPUs: what that memory is, and the attributes of which one is set once they do.

SGLang 0.5.16, 0.5.18, 0.5.23: srt/distributed/device_communicators/. vLLM 0.32.0: the folder of the same name. FlashInfer 0.7.2:
comm/.
"""

_TORCH_POOLS = ("_symm_mem_pools", "_group_name_to_workspace_tensor")


def peer_memory(objects: Iterable[object]) -> list[str]:
    """Name every kind of such memory in use, each once, sorted.

    Args:
        objects: every object of the process.
    """
    found = set()
    for one in objects:
        kind = PEER_MEMORY.get(type(one).__name__)
        if kind is not None and any(_is_set(getattr(one, name, None)) for name in kind[1]):
            found.add(f"{kind[0]} ({type(one).__module__}.{type(one).__name__})")
    torch = sys.modules.get("torch.distributed._symmetric_memory")
    for name in _TORCH_POOLS:
        if getattr(torch, name, None):
            found.add(f"torch's symmetric memory (torch.distributed._symmetric_memory.{name})")
    return sorted(found)


def _is_set(value: object) -> bool:
    """Whether an attribute holds something; a tensor does, whatever its values."""
    return value is not None and not (isinstance(value, int | list | dict) and not value)
