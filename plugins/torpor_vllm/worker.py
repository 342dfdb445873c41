"""`Renewal`: what vLLM's workers do for a sleep and a wake beside vLLM's own calls.

vLLM mixes it into its worker class (`--worker-extension-cls`; v1/worker/worker_base.py of 0.32.0 and 0.33.0) and calls it
through POST /collective_rpc. Its names must not be the worker's own, hence the prefix.

Each worker answers with a report: its rank, and what the plugin compares. So of several a worker that fails, or that says nothing,
is known by its rank.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol, TypedDict, cast

from torpor.launcher import NcclCommunicators, ensure_tile_permission, model_sums, renew_random_state, tensor_sums
from torpor_vllm.several_gpus import Config, refusals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeGuard

    import torch

    class Runner(Protocol):
        """vLLM's model runner."""

        model: torch.nn.Module


__all__ = ["RankReport", "Renewal"]


_ADAPTERS = "lora_"
_SHARE_OF_A_CALL = 0.4  # two of them fit into the wait of the other ranks


class RankReport(TypedDict, total=False):
    """What one worker reports.

    Attributes:
        rank: its rank.
        held_bytes: memory of vLLM's allocator that is still mapped.
        weights: the checksum of its weights, a draft model's among them.
        weights_before: the same before the sleep.
    """

    rank: int
    held_bytes: int
    weights: str
    weights_before: str


class Renewal:
    """A worker's second base class."""

    if TYPE_CHECKING:
        rank: int
        device: torch.device
        model_runner: Runner
        get_draft_model: Callable[[], torch.nn.Module | None]
        vllm_config: Config

    torpor_nccl: NcclCommunicators | None = None  # there is none on a CPU
    torpor_weights: str = ""

    def torpor_renew(self, seed: str) -> str:
        """Renew what replicas of one snapshot must not share.

        The random state: a request without a seed is sampled from the worker's generators, which are the same in every
        replica. All tensor-parallel ranks get the same seed, because each samples for itself. And the permission to use AMX,
        which a restored process has lost.

        Args:
            seed: a number below 2**32, as text: the route hands over nothing but text.

        Returns:
            The seed.
        """
        from vllm.utils.torch_utils import set_random_seed  # noqa: PLC0415 - the engine's

        ensure_tile_permission()
        set_random_seed(int(seed))  # what else vLLM seeds on its platform
        renew_random_state(seed=int(seed))
        return seed

    def torpor_note_weights(self) -> RankReport:
        """Of one worker, before vLLM's sleep: sum the weights."""
        self.torpor_weights = self._torpor_sums()
        return {"rank": self.rank, "weights": self.torpor_weights}

    def torpor_before_sleep(self, seconds: str) -> RankReport:
        """Of several workers: check that nothing prevents a sleep, and sum the weights.

        Args:
            seconds: how long this worker waits for the others, at the sleep and at the wake.

        Raises:
            GpuSnapshotError: names each rank and what it has that no snapshot can hold.
        """
        if self.device.type == "cuda":
            wait_s = float(seconds)
            self.torpor_nccl = self.torpor_nccl or NcclCommunicators(
                named=self._torpor_groups,
                refusals=lambda: refusals(self.vllm_config, os.environ),
                arrival_s=wait_s,
                call_s=wait_s * _SHARE_OF_A_CALL,
            )
            self.torpor_nccl.check()
        self.torpor_weights = self._torpor_sums()
        return {"rank": self.rank, "weights": self.torpor_weights}

    def torpor_let_go(self) -> RankReport:
        """Of several workers, after vLLM's sleep: suspend NCCL's communicators.

        Raises:
            GpuSnapshotError: names rank and communicator.
        """
        if self.torpor_nccl is not None:
            self.torpor_nccl.suspend()
        return {"rank": self.rank, "held_bytes": self._torpor_held_bytes()}

    def torpor_take_back(self) -> RankReport:
        """Of several workers, before vLLM's wake: resume NCCL's communicators.

        Raises:
            GpuSnapshotError: names rank and communicator.
        """
        ensure_tile_permission()
        if self.torpor_nccl is not None:
            self.torpor_nccl.resume()
        return {"rank": self.rank}

    def torpor_after_wake(self, seed: str) -> RankReport:
        """At the end of a wake: renew as `torpor_renew` does, and sum the weights again."""
        self.torpor_renew(seed)
        return {
            "rank": self.rank,
            "weights": self._torpor_sums(),
            "weights_before": self.torpor_weights,
        }

    def _torpor_sums(self) -> str:
        """The checksum of every model of this worker (v1/worker/gpu_worker.py of 0.32.0 and 0.33.0: `get_draft_model`).

        Another one is of the adapters, where there are any.
        """
        draft = self.get_draft_model() if hasattr(self, "get_draft_model") else None
        models = [self.model_runner.model, *([] if draft is None else [draft])]
        adapters = list(_adapter_tensors(self.model_runner.model))
        return " ".join([*map(model_sums, models), *([tensor_sums(adapters)] if adapters else [])])

    def _torpor_groups(self) -> dict[str, object]:
        """PyNccl's objects by the names of vLLM's groups (distributed/parallel_state.py of 0.32.0 and 0.33.0)."""
        state = cast("_ParallelState", sys.modules["vllm.distributed.parallel_state"])
        groups = {name: reference() for name, reference in state._groups.items()}  # noqa: SLF001 - no public list
        found = {name: getattr(group, "device_communicator", None) for name, group in groups.items()}
        return {name: getattr(one, "pynccl_comm", None) for name, one in found.items() if one is not None}

    def _torpor_held_bytes(self) -> int:
        """Memory that vLLM's sleep should have unmapped and has not (device_allocator/cumem.py)."""
        if self.device.type != "cuda":
            return 0
        memory = cast("_DeviceAllocator", sys.modules["vllm.device_allocator"])
        blocks = memory.get_mem_allocator_instance().pointer_to_data.values()
        return sum(block.handle[1] for block in blocks if not block.is_asleep)


def _adapter_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The buffers of the adapters: plain attributes of the layers, a tensor each or several (lora/layers/ of 0.32.0 and 0.33.0)."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if _ADAPTERS in attribute:
                given = value if isinstance(value, (tuple, list)) else (value,)
                yield from ((f"{name}.{attribute}.{at}", one) for at, one in enumerate(given) if _is_tensor(one))


def _is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    return hasattr(value, "untyped_storage")


class _Block(Protocol):
    handle: tuple[int, int, int, int]
    is_asleep: bool


class _Allocator(Protocol):
    pointer_to_data: Mapping[int, _Block]


class _DeviceAllocator(Protocol):
    def get_mem_allocator_instance(self) -> _Allocator: ...


class _ParallelState(Protocol):
    _groups: Mapping[str, Callable[[], object]]
