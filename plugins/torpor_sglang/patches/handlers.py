"""Wraps the scheduler's handlers for releasing and resuming memory."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from torpor.launcher import after_import

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["RELEASE", "RESUME", "around_handler", "wrap_handler"]

RELEASE, RESUME = "release_memory_occupation", "resume_memory_occupation"

_MODULES = (
    "sglang.srt.managers.scheduler_components.weight_updater",  # 0.5.16, 0.5.23
    "sglang.srt.managers.scheduler_update_weights_mixin",  # 0.5.6.post2
)


def around_handler(
    name: str, *, before: Callable[[object], None] | None = None, after: Callable[[object], None] | None = None
) -> None:
    """Wrap a handler of this process's scheduler as soon as SGLang imports it.

    Args:
        name: `RELEASE` or `RESUME`.
        before: called first, with the handler's object; an exception ends the scheduler, and with it the server.
        after: called with the handler's object, after the handler and before the answer; an exception ends the scheduler.
    """
    for module in _MODULES:
        after_import(module, lambda found: wrap_handler(found, name, before=before, after=after))


def wrap_handler(
    module: ModuleType,
    name: str,
    *,
    before: Callable[[object], None] | None = None,
    after: Callable[[object], None] | None = None,
) -> None:
    """Wrap the method of that name in every class of the module that has it."""
    for kind in list(vars(module).values()):
        if isinstance(kind, type) and kind.__module__ == module.__name__ and name in vars(kind):
            setattr(kind, name, _wrapped(vars(kind)[name], before, after))


def _wrapped(
    handler: Callable[..., object], before: Callable[[object], None] | None, after: Callable[[object], None] | None
) -> Callable[..., object]:
    @functools.wraps(handler)
    def around(scheduler: object, request: object) -> object:
        if before:
            before(scheduler)
        answer = handler(scheduler, request)
        if after:
            after(scheduler)
        return answer

    return around
