"""Which CPUs each rank of an engine on a CPU computes on."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.engine_plugins import ParallelFlags, gpus_needed

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

__all__ = ["BIND_VARIABLE", "THREADS_VARIABLE", "share_cpus"]

# srt/utils/numa_utils.py of 0.5.16 to 0.5.23: one list of CPUs for each rank, separated by `|`. Without it SGLang gives each
# rank a NUMA node, and ends where there are fewer nodes than ranks.
BIND_VARIABLE = "SGLANG_CPU_OMP_THREADS_BIND"
THREADS_VARIABLE = "OMP_NUM_THREADS"
_RANKS = ParallelFlags(
    stages=(("--tp-size", "--tensor-parallel-size", "--tp"), ("--pp-size", "--pipeline-parallel-size", "--pp")),
    data=(("--dp-size", "--data-parallel-size", "--dp"),),
    shared=("--enable-dp-attention",),
)
_NODES = Path("/sys/devices/system/node")


def share_cpus(argv: Sequence[str], environ: MutableMapping[str, str]) -> None:
    """Give each rank its share of this machine's CPUs, where SGLang gives none by itself.

    Each rank gets as many OpenMP threads as CPUs: more would wait for each other at every barrier. Variables that are set stay.

    Args:
        argv: the engine's flags.
        environ: gets the variables. Call it before anything imports torch, whose OpenMP reads the number of threads once.
    """
    ranks = gpus_needed(1, argv, _RANKS)
    if ranks == 1 or ranks <= _numa_nodes():
        return
    shares = cpu_shares(ranks, sorted(os.sched_getaffinity(0)))
    environ.setdefault(BIND_VARIABLE, "|".join(",".join(map(str, share)) for share in shares))
    environ.setdefault(THREADS_VARIABLE, str(min(len(share) for share in shares)))


def cpu_shares(ranks: int, cpus: Sequence[int]) -> list[list[int]]:
    """Divide CPUs among ranks: neighbours to one rank, each its own. With fewer CPUs than ranks, some ranks share one."""
    if ranks > len(cpus):
        return [[cpus[rank % len(cpus)]] for rank in range(ranks)]
    bounds = [len(cpus) * rank // ranks for rank in range(ranks + 1)]
    return [list(cpus[first:last]) for first, last in pairwise(bounds)]


def _numa_nodes() -> int:
    """NUMA nodes of this machine; 1 where the kernel does not say."""
    return sum(1 for node in _NODES.glob("node[0-9]*") if node.is_dir()) or 1
