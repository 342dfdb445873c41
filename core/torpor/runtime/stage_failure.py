"""How a stage fails: the error says what was seen of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from torpor.errors import EngineRequestError, EngineTimeoutError
from torpor.runtime.readiness import exited_error, last_lines

if TYPE_CHECKING:
    from torpor.engine.handle import Engine
    from torpor.runtime.deadline import Deadline

__all__ = ["explained"]

_DEATH_NOTICE_S = 0.5


def explained(error: BaseException, engine: Engine | None, stage: str, deadline: Deadline) -> BaseException:
    """The error that names the cause of what a stage raised; the raised error itself where it says enough."""
    if engine is None or not isinstance(error, Exception):
        return error
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
