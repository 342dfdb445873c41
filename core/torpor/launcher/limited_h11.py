"""Uvicorn's h11 protocol with the limits of `torpor.launcher.request_limits`. Imported in the engine's process only."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from torpor._override import override
from torpor.launcher import request_limits as limits
from torpor.launcher.request_limits import HeadClock, framing_left, refusal_bytes

if TYPE_CHECKING:
    import asyncio

__all__ = ["LimitedH11Protocol"]


class LimitedH11Protocol(H11Protocol):
    """Refuses what is over a limit, and closes the connection."""

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own
        self.conn: _LimitedConnection = _LimitedConnection()
        self._clock = HeadClock(self.loop, self._head_is_late)
        super().connection_made(transport)
        self._clock.set(waiting=True)

    @override
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.queued > limits.MAX_QUEUED_BYTES:
            self.transport.close()
        idle = self.cycle is None or self.cycle.response_complete
        waiting = idle and not self.transport.is_closing()
        self._clock.set(waiting=waiting)

    @override
    def _unsupported_upgrade_warning(self) -> None:
        """Say nothing: the request is answered like any other, and a line for each would fill the log."""

    @override
    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            if self.conn.body_is_wrong:
                answers = not self.cycle.response_started
            else:  # a request that nobody knows yet
                answers = self.cycle is None or self.cycle.response_complete
            if answers:
                self.transport.write(refusal_bytes(self.conn.status))
            self.transport.close()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._clock.stop()
        super().connection_lost(exc)

    def _head_is_late(self) -> None:
        has_begun = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if has_begun:
            self.conn.status = HTTPStatus.REQUEST_TIMEOUT
            self.send_400_response("")
        else:
            self.transport.close()


class _LimitedConnection(h11.Connection):
    """h11's side of a connection.

    Attributes:
        status: with which the connection is refused once it is.
        body_is_wrong: whether that is the fault of the request that is being worked on.
        queued: bytes that came behind a whole request that is not answered yet.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, limits.MAX_HEAD_BYTES)
        self.status: int = HTTPStatus.BAD_REQUEST
        self.queued = 0
        self._framing = 0
        self._skipped = 0
        self.body_is_wrong = False

    @override
    def receive_data(self, data: bytes) -> None:
        if self.their_state is h11.DONE:
            self.queued += len(data)
        elif self.their_state is h11.SEND_BODY:
            self._framing += len(data)
        super().receive_data(data)

    @override
    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        in_body = self.their_state is h11.SEND_BODY
        received = self._receive_buffer
        before, length = b"", len(received)
        if self.their_state is h11.IDLE and length:  # no more of it: much may queue behind a head
            before = bytes(received._data[: limits.MAX_HEAD_BYTES])  # noqa: SLF001 - a copy of all is the only other way
        try:
            event = super().next_event()
            self._check(event)
            if isinstance(event, h11.Request):
                _check_lines(before[: length - len(received)])
        except h11.RemoteProtocolError as error:
            self.status = error.error_status_hint
            self.body_is_wrong = in_body
            raise
        return event

    def _check(self, event: object) -> None:
        if isinstance(event, h11.Request):
            self.queued = self._framing = self._skipped = 0
            if len(event.target) > limits.MAX_TARGET_BYTES:
                raise h11.RemoteProtocolError("target too long", HTTPStatus.REQUEST_URI_TOO_LONG)
            size = sum(len(name) + len(value) + 4 for name, value in event.headers)
            if size > limits.MAX_HEAD_BYTES or len(event.headers) > limits.MAX_HEADERS:
                raise h11.RemoteProtocolError("head too large", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif isinstance(event, h11.Data):
            self._framing = framing_left(self._framing, len(event.data))
            if self.our_state is h11.DONE:  # what nobody reads any more
                self._skipped += len(event.data)
                if self._skipped > limits.MAX_SKIPPED_BYTES:
                    raise h11.RemoteProtocolError("a body that was answered goes on")
        elif event is h11.NEED_DATA and self._framing > limits.MAX_HEAD_BYTES:
            raise h11.RemoteProtocolError("more framing than body")


def _check_lines(head: bytes) -> None:
    """Refuse lines that end in LF alone or go on in the next one: h11 takes both, and a proxy may see other headers in them."""
    if head.count(b"\n") != head.count(b"\r\n") or b"\n " in head or b"\n\t" in head:
        raise h11.RemoteProtocolError("ambiguous lines")
