"""Relay bytes between two connections in both directions, with half-closed streams, back-pressure and errors."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import TYPE_CHECKING, cast

from torpor._override import override

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_HEAD_BYTES", "Endpoint"]

MAX_HEAD_BYTES = 64 * 1024
"""A client with a longer head is joined all the same: the engine's own server refuses it."""

_LINGER_S = 1.0
_BLANK_LINE = re.compile(rb"\n\r?\n")
_METHODS_BEGIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\r\n"
_LATE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Endpoint(asyncio.Protocol):
    """One of two connections that are joined: a client's or a replica's.

    A client's endpoint keeps the head of the first request until it is complete, and only then asks to be joined. So a client
    that sends nothing, or a head byte by byte, costs no replica anything. Only the blank line is searched for.

    Args:
        all_endpoints: lists the endpoint while it is open.
        other: of a replica's endpoint: the client's endpoint that it is joined to from the start; that one then reads on.
        on_head: of a client's endpoint: called once its first head is complete. It reads no more until it is joined or refused.
        on_lost: called when it is closed.

    Attributes:
        is_client: whether it is a client's endpoint.
        owed: of a client's endpoint: whether the client sent something since the replica last did.
    """

    def __init__(
        self,
        all_endpoints: set[Endpoint],
        *,
        other: Endpoint | None = None,
        on_head: Callable[[Endpoint], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._all_endpoints = all_endpoints
        self._other = other
        self.is_client = other is None
        self._on_head = on_head
        self._on_lost = on_lost
        self._held = bytearray()
        self._ended = self._finishing = False
        self._lingering: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._written = self._seen_passed = 0
        self._made_at = self._passed_at = 0.0
        self.owed = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._all_endpoints.add(self)
        self._made_at = self._passed_at = asyncio.get_running_loop().time()
        stream: socket.socket = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it may have been reset already
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a token must not wait for the next one
        if self._other:
            self._other._join(self)  # noqa: SLF001 - its own class

    @override
    def data_received(self, data: bytes) -> None:
        if other := self._other:
            # `open_transport` written out: every token passes here
            writer = other._transport  # noqa: SLF001 - its own class
            if writer is not None and not writer.is_closing():
                other._written += len(data)  # noqa: SLF001
                if self.is_client:
                    self.owed = True
                else:
                    other.owed = False
                writer.write(data)
        elif self._on_head:
            self._hold(data)

    @override
    def eof_received(self) -> bool:
        """Pass a client's EOF on and stay open: the answer may still come (half-closed). A replica's EOF ends the connection."""
        self._ended = True
        if self._finishing or self._on_head:  # the client was refused, or left without a request
            return False
        if self._other is None:
            return True
        other, writer = self._other, self._other.open_transport
        if writer is None or other._ended:  # noqa: SLF001 - its own class
            if writer:
                writer.close()
            return False
        if self.is_client:
            other._end_writing(writer)  # noqa: SLF001
        else:
            other.finish()
        return True

    @override
    def pause_writing(self) -> None:
        """This endpoint reads more slowly than the other one sends: let the other one wait."""
        if self._other and (reader := self._other.open_transport):
            reader.pause_reading()

    @override
    def resume_writing(self) -> None:
        if self._other and (reader := self._other.open_transport):
            reader.resume_reading()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._all_endpoints.discard(self)
        if self._lingering:
            self._lingering.cancel()
        self._on_head = None
        self._held.clear()
        if self._on_lost:
            self._on_lost()
        other, self._other = self._other, None
        if other and (transport := other.open_transport):
            if other._finishing:  # noqa: SLF001 - the replica closed with unread bytes; its answer came before
                transport.resume_reading()
            elif exc:
                transport.abort()
            else:
                transport.close()

    @property
    def open_transport(self) -> asyncio.Transport | None:
        """Its transport, unless it is closing."""
        transport = self._transport
        return None if transport is None or transport.is_closing() else transport

    @property
    def made(self) -> bool:
        """Whether it was ever connected."""
        return self._transport is not None

    @property
    def asks(self) -> bool:
        """Whether its first head is complete, and it was neither joined nor refused yet."""
        return self._on_head is None and self._other is None and not self._finishing and self.open_transport is not None

    @property
    def joined(self) -> bool:
        """Whether it is joined to a replica that has not closed."""
        return self._other is not None and not self._finishing

    @property
    def unsent(self) -> int:
        """Bytes that were written and not read yet."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    @property
    def answered(self) -> int:
        """Bytes that the replica has sent so far."""
        return self._written

    def refuse(self, answer: bytes) -> None:
        """Answer and close. What the client still sends is read and dropped: otherwise a reset could destroy the answer."""
        self._on_head = None
        self._held.clear()
        if transport := self.open_transport:
            self._written += len(answer)
            transport.write(answer)
            self.finish()

    def finish(self) -> None:
        """Write nothing more. Close once the client has read everything and had a moment to hang up first."""
        if (transport := self.open_transport) and not self._finishing:
            self._finishing = True
            self._end_writing(transport)
            transport.resume_reading()
            self._linger()

    def abort(self) -> None:
        """Close at once."""
        if self._transport:
            self._transport.abort()

    def check(self, now: float, *, head_timeout_s: float, stall_timeout_s: float) -> None:
        """Close it when a limit passed: for the complete head, or for reading at least one byte of what waits."""
        if self._on_head and now - self._made_at >= head_timeout_s:
            if self._held:
                self.refuse(_LATE)
            else:
                self.abort()
            return
        passed = self._written - self.unsent
        if passed != self._seen_passed or passed == self._written:
            self._seen_passed, self._passed_at = passed, now
        elif now - self._passed_at >= stall_timeout_s:
            self.abort()
            if self._other:
                self._other.abort()

    def _hold(self, data: bytes) -> None:
        """Keep the bytes of the first request until its head is complete."""
        searched = max(0, len(self._held) - 2)
        self._held += data
        if self._on_head and (
            self._held[0] not in _METHODS_BEGIN  # not HTTP
            or len(self._held) > MAX_HEAD_BYTES
            or _BLANK_LINE.search(self._held, searched)
        ):
            on_head, self._on_head = self._on_head, None
            if self._transport:
                self._transport.pause_reading()
            on_head(self)

    def _join(self, other: Endpoint) -> None:
        self._other = other
        writer = other.open_transport
        if transport := self.open_transport:
            if writer and self._held:
                other._written += len(self._held)
                writer.write(bytes(self._held))
                self.owed = True
            self._held.clear()
            transport.resume_reading()
        elif writer:
            writer.close()

    def _end_writing(self, transport: asyncio.Transport) -> None:
        try:
            transport.write_eof()
        except OSError:  # reset: ENOTCONN
            transport.abort()

    def _linger(self) -> None:
        self._lingering = asyncio.get_running_loop().call_later(_LINGER_S, self._close_lingering)

    def _close_lingering(self) -> None:
        if transport := self.open_transport:
            if self.unsent:
                self._linger()  # `check` finds a client that reads nothing
            else:
                transport.close()
