"""One rank without a GPU: NCCL is `fake_nccl.c`. Prints what happened as JSON.

torch is a double whose store is a folder; with a `port` it is the real one, with its own store and groups.

python -m tests.engine_patches.nccl_rank '{"rank": 0, "size": 2, ...}'
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

MIB = 1 << 20


class FolderStore:
    """A store whose keys are files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _file(self, key: str) -> Path:
        return self._folder / key.replace("/", "-")

    def set(self, key: str, value: str) -> None:
        unfinished = self._file(key).with_suffix(".part")
        unfinished.write_text(value)
        unfinished.rename(self._file(key))

    def get(self, key: str) -> bytes:
        return self._file(key).read_bytes()

    def check(self, keys: list[str]) -> bool:
        return all(self._file(key).exists() for key in keys)


class Group:
    """A process group of torch, with one NCCL communicator or none."""

    def __init__(self, name: str, ranks: list[int], pointer: int | None, backend: str = "nccl") -> None:
        self.group_name = name
        self.ranks = ranks
        self._device_types = ["cuda"]
        self._backend = SimpleNamespace(name=lambda: backend)
        if pointer is not None:
            self._backend._comm_ptr = lambda: pointer

    def _get_backend(self, _device: object) -> object:
        return self._backend


class PyNcclCommunicator:
    """The attributes of SGLang's and vLLM's class of this name that count."""

    def __init__(self, library: ctypes.CDLL, group: Group, pointer: int, unique: str) -> None:
        self.available = True
        self.world_size = len(group.ranks)
        self.comm = ctypes.c_void_p(pointer)
        self.unique_id = SimpleNamespace(internal=(ctypes.c_byte * 8)(*unique.encode().ljust(8)))
        self.nccl = SimpleNamespace(lib=library)
        self.group = group


class CustomAllreduce:
    """SGLang's custom all-reduce; `_ptr` is set once it holds memory of other GPUs."""

    def __init__(self, pointer: int) -> None:
        self._ptr = pointer


def torch_without_gpus(asked: dict[str, Any], groups: list[Group]) -> None:
    """Put a torch into sys.modules that has these groups. Its current GPU is one for each thread, as CUDA's."""
    import threading

    current = threading.local()
    current.device = asked["rank"]
    store = FolderStore(Path(asked["folder"]))
    torch, distributed = ModuleType("torch"), ModuleType("torch.distributed")
    torch.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        synchronize=lambda: None,
        is_initialized=lambda: True,
        current_device=lambda: getattr(current, "device", 0),
        set_device=lambda device: setattr(current, "device", device),
    )
    vars(distributed).update(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_rank=lambda: asked["rank"],
        get_world_size=lambda: asked["size"],
        get_process_group_ranks=lambda group: group.ranks,
        distributed_c10d=SimpleNamespace(
            _world=SimpleNamespace(pg_map=dict.fromkeys(groups)), _get_default_store=lambda: store
        ),
    )
    sys.modules |= {"torch": torch, "torch.distributed": distributed}


def join_real_torch(asked: dict[str, Any], groups: list[Group]) -> None:
    """Join a real group of torch by gloo, whose store the ranks use, and add the NCCL groups that a CPU cannot have."""
    import torch.distributed
    from torch.distributed import distributed_c10d

    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{asked['port']}", rank=asked["rank"], world_size=asked["size"]
    )
    torch.distributed.new_group(list(range(asked["size"])), backend="gloo")
    for group in groups:
        distributed_c10d._world.pg_map[group] = ("nccl", None)
        distributed_c10d._world.pg_group_ranks[group] = {rank: place for place, rank in enumerate(group.ranks)}
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.is_initialized = lambda: True
    torch.cuda.current_device = lambda: asked["rank"]
    torch.cuda.set_device = lambda _: None


def main(asked: dict[str, Any]) -> None:
    """Make the communicators, suspend and resume, and say what happened."""
    rank = asked["rank"]
    library = ctypes.CDLL(asked["library"])
    library.fake_comm.restype = ctypes.c_void_p
    groups, made = [], []
    for name, ranks, kind in asked["communicators"]:
        if rank not in ranks or [rank, name] in asked.get("lacks", []):
            continue
        size = 0 if name in asked.get("without_cumem", []) else 480 * MIB
        pointer = library.fake_comm(name.encode(), ranks.index(rank), len(ranks), ctypes.c_ulonglong(size))
        group = Group(name, ranks, pointer if kind == "torch" else 0)
        groups.append(group)
        if kind != "torch":
            made.append((kind, PyNcclCommunicator(library, group, pointer, name)))
    if "port" in asked:
        join_real_torch(asked, groups)
        print(json.dumps(run(asked, {name: one for name, one in made if name != "pynccl"})), flush=True)
        return
    groups += [Group("gloo", list(range(asked["size"])), None, "gloo"), Group("unused", list(range(asked["size"])), 0)]
    if rank % 2:
        groups.reverse()  # the order of discovery is not the order of suspending
    torch_without_gpus(asked, groups)
    held = CustomAllreduce(asked["custom_all_reduce"][rank]) if "custom_all_reduce" in asked else None
    if asked.get("frozen"):
        gc.freeze()
    print(json.dumps(run(asked, {name: one for name, one in made if name != "pynccl"})), flush=True)
    del held


def run(asked: dict[str, Any], named: dict[str, object]) -> dict[str, object]:
    """Suspend and resume as often as asked."""
    from torpor.launcher import NcclCommunicators

    told: list[str] = []
    reasons = [text for rank, text in asked.get("refusals", []) if rank == asked["rank"]]
    if asked["rank"] in asked.get("absent", []):
        return {"told": told, "error": "", "seconds": 0.0}
    ranks = NcclCommunicators(
        named=lambda: named,
        refusals=lambda: reasons,
        tell=told.append,
        arrival_s=asked["arrival_s"],
        call_s=asked["call_s"],
    )
    began, error = time.monotonic(), ""
    try:
        for _ in range(asked.get("times", 1)):
            ranks.check()
            ranks.suspend()
            ranks.suspend()
            ranks.resume()
            ranks.resume()
        if asked["rank"] not in asked.get("leaves", [asked["rank"]]):
            ranks.suspend()
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
    return {"told": told, "error": error, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    os.environ["RANK"] = str(given["rank"])
    ctypes.CDLL(None).setenv(b"RANK", str(given["rank"]).encode(), 1)
    main(given)
    sys.stdout.flush()
    os._exit(0)  # a call that hangs keeps its thread
