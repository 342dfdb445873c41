"""Times what a user waits for: from the start of a command to its port, to readiness, to the first streamed token."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from torpor.engine.child_process import ends_with_this_process
from torpor.errors import EngineTimeoutError, TorporError
from torpor.network.chat_stream import ChatStream
from torpor.values.addresses import LOOPBACK, url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["FirstToken", "Polled", "command", "first_token", "port_taken", "ready", "running"]

_POLL_S = 0.002
_STOP_S = 30.0
_GENTLE_S = 2.0
"""Seconds that a command gets to end in order after this process has ended."""
_PROMPT = "Say hello."
_HEALTH_TIMEOUT_S = 5.0
_Seen = TypeVar("_Seen")


class Polled(Protocol):
    """What is waited for: a command, or an engine; its end ends the wait."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""


@dataclass(frozen=True, kw_only=True)
class FirstToken:
    """What a command took, in seconds since it was started.

    Attributes:
        first_token_s: until the first token of the first answer arrived.
        text: the answer.
    """

    first_token_s: float
    text: str


def command(*words: str) -> list[str]:
    """A `torpor` command line, run by this interpreter."""
    return [sys.executable, "-m", "torpor.cli", *words]


@contextlib.contextmanager
def running(argv: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """Start a command; yields it and the monotonic time just before. SIGTERM ends it after the block.

    Its standard output is a pipe; its standard error is shown when it fails. It ends with this process, with all that it
    started, however this process ends.
    """
    with tempfile.TemporaryFile("w+") as said, ends_with_this_process(_GENTLE_S) as lifeline:
        began = time.monotonic()
        process = subprocess.Popen(
            list(argv),
            env={**os.environ, **lifeline.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
        )
        lifeline.tell(process.pid)
        try:
            yield process, began
        except TorporError as error:
            said.seek(0)
            error.add_note(f"the command said: {said.read()[-3000:]}")
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_STOP_S)
            lifeline.sweep()  # a process that it left behind may hold the pipe
            process.communicate()


def port_taken(process: Polled, began: float, *, port: int, timeout_s: float, host: str = LOOPBACK) -> float:
    """Seconds until a port takes a connection; arguments and errors as of `first_token`."""

    def look() -> float:
        with socket.create_connection((host, port), timeout=_HEALTH_TIMEOUT_S):
            return time.monotonic() - began

    return _waited(process, began, timeout_s, look, "connection on its port")


def ready(process: Polled, began: float, *, port: int, timeout_s: float, host: str = LOOPBACK) -> float:
    """Seconds until `/health` answers 200; arguments and errors as of `first_token`."""

    def look() -> float | None:
        connection = http.client.HTTPConnection(host, port, timeout=_HEALTH_TIMEOUT_S)
        try:
            connection.request("GET", "/health")
            return time.monotonic() - began if connection.getresponse().status == http.client.OK else None
        finally:
            connection.close()

    return _waited(process, began, timeout_s, look, "answer 200 of /health")


def first_token(
    process: Polled,
    began: float,
    *,
    port: int,
    model: str,
    timeout_s: float,
    tokens: int = 8,
    host: str = LOOPBACK,
) -> FirstToken:
    """Ask as soon as somebody answers, and wait for the first token.

    Args:
        process: the command; its end ends the wait.
        began: monotonic time of its start.
        port: where it will serve.
        model: the served name.
        timeout_s: seconds for all of it.
        tokens: length of the answer.
        host: the address at which this machine reaches it.

    Raises:
        EngineTimeoutError: there was no token in time, or the command ended.
    """
    return _waited(process, began, timeout_s, lambda: _ask(host, port, model, tokens, began), "token")


def _waited(process: Polled, began: float, timeout_s: float, look: Callable[[], _Seen | None], what: str) -> _Seen:
    """Look again and again until something is seen."""
    while time.monotonic() - began < timeout_s:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if (seen := look()) is not None:
                return seen
        if (code := process.poll()) is not None:
            raise EngineTimeoutError(f"The command ended with code {code}; it came to no {what}.")
        time.sleep(_POLL_S)
    raise EngineTimeoutError(f"There was no {what} after {timeout_s:g} s.")


def _ask(host: str, port: int, model: str, tokens: int, began: float) -> FirstToken | None:
    """One streamed chat; None when nobody is ready for it."""
    connection = http.client.HTTPConnection(host, port, timeout=60.0)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": _PROMPT}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            return None
        stream = ChatStream(url(host, port))
        for line in answer:
            stream.take(line.decode(errors="replace").rstrip("\r\n"))
        if stream.first_at is None:
            return None
        return FirstToken(first_token_s=stream.first_at - began, text="".join(stream.pieces))
    finally:
        connection.close()
