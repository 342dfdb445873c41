"""What blocks: a start, a wake, a sleep, a capture, an end. Each runs in a thread of its own, and reports to the loop's thread."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Protocol

from torpor.errors import TorporError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.platforms.local.serve.engine_here import EngineHere
    from torpor.serving.sizes import Size
    from torpor.serving.states import Kind, Replica

__all__ = ["Reports", "Workers"]

_MEASURED_AFTER_S = 0.5


class Reports(Protocol):
    """Who is told what became of it; every method but `call` runs in the loop's thread."""

    def call(self, report: Callable[[], None]) -> None:
        """Call a function in the loop's thread."""

    def served(self, replica: Replica, engine: EngineHere, kind: Kind, seconds: float) -> None:
        """A replica serves."""

    def failed(self, replica: Replica, engine: EngineHere, why: str, seconds: float, kind: Kind) -> None:
        """A start or wake failed; nothing of the replica is left."""

    def moved(self, replica: Replica, engine: EngineHere, size: Size | None, why: str, *, kept: bool | None) -> None:
        """A sleep or a capture is over.

        Args:
            replica: which one.
            engine: its engine.
            size: what it takes now; None if it has ended.
            why: why it failed; empty if it did not.
            kept: whether there is a snapshot now; None for a sleep.
        """

    def measured(self, replica: Replica, size: Size) -> None:
        """What a serving replica takes."""

    def gone(self, replica: Replica) -> None:
        """A replica was ended."""

    def buried(self, replica: Replica, why: str) -> None:
        """A replica that had ended by itself was cleaned up."""


class Workers:
    """Runs what blocks.

    Args:
        reports: who is told.
    """

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._threads: set[threading.Thread] = set()

    def begin(self, work: Callable[[Replica, EngineHere], None], replica: Replica, engine: EngineHere) -> None:
        """Run one of the methods below in a thread."""

        def run() -> None:
            try:
                work(replica, engine)
            finally:
                self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=f"torpor-{engine.name}", daemon=True)
        self._threads.add(thread)
        thread.start()

    def join(self, deadline: float) -> None:
        """Wait for all threads.

        Args:
            deadline: of the monotonic clock.
        """
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def start(self, replica: Replica, engine: EngineHere) -> None:
        """Restore it, or start it cold."""
        began = time.monotonic()
        try:
            kind = engine.start()
        except Exception as error:
            failed_kind: Kind = "restored" if engine.was_restored else "cold"
            self._failed(replica, engine, error, began, failed_kind)
            return
        self._serves(replica, engine, kind, began)

    def wake(self, replica: Replica, engine: EngineHere) -> None:
        """Wake it in memory."""
        began = time.monotonic()
        try:
            engine.wake()
        except Exception as error:
            engine.end()
            self._failed(replica, engine, error, began, "woken")
            return
        self._serves(replica, engine, "woken", began)

    def sleep(self, replica: Replica, engine: EngineHere) -> None:
        """Put it to sleep in memory."""
        why = _why(engine.sleep)
        size = _size(replica, engine)
        self._reports.call(lambda: self._reports.moved(replica, engine, size, why, kept=None))

    def capture(self, replica: Replica, engine: EngineHere) -> None:
        """Write its snapshot."""
        why = _why(engine.capture)
        size = _size(replica, engine)
        self._reports.call(lambda: self._reports.moved(replica, engine, size, why, kept=not why))

    def end(self, replica: Replica, engine: EngineHere) -> None:
        """End it."""
        engine.end()
        self._reports.call(lambda: self._reports.gone(replica))

    def bury(self, replica: Replica, engine: EngineHere) -> None:
        """Clean up after it has ended by itself."""
        why = engine.buried()
        self._reports.call(lambda: self._reports.buried(replica, why))

    def _serves(self, replica: Replica, engine: EngineHere, kind: Kind, began: float) -> None:
        """Report it. Measure it a moment later: reading the memory map of a large process takes a while, and requests wait."""
        seconds = time.monotonic() - began
        self._reports.call(lambda: self._reports.served(replica, engine, kind, seconds))
        time.sleep(_MEASURED_AFTER_S)
        if (size := _size(replica, engine)) is not None:
            self._reports.call(lambda: self._reports.measured(replica, size))

    def _failed(self, replica: Replica, engine: EngineHere, error: Exception, began: float, kind: Kind) -> None:
        why, seconds = f"{type(error).__name__}: {error}", time.monotonic() - began
        self._reports.call(lambda: self._reports.failed(replica, engine, why, seconds, kind))


def _why(work: Callable[[], None]) -> str:
    """Why it failed; empty if it did not."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _size(replica: Replica, engine: EngineHere) -> Size | None:
    """What it takes now; None if it has ended."""
    with contextlib.suppress(TorporError):
        if engine.alive:
            size = engine.size(replica.cards)
            return size if size.host else None
    return None
