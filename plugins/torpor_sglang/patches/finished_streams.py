"""Ends the task behind a streamed answer at once when the answer was complete.

SGLang waits for two seconds after each stream and then aborts the request, in case its client has left
(`TokenizerManager.create_abort_task`). Until then the request counts as in flight: a sleep after a stream takes two seconds longer,
and so does each streamed request of a warm-up, and the place below `Scaling.max_concurrency` stays taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torpor.launcher import Patch, after_import

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container
    from types import ModuleType

__all__ = ["PATCH", "end_finished"]

_MODULE = "sglang.srt.managers.tokenizer_manager"


class _Request(Protocol):
    """The part of a request that this patch reads; `parallel_sample_num` is there once it is normalized."""

    rid: str | list[str] | None


class _Manager(Protocol):
    """The part of SGLang's `TokenizerManager` that this patch reads."""

    rid_to_state: Container[str]


class _Tasks(Protocol):
    """Starlette's `BackgroundTasks`."""

    def add_task(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run this after the answer, too."""

    async def __call__(self) -> None:
        """Run all."""


def end_finished(module: ModuleType) -> None:
    """Let `create_abort_task` wait only for requests that are not finished.

    Args:
        module: `sglang.srt.managers.tokenizer_manager`.
    """
    create: Callable[[_Manager, _Request], _Tasks] = module.TokenizerManager.create_abort_task

    def create_abort_task(self: _Manager, obj: _Request) -> _Tasks:
        tasks = create(self, obj)

        async def unless_finished() -> None:
            if not _is_finished(self, obj):
                await tasks()

        shortened = type(tasks)()
        shortened.add_task(unless_finished)
        return shortened

    module.TokenizerManager.create_abort_task = create_abort_task


def _is_finished(manager: _Manager, request: _Request) -> bool:
    """Whether the only answer of a request is complete. One of several answers has an id that the request does not name."""
    several = getattr(request, "parallel_sample_num", 1) != 1
    return isinstance(request.rid, str) and not several and request.rid not in manager.rid_to_state


PATCH = Patch(
    name="finished-streams",
    reason=(
        "SGLang keeps each streamed request open for two seconds after its last byte, to abort what a client left behind; a "
        "complete answer needs no abort, and a sleep, a capture and a warm-up need not wait for it"
    ),
    versions=("0.5.6.post2", "0.5.16", "0.5.18", "0.5.23"),
    applies=lambda: True,
    apply=lambda: after_import(_MODULE, end_finished),
)
