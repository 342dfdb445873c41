"""Which GPUs each replica of a snapshot gets, and what the driver is told about it: pure functions of what was seen.

Each replica needs a GPU of its own for every GPU that the engine used at the capture, of the same kind and with enough free memory.
Replicas go to the GPUs with the fewest of them, those of other commands counted (`torpor.snapshots.gpu.claims`), and of these to
the one with the most free memory. Where two have as much, in whole GiB, a GPU is taken by whoever used it at the capture: then the
driver has nothing to move. Next comes the GPU with the same number, so that ranks keep their order on another machine.

The driver is told a GPU here for every GPU that the processes could see at the capture, also for those that they did not use
(`CUcheckpointGpuPair`). Measured with driver 580.159 on two H200: a list with the used GPU alone is refused
(CUDA_ERROR_INVALID_VALUE), also if the process was started with CUDA_VISIBLE_DEVICES=0. So this module completes the list.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from torpor.snapshots.gpu.claims import claimed
from torpor.snapshots.gpu.driver import look
from torpor.snapshots.store.gpu_state import different_gpus, driver_major

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torpor.snapshots.gpu.driver import Driver, GpuUse
    from torpor.snapshots.store.gpu_state import Gpu

__all__ = ["FIRST_MOVING_DRIVER", "GpuMap", "GpuPlace", "Placement", "only_gpus", "placed", "placed_here"]

FIRST_MOVING_DRIVER = 580
"""The first driver that restores onto another GPU (release notes of CUDA 13.0: `cuda-checkpoint` takes pairs of UUIDs)."""

_MIB = 1 << 20
_GIB = 1 << 30


class GpuPlace(NamedTuple):
    """A GPU of this machine.

    Attributes:
        number: in the driver's order, from 0; `nvidia-smi` shows it.
        uuid: from the driver.
        name: e.g. `NVIDIA H200`.
    """

    number: int
    uuid: str
    name: str

    def __str__(self) -> str:
        return f"GPU {self.number} ({self.name}, {self.uuid})"


def only_gpus(count: int) -> tuple[GpuPlace, ...]:
    """All GPUs of this machine or container, if there are exactly so many; else empty, as CUDA chooses among them."""
    gpus = look().gpus if count else ()
    if len(gpus) != count:
        return ()
    return tuple(GpuPlace(number, gpu.uuid, gpu.name) for number, gpu in enumerate(gpus))


class GpuMap(NamedTuple):
    """Where the GPUs of one replica come back.

    Attributes:
        places: by UUID of each GPU that it used at the capture, its GPU here.
        pairs: what the driver is told: the UUIDs of every GPU that it could see then, and of its GPU now. Empty if all are the
            same and the driver has nothing to move, which drivers before 580 can do, too.
    """

    places: Mapping[str, GpuPlace]
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def gpus(self) -> tuple[GpuPlace, ...]:
        """Its GPUs here, in the order of those that it used at the capture."""
        return tuple(self.places.values())


class Placement(NamedTuple):
    """The GPUs of all replicas, or why there is no room.

    Attributes:
        maps: one for each replica; empty if there is a reason.
        reasons: a sentence each.
    """

    maps: tuple[GpuMap, ...]
    reasons: tuple[str, ...] = ()


def placed(
    seen_then: Sequence[Gpu],
    needed: Mapping[str, int],
    driver: Driver,
    *,
    replicas: int = 1,
    chosen: Sequence[str] = (),
    occupied: Sequence[str] = (),
) -> Placement:
    """Give each replica its GPUs.

    Args:
        seen_then: every GPU that the engine could see at the capture, in the driver's order.
        needed: bytes that one replica needs, by UUID of each GPU that the engine used.
        driver: the GPUs here, and their free memory.
        replicas: how many.
        chosen: UUIDs of the GPUs that may be taken; by default all. If there are as many as all replicas use together, they are
            taken in this order.
        occupied: UUIDs of the GPUs that other replicas of the same command have, one for each replica.
    """
    reasons = tuple(different_gpus(seen_then, driver.gpus))
    search = _Search(seen_then, needed, driver, chosen, occupied)
    reasons = reasons or tuple(search.against(replicas))
    if reasons:
        return Placement((), reasons)
    found = search.in_order(replicas) if search.ordered(replicas) else search.by_memory(replicas)
    if len(found) < replicas:
        return Placement((), tuple(search.lacking(replicas, len(found))))
    return Placement(tuple(map(search.completed, found)))


def placed_here(
    made_on: str,
    seen_then: Sequence[Gpu],
    needed: Mapping[str, int],
    *,
    replicas: int = 1,
    chosen: Sequence[str] = (),
    occupied: Sequence[str] = (),
) -> Placement:
    """Ask the driver and what other commands of this user have claimed, and give each replica its GPUs.

    Args:
        made_on: version of the driver at the capture. One of the same major version fits.
        seen_then: see `placed`, as the others.
        needed: see there.
        replicas: see there.
        chosen: see there.
        occupied: see there.
    """
    driver, others = look(), claimed()
    taken = [uuid for uuid, one in others.items() for _ in range(one.replicas)]
    uses = tuple(
        replace(use, reserved_bytes=others[use.gpu.uuid].reserved) if use.gpu.uuid in others else use
        for use in driver.uses
    )
    driver = replace(driver, uses=uses)
    found = placed(seen_then, needed, driver, replicas=replicas, chosen=chosen, occupied=[*occupied, *taken])
    if driver_major(made_on) == driver.major:
        return found
    other = f"it was made on NVIDIA driver {made_on or 'none'}; here it is {driver.version or 'none'}, another major version"
    return Placement((), (other, *found.reasons))


_Taken = dict[str, int]
"""By UUID of a GPU that the engine used, the index of the GPU here."""


class _Search:
    """What the steps of `placed` share; arguments as there."""

    def __init__(
        self,
        seen_then: Sequence[Gpu],
        needed: Mapping[str, int],
        driver: Driver,
        chosen: Sequence[str],
        occupied: Sequence[str],
    ) -> None:
        self._seen_then = seen_then
        self._used = [gpu for gpu in seen_then if gpu.uuid in needed]
        self._needed = needed
        self._driver = driver
        self._uses = driver.uses
        self._index = {use.gpu.uuid: at for at, use in enumerate(driver.uses)}
        self._chosen = [self._index[uuid] for uuid in chosen if uuid in self._index]
        self._lost = [uuid for uuid in chosen if uuid not in self._index]
        self._pool = self._chosen or list(range(len(driver.uses)))
        self._occupied = [self._index[uuid] for uuid in occupied if uuid in self._index]
        self._moves = driver.major >= FIRST_MOVING_DRIVER

    def against(self, replicas: int) -> Iterator[str]:
        """Reasons that have nothing to do with free memory."""
        same = [gpu.uuid for gpu in self._seen_then] == [gpu.uuid for gpu in self._driver.gpus]
        if not self._moves and not (same and all(self._index[gpu.uuid] in self._pool for gpu in self._used)):
            yield (
                f"it has to move to other GPUs than those of its capture, which takes driver {FIRST_MOVING_DRIVER} or newer; this "
                f"machine has {self._driver.version}"
            )
            return
        yield from (f"the chosen GPU {uuid} is no longer in this machine" for uuid in self._lost)
        kinds = {gpu.kind for gpu in self._used}
        for at in self._chosen:
            if kinds and self._uses[at].gpu.kind not in kinds:
                yield f"the chosen {self._place(at)} is not of a kind that it used: {', '.join(sorted(map(str, self._used)))}"
        if self._used and len(self._pool) < len(self._used):
            yield f"one replica uses {len(self._used)} GPUs, and {len(self._pool)} of this machine's were chosen for {replicas}"

    def ordered(self, replicas: int) -> bool:
        """Whether the chosen GPUs are exactly those that the replicas take, in this order."""
        return self._moves and len(self._chosen) == len(self._used) * replicas > 0

    def in_order(self, replicas: int) -> list[_Taken]:
        """The chosen GPUs, one after the other; fewer replicas if one does not fit."""
        found: list[_Taken] = []
        for number in range(replicas):
            part = self._chosen[number * len(self._used) : (number + 1) * len(self._used)]
            pairs = list(zip(self._used, part, strict=True))
            fits = (
                gpu.kind == self._uses[at].gpu.kind and self._needed[gpu.uuid] <= self._uses[at].room_bytes
                for gpu, at in pairs
            )
            if not all(fits):
                break
            found.append({gpu.uuid: at for gpu, at in pairs})
        return found

    def by_memory(self, replicas: int) -> list[_Taken]:
        """As many replicas as fit: spread first; if too few fit that way, the GPU with the most free memory first."""
        spread = self._greedy(replicas, spread=True)
        return spread if len(spread) == replicas else max(spread, self._greedy(replicas, spread=False), key=len)

    def _greedy(self, replicas: int, *, spread: bool) -> list[_Taken]:
        free = {at: self._uses[at].room_bytes for at in self._pool}
        count = {at: self._occupied.count(at) for at in self._pool}
        found: list[_Taken] = []
        for _ in range(replicas):
            if (taken := self._one(free, count, spread=spread)) is None:
                break
            found.append(taken)
            for uuid, at in taken.items():
                free[at] -= self._needed[uuid]
                count[at] += 1
        return found

    def _one(self, free: Mapping[int, int], count: Mapping[int, int], *, spread: bool) -> _Taken | None:
        """GPUs for one more replica; those that need most choose first."""
        taken: _Taken = {}
        for gpu in sorted(self._used, key=lambda gpu: -self._needed[gpu.uuid]):
            fitting = [
                at for at in self._candidates(gpu) if at not in taken.values() and free[at] >= self._needed[gpu.uuid]
            ]
            if not fitting:
                return None
            taken[gpu.uuid] = min(fitting, key=lambda at: self._rank(gpu, at, free[at], count[at] if spread else -1))
        return {gpu.uuid: taken[gpu.uuid] for gpu in self._used}

    def _candidates(self, gpu: Gpu) -> list[int]:
        if not self._moves:
            return [self._index[gpu.uuid]]
        return [at for at in self._pool if self._uses[at].gpu.kind == gpu.kind]

    def _rank(self, gpu: Gpu, at: int, free: int, count: int) -> tuple[int, int, bool, bool, int]:
        """The least is taken; `count` -1 leaves only the free memory to decide, in bytes."""
        rounded = free if count < 0 else free // _GIB
        return count, -rounded, self._uses[at].gpu.uuid != gpu.uuid, self._seen_then.index(gpu) != at, at

    def lacking(self, replicas: int, fitting: int) -> Iterator[str]:
        """How many replicas fit, and what each GPU has."""
        each = " and ".join(f"{_mib(self._needed[gpu.uuid])} on one GPU" for gpu in self._used)
        room = f"only {fitting} of {replicas} replicas fit" if replicas > 1 else "it does not fit"
        yield f"{room}: one needs {each} of kind {', '.join(sorted({str(gpu) for gpu in self._used}))}"
        least = min((self._needed[gpu.uuid] for gpu in self._used), default=0)
        kinds = {gpu.kind for gpu in self._used}
        for at in dict.fromkeys(self._pool):
            use = self._uses[at]
            if use.gpu.kind in kinds:
                yield f"{self._place(at)} has {_mib(use.room_bytes)} free{_short(use, least)}{_held(use)}"

    def completed(self, taken: _Taken) -> GpuMap:
        """With a GPU for each one that the engine could see but did not use: the same one if it is left, else one of its kind."""
        whole = dict(taken)
        rest = [gpu for gpu in self._seen_then if gpu.uuid not in taken]
        for gpu in rest:
            if (at := self._index.get(gpu.uuid)) is not None and at not in whole.values():
                whole[gpu.uuid] = at
        for gpu in rest:
            if gpu.uuid not in whole:
                whole[gpu.uuid] = next(
                    at for at, use in enumerate(self._uses) if at not in whole.values() and use.gpu.kind == gpu.kind
                )
        pairs = tuple((gpu.uuid, self._uses[whole[gpu.uuid]].gpu.uuid) for gpu in self._seen_then)
        unmoved = [old for old, _ in pairs] == [gpu.uuid for gpu in self._driver.gpus]
        if unmoved and all(old == new for old, new in pairs):
            pairs = ()
        return GpuMap({uuid: self._place(at) for uuid, at in taken.items()}, pairs)

    def _place(self, at: int) -> GpuPlace:
        gpu = self._uses[at].gpu
        return GpuPlace(at, gpu.uuid, gpu.name)


def _mib(size: int) -> str:
    return f"{-(-size // _MIB)} MiB"


def _short(use: GpuUse, wanted: int) -> str:
    missing = wanted - use.room_bytes
    return f", {_mib(missing)} too little for one replica" if missing > 0 else ""


def _held(use: GpuUse) -> str:
    holders = ", ".join(f"pid {pid} {size // _MIB} MiB" for pid, size in use.held_bytes.items())
    starts = ", ".join(f"pid {pid} {_mib(size)}" for pid, size in use.reserved_bytes.items())
    return (f"; held by {holders}" if holders else "") + (f"; about to be taken by {starts}" if starts else "")
