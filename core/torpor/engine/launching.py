"""A launch that fails or is interrupted leaves no engine behind."""

from __future__ import annotations

import contextlib
import signal
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING

from torpor.engine.failure import stops_on_failure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from torpor.engine.handle import Engine

__all__ = ["ends_started_engines", "note_started", "signals_held"]

_started: ContextVar[list[Engine] | None] = ContextVar("started", default=None)


@contextlib.contextmanager
def ends_started_engines() -> Iterator[None]:
    """End every engine that was started inside the block if the block fails: nobody else knows of it yet."""
    started: list[Engine] = []

    def end_all() -> None:
        for engine in started:
            engine.terminate(0.0)

    token = _started.set(started)
    try:
        with stops_on_failure(end_all):
            yield
    finally:
        _started.reset(token)


def note_started(engine: Engine) -> None:
    """Have `ends_started_engines` end this engine if the launch fails."""
    if (started := _started.get()) is not None:
        started.append(engine)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Delay SIGINT and SIGTERM until the block is over.

    A KeyboardInterrupt between the fork and the assignment of its result would leave a process that nobody knows.
    This replaces handlers and leaves the signal mask alone: a child inherits the mask, but no Python handler. Signals without a
    Python handler stay as they are. Outside the main thread nothing is done, as no signal is raised there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []

    def hold(number: int, _frame: FrameType | None) -> None:
        pending.append(number)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in held:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])
