"""`NcclCommunicators`: an engine's ranks let go of each other's GPU memory for a sleep and take it back at the wake.

Without it the checkpoint of an engine on several GPUs succeeds and its restore fails. Before anything happens all ranks report
which communicators they have and what prevents a suspend; only if all agree, each suspends its communicators, all of them in
one order. What NCCL says of each afterwards proves it. Every wait has a deadline, and an error names rank, GPU and communicator.

    ranks = NcclCommunicators(named=lambda: {"tp:0": group.pynccl_comm}, tell=log)
    ranks.suspend()     # after the engine released its memory, on every rank
    ranks.resume()      # before the engine takes it back, on every rank

One process alone has nothing to suspend, and both calls return at once.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Protocol, cast

from torpor.engine_patches.nccl_communicators import PYNCCL, objects_of, pynccl_communicators, torch_communicators
from torpor.engine_patches.nccl_versions import nccl_too_old
from torpor.engine_patches.peer_memory import PEER_MEMORY, peer_memory
from torpor.engine_patches.rank_exchange import all_ranks, gpu_name, rank_name, reasons_of, within
from torpor.errors import GpuSnapshotError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torpor.engine_patches.nccl_communicators import Communicator
    from torpor.engine_patches.rank_exchange import RankExchange

__all__ = ["NcclCommunicators"]

_CUMEM = "NCCL_CUMEM_ENABLE"
_MIB = 1 << 20


class NcclCommunicators:
    """All NCCL communicators of this process; one object for the life of the process.

    Args:
        named: returns the engine's PyNccl objects by name, e.g. `{"tp:0": group.pynccl_comm}`; those that it leaves out are
            found as well, but have no name of their own.
        refusals: returns further reasons why this rank must not sleep, e.g. settings that the engine resolved otherwise.
        tell: gets one line for each suspend and resume.
        arrival_s: seconds to wait for the other ranks, which release their memory meanwhile.
        call_s: seconds that one communicator may take.
    """

    def __init__(
        self,
        *,
        named: Callable[[], Mapping[str, object]] = dict,
        refusals: Callable[[], Iterable[str]] = tuple,
        tell: Callable[[str], None] = print,
        arrival_s: float = 100.0,
        call_s: float = 30.0,
    ) -> None:
        self._named = named
        self._refusals = refusals
        self._tell = tell
        self._arrival_s = arrival_s
        self._call_s = call_s
        self._asleep: list[Communicator] = []
        self._checked: list[Communicator] | None = None

    def check(self) -> None:
        """Say what prevents a suspend, on any rank, before the engine releases anything.

        Raises:
            GpuSnapshotError: names each rank and its reason; raised on every rank.
        """
        if (ranks := all_ranks()) is not None and not self._asleep:
            self._checked = self._look(ranks)

    def suspend(self) -> None:
        """Suspend all communicators; every rank calls it, with the engine idle. A second call does nothing.

        After a `check` it takes those that were found there: what an engine does to release its memory makes no new ones.

        Raises:
            GpuSnapshotError: raised on every rank. Nothing is suspended then, or what was suspended on all of its ranks is
                resumed again.
        """
        if (ranks := all_ranks()) is None or self._asleep:
            return
        if (found := self._checked) is None:
            found = self._look(ranks)
        else:
            self._checked = None
            self._agree(ranks, "The ranks are not ready to let go of each other's GPU memory", "")
        started = time.perf_counter()
        failure = self._each(found, asleep=True)
        if failed := self._failures(ranks, failure):
            self._undo(ranks)
            raise GpuSnapshotError(f"NCCL's communicators cannot be suspended: {failed}")
        stays = sum(one.calls.stats().stays for one in found)
        freed = sum(one.calls.stats().suspendable for one in found)
        self._tell(
            f"{rank_name()}: {len(found)} NCCL communicators suspended in {time.perf_counter() - started:.3f} s "
            f"({', '.join(one.name for one in found) or 'none'}): {freed // _MIB} MiB freed, {stays // _MIB} MiB stay"
        )

    def resume(self) -> None:
        """Resume what `suspend` suspended; every rank calls it, before anything uses NCCL.

        It is not overlapped with the engine's own resume, although that would save up to the shorter of the two. NCCL wants an
        idle engine on every rank (a barrier inside), and the synchronization before and after proves it. Beside an engine that
        moves its weights to the GPU, it would prove nothing, or wait for the transfer. Both take GPU memory, so an engine that runs
        out of it on one rank would leave the others in NCCL's barrier until its deadline.

        Raises:
            GpuSnapshotError: raised on every rank; the engine cannot serve and has to be ended.
        """
        if (ranks := all_ranks()) is None or not self._asleep:
            return
        started, names = time.perf_counter(), len(self._asleep)
        self._agree(ranks, "NCCL's communicators cannot be resumed", "")
        failure = self._each(list(self._asleep), asleep=False)
        if failed := self._failures(ranks, failure):
            raise GpuSnapshotError(f"NCCL's communicators cannot be resumed: {failed}. The engine cannot serve.")
        self._tell(f"{rank_name()}: {names} NCCL communicators resumed in {time.perf_counter() - started:.3f} s")

    def _look(self, ranks: RankExchange) -> list[Communicator]:
        """This rank's communicators in the order of all ranks, if no rank has a reason against it."""
        found: list[Communicator] = []
        reasons = []
        try:
            objects = objects_of({PYNCCL, *PEER_MEMORY})
            found = sorted([*torch_communicators(), *pynccl_communicators(objects, self._named())], key=_order)
            reasons = [f"{what} holds memory of other GPUs" for what in peer_memory(objects)]
            reasons += [*self._refusals(), *_obstacles(found)]
        except Exception as error:  # the other ranks wait for a report
            reasons.append(f"{type(error).__name__}: {error}")
        report: dict[str, object] = {"reason": "; ".join(reasons), "communicators": [_listing(one) for one in found]}
        reports = self._collected(ranks, report)
        if failed := reasons_of(reports, ranks.size) or _differences(reports):
            raise GpuSnapshotError(f"The ranks cannot let go of each other's GPU memory: {failed}")
        return found

    def _each(self, communicators: list[Communicator], *, asleep: bool) -> str:
        """Suspend or resume each communicator until one fails; return what failed, or an empty text."""
        name, began = "the GPU", time.monotonic()
        if not communicators:
            return ""
        try:
            self._on_device(lambda cuda: cuda.synchronize())
            for one in communicators:
                name, began = one.name, time.monotonic()
                self._on_device(lambda _, one=one: one.calls.suspend() if asleep else one.calls.resume())  # type: ignore[misc]
                if bool(one.calls.stats().suspended) != asleep:
                    return (
                        f"{name}: NCCL reports success, and yet it is {'still active' if asleep else 'still suspended'}"
                    )
                (self._asleep.append if asleep else self._asleep.remove)(one)
            self._on_device(lambda cuda: cuda.synchronize())
        except TimeoutError:
            return f"{name}: not done after {time.monotonic() - began:.0f} s; another of its ranks did not take part"
        except Exception as error:
            return f"{name}: {error}"
        return ""

    def _on_device(self, act: Callable[[_Cuda], object]) -> None:
        """Run a call that may wait for other ranks in a thread, with this process's GPU as the current one.

        A new thread has GPU 0. NCCL would make that one current again after its call, which creates a context on it.
        """
        cuda = _cuda()
        device = cuda.current_device()

        def there() -> None:
            cuda.set_device(device)
            act(cuda)

        within(self._call_s, there)

    def _failures(self, ranks: RankExchange, failure: str) -> str:
        """All ranks' failures as one text; empty if there is none."""
        return reasons_of(self._collected(ranks, {"reason": failure}), ranks.size)

    def _undo(self, ranks: RankExchange) -> None:
        """Resume what is suspended on every rank that has it, so that the engine can go on if it outlives the error."""
        done = self._collected(ranks, {"done": [_listing(one) for one in self._asleep]})
        lists = {rank: _listed(report, "done") for rank, report in done.items()}
        whole = [
            one
            for one in self._asleep
            if all(_listing(one) in lists.get(rank, []) for rank in one.ranks or range(ranks.size))
        ]
        if len(done) == ranks.size and (left := self._each(whole, asleep=False)):
            self._tell(f"{rank_name()}: {left}; it stays suspended")

    def _agree(self, ranks: RankExchange, what: str, reason: str) -> None:
        if failed := reasons_of(self._collected(ranks, {"reason": reason}), ranks.size):
            raise GpuSnapshotError(f"{what}: {failed}")

    def _collected(self, ranks: RankExchange, report: dict[str, object]) -> dict[int, object]:
        return ranks.collect({**report, "gpu": gpu_name()}, timeout_s=self._arrival_s)


