"""What both limited parsers share: the limits, the clock for a head, and the answer that refuses.

    a head                   MAX_HEAD_BYTES, else 431
    headers                  MAX_HEADERS, else 431
    a request's target       MAX_TARGET_BYTES, else 414
    time for a head          HEAD_TIMEOUT_S from the connection or the head's first byte on, else 408
    chunk headers, trailers  MAX_HEAD_BYTES more than 8 times the body's bytes so far, else 400; trailers are dropped
    the rest of a body       MAX_SKIPPED_BYTES and HEAD_TIMEOUT_S after the answer, else the connection ends
    pipelined requests       MAX_PIPELINED parsed ahead, MAX_QUEUED_BYTES received ahead, else the connection ends

Every refusal closes the connection.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

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
_MESSAGES = {
    HTTPStatus.REQUEST_TIMEOUT: f"The request's head was not complete within {HEAD_TIMEOUT_S:g} s.",
    HTTPStatus.REQUEST_URI_TOO_LONG: f"A request's target may have {MAX_TARGET_BYTES} bytes.",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: (
        f"A request's head may have {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers."
    ),
}


def refusal_bytes(status: int) -> bytes:
    """A complete answer in the form of the guard's refusals; it closes the connection."""
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
    """The bytes that still count as framing after `body` more bytes of the body."""
    return max(0, framing - (1 + _FRAMING_PER_BODY_BYTE) * body)


class HeadClock:
    """The time that a client has for one head.

    Args:
        loop: the server's.
        late: called when the time is up.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, late: Callable[[], None]) -> None:
        self._loop = loop
        self._late = late
        self._timer: asyncio.TimerHandle | None = None

    def set(self, *, waiting: bool) -> None:
        """Run the clock while a head is awaited; further bytes of the same head do not extend the time."""
        if not waiting:
            self.stop()
        elif self._timer is None:
            self._timer = self._loop.call_later(HEAD_TIMEOUT_S, self._late)

    def stop(self) -> None:
        """Stop the clock: the head has arrived, or the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
