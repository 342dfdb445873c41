"""Waits until an engine that a benchmark started answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

__all__ = ["await_start"]

_LOOK_S = 0.5


def await_start(client: httpx.Client, engine: subprocess.Popen[bytes], log: Path, limit_s: float) -> None:
    """Wait until `/v1/models` answers.

    Args:
        client: bound to the engine.
        engine: its first process; its end ends the wait.
        log: what it writes; its end is part of the error.
        limit_s: seconds.

    Raises:
        SystemExit: it did not start.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            if client.get("/v1/models").is_success:
                return
        except httpx.TransportError:
            pass
        if engine.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"The engine did not start:\n{log.read_text()[-4000:]}")
        time.sleep(_LOOK_S)
