"""How a stage fails: at its deadline the engine is ended, and the error says what was seen of the engine."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from torpor.errors import EngineRequestError, EngineTimeoutError
from torpor.runtime.readiness import exited_error, last_lines

if TYPE_CHECKING:
    from torpor.engine.handle import Engine

__all__ = ["Deadline", "explained"]

_DEATH_NOTICE_S = 0.5


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


def explained(error: BaseException, engine: Engine | None, stage: str, deadline: Deadline) -> BaseException:
    """The error that names the cause of what a stage raised; the raised error itself where it says enough."""
    if engine is None or not isinstance(error, Exception):
        return error
    import httpx  # noqa: PLC0415 - 70 ms, while the engine starts

    notes = getattr(error, "__notes__", [])
    where = f"in stage {stage}" + (f" ({'; '.join(notes)})" if notes else "")
    said = f"The engine's last lines:\n{last_lines(engine)}"
    if deadline.passed:
        return EngineTimeoutError(
            f"The engine (pid {engine.pid}) was ended: it was not done within {deadline.timeout_s:g} s {where}; last seen: "
            f"{type(error).__name__}: {error}. Raise the deployment's timeout of this stage if it was only slow. {said}"
        )
    if isinstance(error, httpx.TransportError) and engine.wait(_DEATH_NOTICE_S) is not None:
        return exited_error(engine, where)
    if isinstance(error, httpx.HTTPStatusError):
        response = error.response
        return EngineRequestError(
            f"The engine answered {response.request.method} {response.request.url} with {response.status_code} {where}: "
            f"{response.text[:500]!r}. {said}"
        )
    if isinstance(error, httpx.TransportError):
        return EngineRequestError(f"No answer from the engine {where}: {type(error).__name__}: {error}. {said}")
    return error
