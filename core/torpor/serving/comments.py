"""Comments in an event stream, for a client that asks for them while its model starts.

A client sends `Accept: text/event-stream` and `X-Torpor-Waiting: comments`. If it has to wait, its answer begins at once: status
200, and a comment every five seconds, which every event stream's reader ignores (WHATWG HTML, 9.2.5). So neither the client nor a
proxy on the way takes the connection for dead. The price: the status is sent before anybody knows how the request ends. An error is
therefore an event whose data is the error's JSON, as engines send one in the middle of a stream.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from torpor.serving.heads import CHUNKED

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.serving.heads import AnswerHead, RequestHead

__all__ = ["COMMENT_S", "Comments", "wants_comments"]

COMMENT_S = 5.0
"""Seconds between two comments."""

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_END = b"0\r\n\r\n"
_MOST_ERROR_BYTES = 64 * 1024


def wants_comments(head: RequestHead) -> bool:
    """Whether a client asks for comments while it waits."""
    fields = head.fields
    asks = fields.get(b"x-torpor-waiting", b"").lower() == b"comments"
    return asks and b"text/event-stream" in fields.get(b"accept", b"").lower() and head.minor == 1


class Comments:
    """An answer that began before its engine did.

    Args:
        write: sends bytes to the client.
        started: what to say of the start once the engine answers.

    Attributes:
        payload: gets the body of the engine's answer without chunks.
    """

    def __init__(self, write: Callable[[bytes], None], started: Callable[[], str]) -> None:
        self.payload = bytearray()
        self._write = write
        self._started = started
        self._is_stream = self._chunked = False
        self._error = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        write(_HEAD)
        self._say("waiting for the model")
        self._again()

    def answer(self, head: AnswerHead) -> None:
        """The engine's answer begins; its head goes no further."""
        self.stop()
        self._is_stream = head.status == HTTPStatus.OK
        self._chunked = head.length == CHUNKED
        self._say(self._started())

    def body(self, data: bytes) -> None:
        """A piece of the engine's body as it came; chunks are taken apart in `payload` already."""
        if self._chunked:
            data = bytes(self.payload)
            self.payload.clear()
        if not data:
            return
        if self._is_stream:
            self._write(_chunk(data))
        elif len(self._error) < _MOST_ERROR_BYTES:
            self._error += data

    def end(self, error: bytes = b"") -> None:
        """The answer is over.

        Args:
            error: JSON of an error that the client is told; by default what the engine said, if it was no stream.
        """
        self.stop()
        if told := error or bytes(self._error):
            lines = b"\n".join(b"data: " + line for line in told.splitlines())
            self._write(_chunk(lines + b"\n\n"))
        self._write(_END)

    def stop(self) -> None:
        """Send no more comments. Harmless to repeat."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(COMMENT_S, self._tick)

    def _tick(self) -> None:
        self._say("waiting for the model")
        self._again()

    def _say(self, text: str) -> None:
        self._write(_chunk(b": " + text.encode() + b"\n\n"))


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
