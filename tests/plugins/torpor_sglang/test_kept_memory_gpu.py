"""Kept memory on a real GPU, with torch's allocator and the memory saver, which this interpreter must have."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import json, os, sys, time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch_memory_saver

from torpor_sglang.kept_memory import KeptMemory
from torpor_sglang.patches import kept_memory as patch

place, folder, gigabytes = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
saver = torch_memory_saver.torch_memory_saver
sys.modules[patch._ADAPTER] = SimpleNamespace(_memory_saver=saver)
graph_pools = set()


class Adapter:
    def pause(self, tag):
        saver.pause(tag)

    def resume(self, tag):
        saver.resume(tag)

    def cuda_graph(self, **arguments):
        return saver.cuda_graph(**arguments)


lines = []
kept = KeptMemory(
    places={"weights": place, "cuda_graph": "memory"},
    folder=folder,
    segments=lambda tag: patch._segments(graph_pools, tag),
    sums=patch._sums,
    tell=lines.append,
)
patch.keep_released(SimpleNamespace(_TorchMemorySaverAdapterReal=Adapter), kept, graph_pools)
adapter = Adapter()
with saver.region("weights"):
    weights = [torch.randn(int(gigabytes * 2**28) // 8, device="cuda") for _ in range(8)]
    small = torch.arange(1000, device="cuda")
with saver.region("kv_cache"):
    cache = torch.zeros(2**28, device="cuda")
entry, pool = torch.ones(4096, device="cuda"), torch.cuda.graph_pool_handle()
constant = torch.full((4096,), 3.0, device="cuda")
graph = torch.cuda.CUDAGraph()
with adapter.cuda_graph(cuda_graph=graph, pool=pool, stream=torch.cuda.Stream(), tag="cuda_graph"):
    held = entry * constant
    out = held + 1
graph.replay()
before = [tensor.clone().cpu() for tensor in weights] + [small.cpu(), out.clone().cpu()]
torch.cuda.synchronize()
answers = []
for _ in range(2):
    full = torch.cuda.mem_get_info()[0]
    started = time.perf_counter()
    for tag in ("kv_cache", "weights", "cuda_graph"):
        adapter.pause(tag)
    torch.cuda.synchronize()
    slept = time.perf_counter() - started
    freed = torch.cuda.mem_get_info()[0] - full
    started = time.perf_counter()
    for tag in ("cuda_graph", "weights", "kv_cache"):
        adapter.resume(tag)
    kept.finish()
    woke = time.perf_counter() - started
    entry.fill_(2.0)
    graph.replay()
    torch.cuda.synchronize()
    same = all(torch.equal(tensor.cpu(), old) for tensor, old in zip([*weights, small], before))
    answers.append({
        "same": same, "replayed": out.sum().item(), "freed": freed, "slept_s": slept, "woke_s": woke,
        "bytes": sum(tensor.nbytes for tensor in weights),
    })
print(json.dumps({"answers": answers, "lines": lines, "files": sorted(file.name for file in folder.glob("*"))}))
"""


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["file", "memory"])
def test_weights_and_graphs_come_back_on_a_gpu(tmp_path: Path, place: str) -> None:
    """The content is the same after a release, and a captured graph computes with its own memory."""
    import json

    if not all(map(importlib.util.find_spec, ("torch", "torch_memory_saver"))):
        pytest.skip("torch and torch_memory_saver are not in this interpreter")
    import torch_memory_saver

    gigabytes = os.environ.get("TORPOR_KEPT_GIGABYTES", "1")
    with torch_memory_saver.configure_subprocess():
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, place, tmp_path, gigabytes],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    assert ran.returncode == 0, ran.stderr[-3000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    print(json.dumps(told, indent=1))
    for answer in told["answers"]:
        assert answer["same"]
        assert answer["replayed"] == 4096 * 7.0
        assert answer["freed"] > answer["bytes"] * 0.99
    assert len(told["files"]) == (1 if place == "file" else 0)
    assert sum("checksums agree" in line for line in told["lines"]) == 4
