"""Measures this process's GPU memory before and after a release, and refuses a sleep that freed nothing.

SGLang answers a release with 200 whatever its memory saver did: without the saver's library, or with a flag that switches it off,
all memory stays on the GPU, and a snapshot of it holds weights and KV cache.

The driver tells what each process uses, where it knows this one; then what other processes do meanwhile does not count. Otherwise
the whole card's free memory is compared, and the log says why.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from torpor.launcher import Patch, rank_name
from torpor_sglang.own_memory import OwnMemory, own_memory
from torpor_sglang.patches.handlers import RELEASE, around_handler
from torpor_sglang.places import FREES_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PATCH", "FreedMemory"]


class _Properties(Protocol):
    uuid: object


class _Cuda(Protocol):
    def mem_get_info(self) -> tuple[int, int]: ...
    def current_device(self) -> int: ...
    def get_device_properties(self, device: int) -> _Properties: ...


class _Torch(Protocol):
    cuda: _Cuda


class _Measured(NamedTuple):
    """Bytes free on the card, and what the driver tells of this process."""

    free: int
    own: OwnMemory


class FreedMemory:
    """This process's GPU memory before a release, and the comparison after it.

    Args:
        free: returns the free bytes of this process's GPU.
        own: returns what the driver tells of this process.
        rank: returns this rank and its GPU, or an empty text.
        tell: gets one line for each release.
    """

    def __init__(
        self,
        *,
        free: Callable[[], int],
        own: Callable[[], OwnMemory],
        rank: Callable[[], str] = str,
        tell: Callable[[str], None] = print,
    ) -> None:
        self._free = free
        self._own = own
        self._rank = rank
        self._tell = tell
        self._before: _Measured | None = None

    def note(self) -> None:
        """Measure; call it before a release."""
        self._before = self._measured()

    def compare(self) -> None:
        """Measure again; call it after the release.

        Raises:
            RuntimeError: nothing was freed; the engine must not be captured.
        """
        before, after = self._before, self._measured()
        assert before is not None, "note comes first"
        where = self._rank() or "the engine"
        if before.own.used is not None and after.own.used is not None:
            freed, of = before.own.used - after.own.used, "by the driver's figures of this process"
            seen = f"it had {before.own.used} bytes before it, and has {after.own.used} now"
        else:
            freed, of = after.free - before.free, f"of the whole card: {before.own.why or after.own.why}"
            seen = f"{before.free} bytes were free before it, {after.free} are now, {of}"
        if freed <= 0:
            raise RuntimeError(
                f"{where}: the sleep freed nothing on the GPU ({seen}). Check that torch_memory_saver works there"
                f"{'' if of.startswith('by') else ', and that no other process took memory of the card in that moment'}; or set "
                "SGLang.memory_saver=False to do without."
            )
        self._tell(f"{where}: the sleep freed {freed / 1e9:.2f} GB, {of}")

    def _measured(self) -> _Measured:
        return _Measured(self._free(), self._own())


def _cuda() -> _Cuda:
    return cast("_Torch", sys.modules["torch"]).cuda


def _free() -> int:
    return _cuda().mem_get_info()[0]


def _own() -> OwnMemory:
    cuda = _cuda()
    try:
        uuid = str(cuda.get_device_properties(cuda.current_device()).uuid)
    except (AttributeError, RuntimeError) as error:
        return OwnMemory(None, f"torch does not name the GPU ({error})")
    return own_memory(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")


def _tell(line: str) -> None:
    print(f"torpor_sglang: {line}", file=sys.stderr, flush=True)


def _apply() -> None:
    memory = FreedMemory(free=_free, own=_own, rank=rank_name, tell=_tell)
    around_handler(RELEASE, before=lambda _: memory.note(), after=lambda _: memory.compare())


PATCH = Patch(
    name="freed-memory",
    reason="SGLang says that it sleeps even if its memory saver released nothing; a snapshot then holds the GPU's whole memory",
    versions=("0.5.16",),
    applies=lambda: FREES_VARIABLE in os.environ,
    apply=_apply,
)
