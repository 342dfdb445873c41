"""Keeps weights and the memory of CUDA graphs outside the process while SGLang's memory is released.

SGLang's own `--enable-weights-cpu-backup` keeps the weights in pinned memory of the scheduler: 9.7 of the 13 GB that CRIU wrote
and read for Qwen3-8B-FP8 on an H200, in one thread. It does not keep the memory of CUDA graphs, so 0.5.16 cannot release that
(sgl-project/sglang#32718). `torpor_sglang.kept_memory` describes what this patch does instead.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.launcher import Patch, after_import, rank_name, together, word_sums
from torpor_sglang.gpu_copy import Segment
from torpor_sglang.kept_memory import KeptMemory
from torpor_sglang.patches.handlers import RESUME, around_handler
from torpor_sglang.places import FOLDER_VARIABLE, PLACES_VARIABLE
from torpor_sglang.several_gpus import seconds_for_ranks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from torpor_sglang.places import Place

__all__ = ["PATCH", "keep_released"]

_ADAPTER = "sglang.srt.utils.torch_memory_saver_adapter"


def keep_released(adapter: ModuleType, kept: KeptMemory, graph_pools: set[tuple[int, int]]) -> None:
    """Let SGLang's adapter to the memory saver keep the content that it releases.

    Args:
        adapter: the module `torch_memory_saver_adapter`.
        kept: keeps the content.
        graph_pools: collects the memory pools into which CUDA graphs are captured.
    """
    real = adapter._TorchMemorySaverAdapterReal  # noqa: SLF001 - it has no public name
    pause, resume, cuda_graph = real.pause, real.resume, real.cuda_graph

    def keep_and_pause(self: object, tag: str) -> object:
        kept.save(tag)
        return pause(self, tag)

    def resume_and_load(self: object, tag: str) -> object:
        answer = resume(self, tag)
        kept.begin_load(tag)
        return answer

    def note_pool(self: object, **arguments: object) -> object:
        pool = arguments.get("pool")
        if isinstance(pool, tuple):
            graph_pools.add(pool)
        return cuda_graph(self, **arguments)

    real.pause, real.resume, real.cuda_graph = keep_and_pause, resume_and_load, note_pool


def _segments(graph_pools: set[tuple[int, int]], tag: str) -> list[Segment]:
    """Return a tag's ranges: the segments of torch's allocator in the memory saver's pools of that tag."""
    import torch  # noqa: PLC0415 - the engine's

    saver = sys.modules[_ADAPTER]._memory_saver._impl  # noqa: SLF001 - torch_memory_saver 0.0.9, 0.0.10: entrypoint.py
    pools = {tuple(pool.id) for key, pool in saver._mem_pools.items() if key[0] == tag}  # noqa: SLF001
    if tag == "cuda_graph":
        pools |= graph_pools
    return [
        Segment(segment["address"], segment["total_size"])
        for pool in pools
        for segment in torch.cuda.memory_snapshot(pool)
        if tuple(segment["segment_pool_id"]) == pool
    ]


def _sums(segments: Sequence[Segment]) -> list[int]:
    """A checksum of each range, computed on the device."""
    import torch  # noqa: PLC0415 - the engine's

    device = f"cuda:{torch.cuda.current_device()}"
    return word_sums([torch.as_tensor(_Words(segment), device=device) for segment in segments])


class _Words:
    """Device memory in the form that torch reads (numba's CUDA array interface, version 2)."""

    def __init__(self, segment: Segment) -> None:
        self.__cuda_array_interface__ = {
            "shape": (segment.size // 8,),
            "typestr": "<i8",
            "data": (segment.address, False),
            "version": 2,
        }


def _tell(line: str) -> None:
    print(f"torpor_sglang: {line}", file=sys.stderr, flush=True)


def _apply(environ: Mapping[str, str] = os.environ) -> None:
    words = (word.partition("=") for word in environ[PLACES_VARIABLE].split(","))
    places: dict[str, Place] = {tag: "memory" if place == "memory" else "file" for tag, _, place in words}
    graph_pools: set[tuple[int, int]] = set()
    kept = KeptMemory(
        places=places,
        folder=Path(environ.get(FOLDER_VARIABLE, "")),
        segments=functools.partial(_segments, graph_pools),
        sums=_sums,
        tell=_tell,
        together=lambda act, what: together(act, what=what, timeout_s=seconds_for_ranks(environ)),
        rank=rank_name,
    )
    after_import(_ADAPTER, lambda module: keep_released(module, kept, graph_pools))
    around_handler(RESUME, after=lambda _: kept.finish())  # SGLang answers only after all memory is back and compared


PATCH = Patch(
    name="kept-memory",
    reason=(
        "SGLang keeps released weights in its own pinned memory, so the snapshot holds them and every restore reads them in "
        "one thread. Outside the snapshot, several threads read them from one file for all replicas"
    ),
    versions=("0.5.16",),
    applies=lambda: PLACES_VARIABLE in os.environ,
    apply=_apply,
)
