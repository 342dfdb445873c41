"""Finds every NCCL communicator of this process that other GPUs take part in.

    torch     the process groups of `torch.distributed`, all of them and for all of their devices (SGLang, vLLM)
    PyNccl    objects of the class `PyNcclCommunicator`, which SGLang and vLLM use inside CUDA graphs: those that the engine
              names, and every other one that the garbage collector sees

A communicator gets a name that is the same on all of its ranks: torch's name of the group; for PyNccl the engine's name and
the first digits of the hash of NCCL's unique id.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from torpor.engine_patches.nccl_library import MemoryStats, NcclLibrary, loaded_nccl

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

__all__ = ["PYNCCL", "Communicator", "objects_of", "pynccl_communicators", "torch_communicators"]

PYNCCL = "PyNcclCommunicator"
"""The class of SGLang's and vLLM's own communicators."""

_DIGITS = 8


class Calls(Protocol):
    """How one communicator is suspended and resumed."""

    def suspend(self) -> None:
        """Free its memory; waits for its other ranks."""

    def resume(self) -> None:
        """Take the memory back; waits for its other ranks."""

    def stats(self) -> MemoryStats:
        """Its memory on this GPU."""


@dataclass(frozen=True)
class Communicator:
    """One NCCL communicator.

    Args:
        name: the same on all of its ranks.
        ranks: its members, in torch's world; empty if they are not known.
        calls: what acts on it.
        library: the library that it belongs to; None if only torch's own methods reach it.
    """

    name: str
    ranks: tuple[int, ...]
    calls: Calls
    library: NcclLibrary | None = None

    @property
    def order(self) -> tuple[str, tuple[int, ...]]:
        """What communicators are sorted by: every rank has those that it shares with another one in the same order."""
        return self.name, self.ranks


class _ByPointer:
    """By NCCL's own calls."""

    def __init__(self, library: NcclLibrary, pointer: int) -> None:
        self._library, self._pointer = library, pointer

    def suspend(self) -> None:
        self._library.suspend(self._pointer)

    def resume(self) -> None:
        self._library.resume(self._pointer)

    def stats(self) -> MemoryStats:
        return self._library.stats(self._pointer)


class _ByBackend:
    """By torch's methods, which torch 2.13 and later have (pytorch#176300)."""

    def __init__(self, backend: _Backend) -> None:
        self._backend = backend

    def suspend(self) -> None:
        self._backend.suspend()

    def resume(self) -> None:
        self._backend.resume()

    def stats(self) -> MemoryStats:
        found = self._backend.memory_stats()
        return MemoryStats(*(found[key] for key in ("suspend", "suspended", "persist", "total")))


def torch_communicators() -> list[Communicator]:
    """The communicators of torch's process groups. A group that was never used on a GPU has none yet.

    NCCL's own calls are used wherever torch tells the communicator's address, because they let a deadline hold: torch's methods
    may keep the interpreter while they wait.

    Raises:
        GpuSnapshotError: a group has a communicator, and the NCCL that torch uses is not found.
        AttributeError: torch has neither the address nor the methods.
    """
    distributed = cast("_Distributed | None", sys.modules.get("torch.distributed"))
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return []
    found = []
    for group in list(distributed.distributed_c10d._world.pg_map):  # noqa: SLF001 - torch 2.9 to 2.14 have no public list
        ranks = tuple(distributed.get_process_group_ranks(group))
        if len(ranks) < 2:  # noqa: PLR2004 - nobody else's memory
            continue
        for device in group._device_types:  # noqa: SLF001
            backend = group._get_backend(device)  # noqa: SLF001
            if "nccl" not in backend.name().lower():
                continue
            name = f"torch group {group.group_name}"
            if not hasattr(backend, "_comm_ptr"):
                found.append(Communicator(name, ranks, _ByBackend(backend)))
            elif pointer := backend._comm_ptr():  # noqa: SLF001
                library = loaded_nccl()
                found.append(Communicator(name, ranks, _ByPointer(library, pointer), library))
    return found


def pynccl_communicators(objects: Iterable[object], named: Mapping[str, object]) -> list[Communicator]:
    """The communicators of PyNccl objects.

    Args:
        objects: objects of the process, those of other classes are left out.
        named: those that the engine knows, by a name that is the same on all ranks; e.g. `{"tp:0": group.pynccl_comm}`.
    """
    names = {id(one): f" {name}" for name, one in named.items()}
    known = {id(one): one for one in named.values() if one is not None}
    known |= {id(one): one for one in objects if type(one).__name__ == PYNCCL}
    found = []
    for key, one in known.items():
        comm = cast("_PyNccl", one)
        if not getattr(comm, "available", False) or comm.world_size < 2 or not hasattr(comm, "comm"):  # noqa: PLR2004
            continue
        digest = hashlib.sha256(bytes(comm.unique_id.internal)).hexdigest()[:_DIGITS]
        library = NcclLibrary(ctypes.CDLL(comm.nccl.lib._name))  # noqa: SLF001 - the library that made the communicator
        pointer = comm.comm if isinstance(comm.comm, int) else (comm.comm.value or 0)
        name = f"pynccl{names.get(key, '')} {digest}"
        found.append(Communicator(name, _ranks_of(comm), _ByPointer(library, pointer), library))
    return found


def objects_of(class_names: Collection[str]) -> list[object]:
    """Every object of the process whose class has one of these names, also those that an engine froze (`gc.freeze`)."""
    frozen = gc.get_freeze_count() > 0
    if frozen:
        gc.unfreeze()
    try:
        return [one for one in gc.get_objects() if type(one).__name__ in class_names]
    finally:
        if frozen:
            gc.freeze()


def _ranks_of(comm: _PyNccl) -> tuple[int, ...]:
    """The members of a PyNccl communicator; none for a group that torch does not know."""
    distributed = cast("_Distributed | None", sys.modules.get("torch.distributed"))
    try:
        return tuple(distributed.get_process_group_ranks(comm.group)) if distributed else ()
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return ()


class _Backend(Protocol):
    def name(self) -> str: ...
    def suspend(self) -> None: ...
    def resume(self) -> None: ...
    def memory_stats(self) -> dict[str, int]: ...
    def _comm_ptr(self) -> int: ...


class _Group(Protocol):
    group_name: str
    _device_types: list[object]

    def _get_backend(self, device: object) -> _Backend: ...


class _World(Protocol):
    pg_map: dict[_Group, object]


class _C10d(Protocol):
    _world: _World


class _Distributed(Protocol):
    distributed_c10d: _C10d

    def is_available(self) -> bool: ...
    def is_initialized(self) -> bool: ...
    def get_process_group_ranks(self, group: object) -> list[int]: ...


class _UniqueId(Protocol):
    internal: ctypes.Array[ctypes.c_byte]


class _Loaded(Protocol):
    lib: ctypes.CDLL


class _PyNccl(Protocol):
    available: bool
    world_size: int
    comm: ctypes.c_void_p | int
    unique_id: _UniqueId
    nccl: _Loaded
    group: object
