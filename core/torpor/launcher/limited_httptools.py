"""Uvicorn's httptools protocol with the limits of `torpor.launcher.request_limits`. Imported in the engine's process only."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from torpor._override import override
from torpor.launcher import request_limits as limits
from torpor.launcher.request_limits import HeadClock, framing_left, refusal_bytes

if TYPE_CHECKING:
    import asyncio

__all__ = ["LimitedHttpToolsProtocol"]

_PIECE = 4096
"""Bytes that the parser gets at once: what it makes of them, up to 200 small requests, is looked at before the next."""


class _LimitError(Exception):
    """Leaves one of the parser's callbacks; uvicorn then calls `send_400_response`."""


class LimitedHttpToolsProtocol(HttpToolsProtocol):
    """Refuses what is over a limit, and closes the connection."""

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own
        self._clock = HeadClock(self.loop, self._head_is_late)
        self._status: int = HTTPStatus.BAD_REQUEST
        self._in_head = True  # in one, or before one
        self._framing = 0  # bytes of this head, or of chunk headers and trailers beyond what the body allows
        self._trailers = 0
        self._skipped = 0
        self._queued = 0  # bytes behind a whole request that is not answered yet
        self._held = bytearray()  # those that the parser has not got yet
        self._ended = False  # behind a request for another protocol nothing is HTTP
        super().connection_made(transport)
        self._clock.set(waiting=True)

    @override
    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._queued = self._queued + len(data) if self.pipeline or self._held else 0
        if self._queued > limits.MAX_QUEUED_BYTES:
            self.transport.close()
        elif self._held:
            self._held += data
        else:
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        view = memoryview(data)
        for start in range(0, len(data), _PIECE):
            if len(self.pipeline) >= limits.MAX_PIPELINED:
                self._held += view[start:]
                self.flow.pause_reading()
                return
            piece = view[start : start + _PIECE]
            self._framing += len(piece)
            super().data_received(piece)  # type: ignore[arg-type] # the parser takes any buffer
            if self.transport.is_closing() or self._ended:
                self._clock.stop()
                return
            if self._framing > limits.MAX_HEAD_BYTES:
                if self._in_head:
                    self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                self.send_400_response("")
                return
        self._clock.set(waiting=self.cycle is None or self.cycle.response_complete)

    @override
    def on_message_begin(self) -> None:
        self._in_head, self._framing, self._trailers, self._skipped = True, 1, 0, 0  # 1: one has begun
        super().on_message_begin()

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            # A trailer. Uvicorn would add it to the headers, behind the back of whoever has judged these.
            self._trailers += 1
            if self._trailers > limits.MAX_HEADERS:
                raise _LimitError
            return
        super().on_header(name, value)
        if len(self.headers) > limits.MAX_HEADERS:
            self._status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise _LimitError

    @override
    def on_headers_complete(self) -> None:
        if len(self.url) > limits.MAX_TARGET_BYTES:
            self._status = HTTPStatus.REQUEST_URI_TOO_LONG
            raise _LimitError
        super().on_headers_complete()
        self._in_head, self._framing = False, 0
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False

    @override
    def on_body(self, body: bytes) -> None:
        self._framing = framing_left(self._framing, len(body))
        if self.cycle.response_complete:  # what nobody reads any more
            self._skipped += len(body)
            if self._skipped > limits.MAX_SKIPPED_BYTES:
                raise _LimitError
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._in_head, self._framing = True, 0
        self._ended = self.parser.should_upgrade()
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._held and len(self.pipeline) < limits.MAX_PIPELINED and not self.transport.is_closing():
            held, self._held = bytes(self._held), bytearray()
            self._feed(held)

    @override
    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the request is answered like any other, and a line for each would fill the log."""

    @override
    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            if self._in_head:  # of a request that nobody knows yet
                answers = self.cycle is None or self.cycle.response_complete
            else:
                answers = not (self.pipeline or self.cycle.response_started)
            if answers:
                self.transport.write(refusal_bytes(self._status))
            self.transport.close()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._clock.stop()
        super().connection_lost(exc)

    def _head_is_late(self) -> None:
        if self._in_head and self._framing > 0:
            self._status = HTTPStatus.REQUEST_TIMEOUT
            self.send_400_response("")
        else:
            self.transport.close()
