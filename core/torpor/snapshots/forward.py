"""Bytes from one connection to another and back, as they come: half-closed streams, back-pressure and errors included."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, cast

from torpor._override import override

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Side"]

_LINGER_S = 1.0


class Side(asyncio.Protocol):
    """One of the two ends that are joined.

    Args:
        all_sides: where it is listed while it is open.
        other: the end that it is joined to from the start; that one reads from then on.
        on_made: told when it is connected; it does not read until it is joined or refused.
    """

    def __init__(
        self, all_sides: set[Side], *, other: Side | None = None, on_made: Callable[[Side], None] | None = None
    ) -> None:
        self._all_sides = all_sides
        self._other = other
        self._on_made = on_made
        self._ended = False
        self._transport: asyncio.Transport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._all_sides.add(self)
        stream: socket.socket = transport.get_extra_info("socket")
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a token must not wait for the next one
        if self._other:
            self._other._join(self)  # noqa: SLF001 - its own class
        elif self._on_made:
            self._transport.pause_reading()
            self._on_made(self)

    @override
    def data_received(self, data: bytes) -> None:
        if self._other and (writer := self._other.open_transport):
            writer.write(data)

    @override
    def eof_received(self) -> bool:
        """Pass the end on and stay open: the other direction may go on (half-closed)."""
        self._ended = True
        if self._other and (writer := self._other.open_transport):
            if self._other._ended:  # noqa: SLF001
                writer.close()
                return False
            writer.write_eof()
        return True

    @override
    def pause_writing(self) -> None:
        """The reader here is slower than the writer there."""
        if self._other and (reader := self._other.open_transport):
            reader.pause_reading()

    @override
    def resume_writing(self) -> None:
        if self._other and (reader := self._other.open_transport):
            reader.resume_reading()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._all_sides.discard(self)
        if self._other and (transport := self._other.open_transport):
            if exc:
                transport.abort()
            else:
                transport.close()

    @property
    def open_transport(self) -> asyncio.Transport | None:
        """Its transport, unless it is closing."""
        transport = self._transport
        return None if transport is None or transport.is_closing() else transport

    def refuse(self, answer: bytes) -> None:
        """Answer and close. What the client still sends is read away: closed over it, the answer could be lost (RST)."""
        if transport := self.open_transport:
            transport.write(answer)
            transport.write_eof()
            transport.resume_reading()
            asyncio.get_running_loop().call_later(_LINGER_S, transport.close)

    def abort(self) -> None:
        """Close at once."""
        if self._transport:
            self._transport.abort()

    def _join(self, other: Side) -> None:
        self._other = other
        if transport := self.open_transport:
            transport.resume_reading()
        elif writer := other.open_transport:
            writer.close()
