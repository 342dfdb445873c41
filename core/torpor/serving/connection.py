"""The part of a client's connection that knows no HTTP: limits of time, back-pressure, and an end that loses no answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Protocol, cast

from torpor._override import override

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.serving.limits import Limits

__all__ = ["Connection", "Owner"]

_LINGER_S = 1.0


class Owner(Protocol):
    """What a connection needs of its gateway."""

    @property
    def limits(self) -> Limits:
        """What clients may take."""

    @property
    def clients(self) -> set[Connection]:
        """The open connections."""

    @property
    def left(self) -> Callable[[], None]:
        """To be called when a connection is closed."""


class Connection(asyncio.Protocol):
    """A client's connection.

    Args:
        owner: its gateway.

    Attributes:
        finishing: whether nothing more will be written; what still comes is dropped.
        is_full: whether the client reads more slowly than it is written to.
        received: bytes that came.
        in_request: whether a request is not answered yet.
        paused: reasons not to read from the client now.
        head_since: loop time at which the first byte of a head came, seconds.
        idle_since: loop time at which the last answer ended, or the connection was made.
        made: whether it was ever connected.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.finishing = self.is_full = self.in_request = self.made = False
        self.received = 0
        self.paused: set[str] = set()
        self.head_since = self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._written = 0
        self._seen_passed = self._seen_received = 0
        self._passed_at = self._received_at = 0.0

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.made = True
        self._owner.clients.add(self)
        self.idle_since = self._passed_at = self._received_at = asyncio.get_running_loop().time()
        with contextlib.suppress(OSError):  # it may have been reset already
            stream: socket.socket = transport.get_extra_info("socket")
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a token must not wait for the next one

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.clients.discard(self)
        if self._lingering is not None:
            self._lingering.cancel()
        self._transport = None
        self._owner.left()

    @override
    def pause_writing(self) -> None:
        self.is_full = True

    @override
    def resume_writing(self) -> None:
        self.is_full = False

    @property
    def is_open(self) -> bool:
        """Whether it is neither closed nor closing."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def unsent(self) -> int:
        """Bytes that were written and not read by the client yet."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    @property
    def in_head(self) -> bool:
        """Whether a part of a head has come."""
        return False

    @property
    def in_body(self) -> bool:
        """Whether more of a body has to come, and may come."""
        return False

    @property
    def is_busy(self) -> bool:
        """Whether the client still waits for something."""
        return self.in_request or self.unsent > 0

    def write(self, data: bytes) -> None:
        """Send bytes to the client."""
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._written += len(data)
            transport.write(data)

    def pause(self, reason: str) -> None:
        """Read nothing from the client until `resume` with the same reason."""
        self.paused.add(reason)
        if self._transport is not None and self.is_open:
            self._transport.pause_reading()

    def resume(self, reason: str) -> None:
        """Read on, unless there is another reason not to."""
        self.paused.discard(reason)
        if not self.paused and self._transport is not None and self.is_open:
            self._transport.resume_reading()

    def finish(self) -> None:
        """Write nothing more. Close once the client has read everything and had a moment to hang up first.

        What the client still sends is read and dropped: otherwise a reset could destroy the answer.
        """
        transport = self._transport
        if transport is None or transport.is_closing() or self.finishing:
            return
        self.finishing = True
        self.paused.clear()
        try:
            transport.write_eof()
        except OSError:  # reset: ENOTCONN
            transport.abort()
            return
        transport.resume_reading()
        self._linger()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def late(self) -> None:
        """The client took too long to send a head or the next piece of a body."""
        self.abort()

    def check(self, now: float) -> None:
        """Close it when a limit of time passed."""
        limits = self._owner.limits
        passed = self._written - self.unsent
        if passed != self._seen_passed or passed == self._written:
            self._seen_passed, self._passed_at = passed, now
        elif now - self._passed_at >= limits.stall_timeout_s:
            self.abort()
            return
        if self.received != self._seen_received or not self.in_body:
            self._seen_received, self._received_at = self.received, now
        if self.finishing:
            return
        if self.in_request:
            if now - self._received_at >= limits.head_timeout_s:
                self.late()
        elif self.in_head or not self.received:
            if now - (self.head_since if self.in_head else self.idle_since) >= limits.head_timeout_s:
                self.late()
        elif now - self.idle_since >= limits.idle_timeout_s:
            self.finish()

    def _linger(self) -> None:
        self._lingering = asyncio.get_running_loop().call_later(_LINGER_S, self._close_lingering)

    def _close_lingering(self) -> None:
        if self._transport is not None and self.is_open:
            if self.unsent:
                self._linger()  # `check` finds a client that reads nothing
            else:
                self._transport.close()
