"""Ranks tell each other how far they are, each wait with a deadline.

A collective call in which one rank is missing hangs on all the others. So ranks report first, through torch's own store, and
go on only together. The store is a key-value server in rank 0, which the ranks used when they found each other; unlike a
collective it says which rank is missing.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from torpor.errors import GpuSnapshotError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RankExchange", "Store", "all_ranks", "gpu_name", "rank_name", "reasons_of", "together", "within"]

_T = TypeVar("_T")
_LOOK_S = 0.005
_MARGIN_S = 5.0


class Store(Protocol):
    """What is used of torch.distributed.Store."""

    def set(self, key: str, value: str) -> None:
        """Keep a value."""

    def get(self, key: str) -> bytes:
        """Return a value that is there."""

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""


class RankExchange:
    """Collects a report of every rank.

    Args:
        store: shared by all ranks.
        rank: this process's rank.
        size: number of ranks.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._round = 0

    def collect(self, report: object, *, timeout_s: float) -> dict[int, object]:
        """Give this rank's report and collect those of the others; every rank calls it as often as the others.

        Args:
            report: anything that JSON can hold.
            timeout_s: seconds to wait for the other ranks.

        Returns:
            The reports by rank. A rank that gave none in time is missing.

        Raises:
            GpuSnapshotError: the store itself does not answer.
        """
        self._round += 1
        try:
            return within(timeout_s + _MARGIN_S, lambda: self._collect(report, time.monotonic() + timeout_s))
        except TimeoutError:
            raise GpuSnapshotError(
                f"rank 0, which holds the store of all ranks, did not answer rank {self.rank} within {timeout_s:g} s"
            ) from None
        except Exception as error:
            raise GpuSnapshotError(
                f"rank {self.rank} cannot reach the store of all ranks in rank 0: {type(error).__name__}: {error}"
            ) from error

    def _collect(self, report: object, deadline: float) -> dict[int, object]:
        self._store.set(self._key(self.rank), json.dumps(report))
        found: dict[int, object] = {self.rank: report}
        missing = [rank for rank in range(self.size) if rank != self.rank]
        while missing:
            for rank in [rank for rank in missing if self._store.check([self._key(rank)])]:
                found[rank] = json.loads(self._store.get(self._key(rank)))
                missing.remove(rank)
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_S if missing else 0)
        return found

    def _key(self, rank: int) -> str:
        return f"torpor/{self._round}/{rank}"


_EXCHANGES: list[RankExchange] = []
"""The one of this process: ranks count their rounds, so a second one would mix them up."""


def all_ranks() -> RankExchange | None:
    """The exchange among all ranks of torch's world; None where this process is the only one."""
    if not _EXCHANGES and (found := _new_exchange()) is not None:
        _EXCHANGES.append(found)
    return _EXCHANGES[0] if _EXCHANGES else None


def rank_name() -> str:
    """This rank and its GPU for messages, e.g. `rank 1 (GPU 1)`; empty where this process is the only one."""
    ranks = all_ranks()
    return f"rank {ranks.rank} ({gpu_name()})" if ranks else ""


def together(act: Callable[[], object], *, what: str, timeout_s: float) -> None:
    """Run `act` on this rank, and fail on every rank if it failed on one; every rank calls it.

    Args:
        act: what each rank does.
        what: what has failed then, for the message.
        timeout_s: seconds to wait for the other ranks after this one is done.

    Raises:
        GpuSnapshotError: names each rank that failed, its GPU and its reason. With one process alone `act` raises itself.
    """
    if (ranks := all_ranks()) is None:
        act()
        return
    failure: Exception | None = None
    try:
        act()
    except Exception as error:
        failure = error
    reason = "" if failure is None else f"{type(failure).__name__}: {failure}"
    if failed := reasons_of(ranks.collect({"reason": reason, "gpu": gpu_name()}, timeout_s=timeout_s), ranks.size):
        raise GpuSnapshotError(f"{what}: {failed}") from failure


def reasons_of(reports: dict[int, object], size: int) -> str:
    """What ranks report as their `reason`, with their `gpu`, and which ranks are missing; empty if there is nothing.

    Args:
        reports: what `RankExchange.collect` returned.
        size: number of ranks.
    """
    parts = []
    for rank in range(size):
        report = reports.get(rank)
        if not isinstance(report, dict):
            parts.append(f"rank {rank} gave no answer in time")
        elif reason := report.get("reason"):
            parts.append(f"rank {rank} ({report.get('gpu')}): {reason}")
    return "; ".join(parts)


def gpu_name() -> str:
    """This process's GPU for messages, e.g. `GPU 1`; on a CPU there is none."""
    torch = cast("_Torch | None", sys.modules.get("torch"))
    if torch is None or not torch.cuda.is_initialized():
        return "no GPU"
    return f"GPU {torch.cuda.current_device()}"


def _new_exchange() -> RankExchange | None:
    distributed = cast("_Distributed | None", sys.modules.get("torch.distributed"))
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    if (size := distributed.get_world_size()) == 1:
        return None
    store = distributed.distributed_c10d._get_default_store()  # noqa: SLF001 - torch 2.9 to 2.14 have no public name
    return RankExchange(store, distributed.get_rank(), size)


def within(timeout_s: float, act: Callable[[], _T]) -> _T:
    """Run `act` in a thread of its own and wait for it, with a deadline.

    A call that never returns keeps its thread: the process has to be ended then.

    Raises:
        TimeoutError: it has not ended in time.
    """
    results: list[_T] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            results.append(act())
        except BaseException as error:  # raised below
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True, name="torpor-within")
    thread.start()
    thread.join(timeout_s)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError(f"not done within {timeout_s:g} s")
    return results[0]


class _Cuda(Protocol):
    def is_initialized(self) -> bool: ...
    def current_device(self) -> int: ...


class _Torch(Protocol):
    cuda: _Cuda


class _C10d(Protocol):
    def _get_default_store(self) -> Store: ...


class _Distributed(Protocol):
    distributed_c10d: _C10d

    def is_available(self) -> bool: ...
    def is_initialized(self) -> bool: ...
    def get_world_size(self) -> int: ...
    def get_rank(self) -> int: ...
