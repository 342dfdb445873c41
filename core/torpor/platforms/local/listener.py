"""A listening port that survives its clients: a limit of connections, refusals in time, and no loop over `accept` errors."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections import deque
from typing import TYPE_CHECKING

from torpor.network import descriptors

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

__all__ = ["DESCRIPTORS_KEPT", "MAX_CONNECTIONS", "Listener"]

MAX_CONNECTIONS = 10_000
"""Connections at once, where the limit of open descriptors allows so many."""

DESCRIPTORS_KEPT = 48
"""Descriptors that connections leave to everything else: a restore, a capture, the log, clients that are turned away."""

_BACKLOG = 1024
_AT_ONCE = 64
_TURNED_AWAY_MOST = 16
_LINGER_S = 1.0
_PAUSE_S = 0.1
_SPELL_S = 10.0
_DESCRIPTORS_A_CONNECTION = 2
_OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_CLOSED = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)


class Listener:
    """Takes connections for one event loop and hands them on, as long as there is room for them.

    Args:
        loop: whose thread it runs in.
        take: gets each connection; it calls `left` when that is closed.
        answer: what a connection gets for which there is no room: a whole HTTP answer.
        most: connections at once; by default `MAX_CONNECTIONS`, or fewer where the limit of open descriptors is low.
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
        self._told_at = -_SPELL_S

    def listen(self, host: str, port: int) -> int:
        """Listen; the port.

        Raises:
            OSError: the address is taken, or there is none of that name.
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
        """Set the limit of connections by what is open now; `more` descriptors will be needed for something else."""
        others = descriptors.open_now() - _DESCRIPTORS_A_CONNECTION * self.open
        room = descriptors.limit() - max(0, others) - DESCRIPTORS_KEPT - more
        self.most = max(1, min(self._wanted, room // _DESCRIPTORS_A_CONNECTION))

    def left(self) -> None:
        """A connection that was taken is closed."""
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
        """Take what has come, some at a time: whoever is connected has his turn, too."""
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
                continue  # the one who came has left again (ECONNABORTED), or his network has
            try:
                connection.setblocking(False)
                if self.open >= self.most:
                    self._turn_away(connection)
                else:
                    self.open += 1
                    self._take(connection)
            except OSError:
                connection.close()

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """No descriptor is left, or no memory: refuse those who wait by the one that is kept for it, and look again later.

        It is told before that one is kept again: what tells it is imported late.
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
                    self._say_no(connection)
                    self._read_away(connection)
        self._tell(
            "cannot_accept_connections",
            detail=f"{error.strerror}; clients that connect now get 503 (limit of open descriptors: {descriptors.limit()})",
        )
        self._take_reserve()
        for each in self._listening:
            self._loop.remove_reader(each.fileno())
        self._loop.call_later(_PAUSE_S, self._resume)

    def _turn_away(self, connection: socket.socket) -> None:
        """Refuse one for whom there is no room; he gets a moment to read it."""
        self._tell(
            "too_many_connections",
            detail=f"{self.most} are open; further ones get 503 (limit of open descriptors: {descriptors.limit()})",
        )
        self._say_no(connection)
        self._lingering.append((self._loop.time() + _LINGER_S, connection))
        if len(self._lingering) > _TURNED_AWAY_MOST:
            self._let_go()
        elif len(self._lingering) == 1:
            self._loop.call_later(_LINGER_S, self._sweep)

    def _say_no(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.send(self._answer)
            connection.shutdown(socket.SHUT_WR)

    def _sweep(self) -> None:
        while self._lingering and self._lingering[0][0] <= self._loop.time():
            self._let_go()
        if self._lingering:
            self._loop.call_at(self._lingering[0][0], self._sweep)

    def _let_go(self) -> None:
        _, connection = self._lingering.popleft()
        self._read_away(connection)
        connection.close()

    def _read_away(self, connection: socket.socket) -> None:
        """What was sent before the answer: closed over it, the answer could be lost (RST)."""
        with contextlib.suppress(OSError):
            connection.recv(1 << 16)

    def _take_reserve(self) -> None:
        if self._reserve < 0:
            with contextlib.suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _tell(self, event: str, *, detail: str) -> None:
        """Log it once for each spell, however many connections it meets."""
        now, told_at = self._loop.time(), self._told_at
        self._told_at = now
        if now - told_at < _SPELL_S:
            return
        try:
            from torpor.telemetry.events import log  # noqa: PLC0415 - only when there is something to say

            log("warning", event, detail=detail)
        except (ImportError, OSError):  # the import itself may find no descriptor
            print(f"torpor: {event}: {detail}", file=sys.stderr, flush=True)
