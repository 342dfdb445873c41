"""A listening port that bad clients cannot block: limited connections, prompt refusals, no busy loop on `accept` errors."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections import deque
from typing import TYPE_CHECKING

from torpor.network import descriptors
from torpor.telemetry.events import log

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["DESCRIPTORS_KEPT", "MAX_CONNECTIONS", "Listener"]

MAX_CONNECTIONS = 10_000
"""Connections open at once, if the limit of open descriptors allows so many."""

DESCRIPTORS_KEPT = 48
"""Descriptors that connections leave free: for a restore, a capture, the log, clients that are refused."""

_BACKLOG = 1024
_AT_ONCE = 64
_REFUSED_MOST = 16
_LINGER_S = 1.0
_PAUSE_S = 0.1
_SPELL_S = 10.0
_DESCRIPTORS_A_CONNECTION = 2
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_CLOSED = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)


class Listener:
    """Accepts connections for one event loop, up to a limit.

    Args:
        loop: whose thread it runs in.
        take: gets each connection; it has to call `left` when the connection is closed.
        answer: a whole HTTP answer for connections beyond the limit.
        most: connections open at once; by default `MAX_CONNECTIONS`, or fewer where the limit of open descriptors is low.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[socket.socket], None],
        *,
        answer: bytes,
        most: int | None = None,
    ) -> None:
        self._loop, self._take, self._answer = loop, take, answer
        self._wanted = most or MAX_CONNECTIONS
        self.most = self._wanted
        self.open = 0
        self._listening: list[socket.socket] = []
        self._reserve = -1
        self._lingering: deque[tuple[float, socket.socket]] = deque()
        self._logged_at = -_SPELL_S

    def listen(self, host: str, port: int) -> int:
        """Listen on every address of the host; returns the port.

        Raises:
            OSError: the address is in use, or the name has no address.
        """
        try:
            for family, kind, protocol, _, address in socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                listening = socket.socket(family, kind, protocol)
                self._listening.append(listening)
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listening.bind(address)
                listening.listen(_BACKLOG)
                listening.setblocking(False)
        except BaseException:
            self.close()
            raise
        self._take_reserve()
        self.fit()
        self._resume()
        return int(self._listening[0].getsockname()[1])

    def fit(self, *, more: int = 0) -> None:
        """Set the limit of connections from the descriptors that are open now; `more` of them are reserved for something else."""
        others = descriptors.open_now() - _DESCRIPTORS_A_CONNECTION * self.open
        room = descriptors.limit() - max(0, others) - DESCRIPTORS_KEPT - more
        self.most = max(1, min(self._wanted, room // _DESCRIPTORS_A_CONNECTION))

    def left(self) -> None:
        """Note that an accepted connection was closed."""
        self.open -= 1

    def close(self) -> None:
        """Close the port. Harmless to repeat."""
        while self._listening:
            listening = self._listening.pop()
            self._loop.remove_reader(listening.fileno())
            listening.close()
        while self._lingering:
            self._lingering.popleft()[1].close()
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1

    def _resume(self) -> None:
        for listening in self._listening:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        """Accept a batch of waiting connections; a batch, so that open ones are served in between."""
        for _ in range(_AT_ONCE):
            try:
                connection, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _CLOSED:
                    self._loop.remove_reader(listening.fileno())
                    return
                if error.errno in _OUT_OF:
                    self._pause(listening, error)
                    return
                continue  # the client has gone again (ECONNABORTED), or its network has
            try:
                connection.setblocking(False)
                if self.open >= self.most:
                    self._refuse(connection)
                else:
                    self.open += 1
                    self._take(connection)
            except OSError:
                connection.close()

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """No descriptor or no memory is left: refuse waiting clients with the descriptor in reserve, and accept again later.

        The log comes first, as it may need a descriptor itself; then the reserve is taken again.
        """
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
            for _ in range(_AT_ONCE):
                try:
                    connection, _ = listening.accept()
                except OSError:
                    break
                with connection:
                    connection.setblocking(False)
                    self._send_refusal(connection)
                    self._drop_input(connection)
        self._log_once(
            "cannot_accept_connections",
            detail=f"{error.strerror}; clients that connect now get 503 (limit of open descriptors: {descriptors.limit()})",
        )
        self._take_reserve()
        for each in self._listening:
            self._loop.remove_reader(each.fileno())
        self._loop.call_later(_PAUSE_S, self._resume)

    def _refuse(self, connection: socket.socket) -> None:
        """Refuse a connection beyond the limit, and give the client a moment to read the answer."""
        self._log_once(
            "too_many_connections",
            detail=f"{self.most} are open; further ones get 503 (limit of open descriptors: {descriptors.limit()})",
        )
        self._send_refusal(connection)
        self._lingering.append((self._loop.time() + _LINGER_S, connection))
        if len(self._lingering) > _REFUSED_MOST:
            self._close_refused()
        elif len(self._lingering) == 1:
            self._loop.call_later(_LINGER_S, self._sweep)

    def _send_refusal(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.send(self._answer)
            connection.shutdown(socket.SHUT_WR)

    def _sweep(self) -> None:
        while self._lingering and self._lingering[0][0] <= self._loop.time():
            self._close_refused()
        if self._lingering:
            self._loop.call_at(self._lingering[0][0], self._sweep)

    def _close_refused(self) -> None:
        _, connection = self._lingering.popleft()
        self._drop_input(connection)
        connection.close()

    def _drop_input(self, connection: socket.socket) -> None:
        """Drop what the client sent: closing with unread bytes resets the connection and can destroy the answer."""
        with contextlib.suppress(OSError):
            connection.recv(1 << 16)

    def _take_reserve(self) -> None:
        if self._reserve < 0:
            with contextlib.suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _log_once(self, event: str, *, detail: str) -> None:
        """Log an event once in a spell, however many connections it concerns."""
        now, logged_at = self._loop.time(), self._logged_at
        self._logged_at = now
        if now - logged_at < _SPELL_S:
            return
        try:
            log("warning", event, detail=detail)
        except (
            ImportError,
            OSError,
        ):  # structlog is imported with its first event, and no descriptor may be left for that
            print(f"torpor: {event}: {detail}", file=sys.stderr, flush=True)
