"""The deadline of a stage: when it passes, the engine is ended."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.engine.handle import Engine

__all__ = ["Deadline"]


class Deadline:
    """Ends the engine when a stage takes too long. Whoever waits for an answer then gets an error.

    Attributes:
        passed: whether the stage took too long.
    """

    def __init__(self, engine: Engine | None, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s or 0.0
        self.passed = False
        self._began = 0.0
        self._timer = threading.Timer(timeout_s, self._end, (engine,)) if engine and timeout_s else None

    def _end(self, engine: Engine) -> None:
        self.passed = True
        engine.terminate(0.0)

    def __enter__(self) -> None:
        self._began = time.perf_counter()
        if self._timer:
            self._timer.daemon = True
            self._timer.start()

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer.join()  # no timer may cross a snapshot
            # On a busy machine the client's own time-out, which is as long, may come before the timer's thread.
            self.passed = self.passed or time.perf_counter() - self._began >= self.timeout_s
