"""Measures the GPU's free memory before and after a release, and refuses a sleep that freed nothing.

SGLang answers a release with 200 whatever its memory saver did: without the saver's library, or with a flag that switches it off,
all memory stays on the GPU, and a snapshot of it holds weights and KV cache.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol, cast

from torpor.launcher import Patch, rank_name
from torpor_sglang.patches.handlers import RELEASE, around_handler
from torpor_sglang.places import FREES_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PATCH", "FreedMemory"]


class _Cuda(Protocol):
    def mem_get_info(self) -> tuple[int, int]: ...


class _Torch(Protocol):
    cuda: _Cuda


class FreedMemory:
    """The GPU's free memory before a release, and the comparison after it.

    Args:
        free: returns the free bytes of this process's GPU.
        rank: returns this rank and its GPU, or an empty text.
        tell: gets one line for each release.
    """

    def __init__(
        self, *, free: Callable[[], int], rank: Callable[[], str] = str, tell: Callable[[str], None] = print
    ) -> None:
        self._free = free
        self._rank = rank
        self._tell = tell
        self._before = 0

    def note(self) -> None:
        """Measure; call it before a release."""
        self._before = self._free()

    def compare(self) -> None:
        """Measure again; call it after the release.

        Raises:
            RuntimeError: nothing was freed; the engine must not be captured.
        """
        freed = self._free() - self._before
        where = self._rank() or "the engine"
        if freed <= 0:
            raise RuntimeError(
                f"{where}: the sleep freed nothing on the GPU ({self._before} bytes were free before it, {self._before + freed} "
                "are now). Check that torch_memory_saver works there, or set SGLang.memory_saver=False to do without."
            )
        self._tell(f"{where}: the sleep freed {freed / 1e9:.2f} GB")


def _free() -> int:
    return cast("_Torch", sys.modules["torch"]).cuda.mem_get_info()[0]


def _tell(line: str) -> None:
    print(f"torpor_sglang: {line}", file=sys.stderr, flush=True)


def _apply() -> None:
    memory = FreedMemory(free=_free, rank=rank_name, tell=_tell)
    around_handler(RELEASE, before=lambda _: memory.note(), after=lambda _: memory.compare())


PATCH = Patch(
    name="freed-memory",
    reason="SGLang says that it sleeps even if its memory saver released nothing; a snapshot then holds the GPU's whole memory",
    versions=("0.5.16",),
    applies=lambda: FREES_VARIABLE in os.environ,
    apply=_apply,
)
