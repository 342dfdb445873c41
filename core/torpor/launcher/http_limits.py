"""Limits on what a client may send before and around a request's body, for every engine whose server is uvicorn.

Uvicorn's parser httptools has no limit of its own: one head of 200 MB took 4.1 GB (measured, uvicorn 0.54), before the guard
sees a request and while the engine sleeps. h11 limits a head that is unfinished, but neither the number of headers nor the
time. With these limits both parsers behave the same:

    a head                   MAX_HEAD_BYTES, else 431
    headers                  MAX_HEADERS, else 431
    a request's target       MAX_TARGET_BYTES, else 414
    time for a head          HEAD_TIMEOUT_S from the connection or the head's first byte on, else 408
    chunk headers, trailers  MAX_HEAD_BYTES more than 8 times the body's bytes so far, else 400; trailers are dropped
    the rest of a body       MAX_SKIPPED_BYTES and HEAD_TIMEOUT_S after the answer, else the connection ends
    pipelined requests       MAX_PIPELINED parsed ahead, MAX_QUEUED_BYTES received ahead, else the connection ends

Every refusal closes the connection. No request is turned into a websocket: no engine has a public route for one.
"""

from __future__ import annotations

import importlib.util
import json
from http import HTTPStatus
from typing import TYPE_CHECKING

from torpor.engine_patches.after_import import after_import
from torpor.engine_patches.patches import Patch

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import ModuleType
    from typing import Protocol

    class Config(Protocol):
        """What is touched of uvicorn's configuration."""

        http_protocol_class: type[asyncio.Protocol]
        ws_protocol_class: type[asyncio.Protocol] | None


__all__ = [
    "HEAD_TIMEOUT_S",
    "MAX_HEADERS",
    "MAX_HEAD_BYTES",
    "MAX_PIPELINED",
    "MAX_QUEUED_BYTES",
    "MAX_SKIPPED_BYTES",
    "MAX_TARGET_BYTES",
    "HeadClock",
    "framing_left",
    "http_limits",
    "limit_uvicorn",
    "refusal_bytes",
]

MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 128
MAX_TARGET_BYTES = 8 * 1024
HEAD_TIMEOUT_S = 20.0
MAX_PIPELINED = 16
MAX_QUEUED_BYTES = 1024 * 1024
MAX_SKIPPED_BYTES = 64 * 1024
_FRAMING_PER_BODY_BYTE = 8  # chunks of one byte have 5
_H11 = "uvicorn.protocols.http.h11_impl"
_MESSAGES = {
    HTTPStatus.REQUEST_TIMEOUT: f"The request's head was not complete within {HEAD_TIMEOUT_S:g} s.",
    HTTPStatus.REQUEST_URI_TOO_LONG: f"A request's target may have {MAX_TARGET_BYTES} bytes.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: (
        f"A request's head may have {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers."
    ),
}


def limit_uvicorn() -> None:
    """Have every server that uvicorn starts in this process use a parser with limits. Call it before the server starts."""
    after_import("uvicorn.config", _limit_config)


def http_limits(versions: tuple[str, ...]) -> Patch:
    """Return the patch, for an engine's versions with which it was tested."""
    return Patch(
        name="http-limits",
        reason=(
            "uvicorn's httptools reads heads of any size before the guard sees a request, asleep or not: one of 200 MB took 4.1 GB"
        ),
        versions=versions,
        applies=lambda: True,
        apply=limit_uvicorn,
    )


def _limit_config(module: ModuleType) -> None:
    original: Callable[[Config], None] = module.Config.load
    if getattr(original, "limits_heads", False):
        return

    def load(config: Config) -> None:
        original(config)
        config.http_protocol_class = _limited(config.http_protocol_class)
        config.ws_protocol_class = None

    load.limits_heads = True  # type: ignore[attr-defined]
    module.Config.load = load


def _limited(kind: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """The limited form of a parser; of one that is neither of uvicorn's two, the faster of them."""
    is_h11 = any(base.__module__ == _H11 for base in kind.__mro__)
    if is_h11 or importlib.util.find_spec("httptools") is None:
        from torpor.launcher.limited_h11 import LimitedH11Protocol  # noqa: PLC0415 - only where h11 is

        return LimitedH11Protocol
    from torpor.launcher.limited_httptools import LimitedHttpToolsProtocol  # noqa: PLC0415 - only where httptools is

    return LimitedHttpToolsProtocol


def refusal_bytes(status: int) -> bytes:
    """A whole answer, in the form of the guard's refusals, that closes the connection."""
    known = HTTPStatus(status)
    message = _MESSAGES.get(known, "Invalid HTTP request received.")
    code = known.phrase.lower().replace(" ", "_")
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": code}}).encode()
    head = (
        f"HTTP/1.1 {status} {known.phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


def framing_left(framing: int, body: int) -> int:
    """What counts on as framing once so many bytes of the body have come."""
    return max(0, framing - (1 + _FRAMING_PER_BODY_BYTE) * body)


class HeadClock:
    """The time that a client has for one head.

    Args:
        loop: the server's.
        late: called when the time is over.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, late: Callable[[], None]) -> None:
        self._loop = loop
        self._late = late
        self._timer: asyncio.TimerHandle | None = None

    def set(self, *, waiting: bool) -> None:
        """Run while a head is waited for; more bytes of the same head give no more time."""
        if not waiting:
            self.stop()
        elif self._timer is None:
            self._timer = self._loop.call_later(HEAD_TIMEOUT_S, self._late)

    def stop(self) -> None:
        """The head is there, or the connection has gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
