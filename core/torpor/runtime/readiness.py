"""Wait until the engine is ready, with a deadline; an engine that ends is noticed at once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx

from torpor.errors import EngineExitedError, EngineTimeoutError
from torpor.runtime.engine_identity import check_listener

if TYPE_CHECKING:
    from torpor.engine.handle import Engine

__all__ = ["exited_error", "last_lines", "wait_ready"]

POLL_S = 0.01
"""Seconds between two attempts to connect; a refused one on loopback takes about 30 microseconds."""

REQUEST_TIMEOUT_S = 2.0
_LOOK_S = 1.0
"""Seconds between two checks of who owns the port, while its listener is not ready."""

_TAIL_IN_MESSAGES = 20
_OK = 200


def wait_ready(engine: Engine, client: httpx.Client, *, port: int, ready_path: str, timeout_s: float) -> None:
    """Poll until the engine answers `ready_path` with 200.

    Args:
        engine: the wait ends if it ends.
        client: sends to the engine, with the lifecycle key if there is a guard.
        port: where the engine listens on loopback.
        ready_path: an engine path that answers 200 once requests are served.
        timeout_s: seconds for the whole wait.

    Raises:
        EngineExitedError: the engine ended; the message has its exit code and last lines.
        EngineTimeoutError: it was not ready in time; the message has its last answer.
        ForeignServerError: somebody else listens on the port; the key was not sent.
    """
    deadline = time.monotonic() + timeout_s
    next_look = 0.0
    last = "nothing listens on the port yet"
    while time.monotonic() < deadline:
        if engine.wait(POLL_S) is not None:
            raise exited_error(engine, "before it was ready")
        if not _listening(engine, port):
            continue
        if engine.guard_key is not None and time.monotonic() >= next_look:
            check_listener(engine, port, "somebody else listens there")
            next_look = time.monotonic() + _LOOK_S
        try:
            response = client.get(ready_path, timeout=REQUEST_TIMEOUT_S)
        except httpx.HTTPError as error:
            last = f"GET {ready_path}: {type(error).__name__}: {error}"
            continue
        if response.status_code == _OK:
            return
        last = f"GET {ready_path}: {response.status_code} {response.text[:200]!r}"
    raise EngineTimeoutError(
        f"The engine (pid {engine.pid}) was not ready within {timeout_s:g} s; last seen: {last}. "
        f"Raise Deployment.startup_timeout_s, or look at its last lines:\n{last_lines(engine)}"
    )


def exited_error(engine: Engine, when: str) -> EngineExitedError:
    """The error for an engine that ended, with its exit code and last lines."""
    code = engine.poll()
    tail = engine.log_tail()
    number = 0 if code is None else code
    how = f"was killed by signal {-number}" if number < 0 else f"exited with code {number}"
    return EngineExitedError(
        f"The engine (pid {engine.pid}) {how} {when}. Its last lines:\n{last_lines(engine)}",
        exit_code_seen=number,
        log_tail=tail,
    )


def last_lines(engine: Engine) -> str:
    """The last lines of the engine's output, indented for an error message."""
    lines = engine.log_tail()[-_TAIL_IN_MESSAGES:]
    said = "\n".join(f"    {line}" for line in lines) or "    (it printed nothing)"
    return f"{said}\n    (the whole log: {engine.log_path})" if engine.log_path else said


def _listening(engine: Engine, port: int) -> bool:
    try:
        engine.open_socket(port, REQUEST_TIMEOUT_S).close()
    except OSError:
        return False
    return True