def _order(one: Communicator) -> tuple[str, tuple[int, ...]]:
    return one.order


def _obstacles(found: list[Communicator]) -> list[str]:
    """Why these communicators cannot be suspended."""
    reasons = []
    for library in {one.library.name: one.library for one in found if one.library}.values():
        old = nccl_too_old(library.version())
        if old or not library.can_suspend():
            reasons.append(f"{library.name}: {old or 'this build of NCCL lacks ncclCommSuspend'}")
    if reasons:
        return reasons
    names = [one.name for one in found if not one.calls.stats().suspendable]
    if names:
        set_to = os.environ.get(_CUMEM, "not set")
        reasons.append(
            f"NCCL took the memory of {', '.join(names)} without cuMem and cannot let go of it: {_CUMEM} has to be 1 before the "
            f"engine starts, and is {set_to} in this process"
        )
    return reasons


def _differences(reports: dict[int, object]) -> str:
    """Communicators that a member of theirs does not have."""
    parts = []
    have = {rank: _listed(report, "communicators") for rank, report in reports.items()}
    for rank, communicators in sorted(have.items()):
        for name, members in communicators:
            lack = [other for other in members if (name, members) not in have.get(other, [])]
            if lack:
                parts.append(f"rank {rank} has the communicator {name}, and rank {lack[0]}, a member of it, has none")
    return "; ".join(parts)


def _listing(one: Communicator) -> tuple[str, list[int]]:
    return one.name, list(one.ranks)


def _listed(report: object, key: str) -> list[tuple[str, list[int]]]:
    """A rank's communicators. JSON has made lists of their pairs."""
    found = cast("dict[str, list[tuple[str, list[int]]]]", report)[key]
    return [(name, members) for name, members in found]


class _Cuda(Protocol):
    def synchronize(self) -> None: ...
    def current_device(self) -> int: ...
    def set_device(self, device: int) -> None: ...


class _Torch(Protocol):
    cuda: _Cuda


def _cuda() -> _Cuda:
    return cast("_Torch", sys.modules["torch"]).cuda
