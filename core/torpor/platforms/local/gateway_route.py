"""How the gateway reaches one replica: sockets of the replica's network, and whether the replica is ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torpor.errors import SnapshotError
from torpor.guard.protocol import READY
from torpor.values.addresses import LOOPBACK

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future, ThreadPoolExecutor
    from socket import socket as Socket  # noqa: N812 - a class, and `socket` is the name of a method

    from torpor.hookspecs import EnginePlugin

__all__ = ["DESCRIPTORS_A_ROUTE", "READY_FOR_S", "GatewayReplica", "Place", "Route", "ready_path"]

READY_FOR_S = 0.25
"""Seconds for which an answer on the ready path counts."""

_SPARE_SOCKETS = 16
DESCRIPTORS_A_ROUTE = _SPARE_SOCKETS + 4
"""Descriptors that the gateway holds for a replica, beside those of its connections."""

_PROMPT_S, _LATE_S = 1.0, 10.0
_CONNECT_TIMEOUT_S = 5.0
_READY_REQUEST = "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_READY_ANSWERS = (b"HTTP/1.1 200", b"HTTP/1.0 200")


def ready_path(engine: EnginePlugin) -> str:
    """The path on which a replica of this engine answers 200 once it takes requests.

    An engine without a guard answers on its own path, also while it still wakes. Such a replica is added after its wake only.
    """
    return READY if engine.guarded else engine.ready_path


class Place(Protocol):
    """What the gateway needs of the place where a replica runs; a `Sandbox` has it."""

    def fileno(self) -> int:
        """A descriptor that becomes readable when the replica ends."""

    def socket(self) -> Socket:
        """A TCP socket that connects to the replica's loopback."""

    def sockets(self, count: int) -> list[Socket]:
        """As `socket`, several at once."""


@dataclass(frozen=True, kw_only=True)
class GatewayReplica:
    """A replica behind the gateway.

    Attributes:
        name: for messages and callbacks.
        sandbox: where it runs.
        port: where its server listens on the sandbox's loopback.
        ready_path: answers 200 when the replica takes requests; see the function `ready_path`.
    """

    name: str
    sandbox: Place
    port: int
    ready_path: str = READY


class Route:
    """The gateway's way to one replica. Only the gateway's thread uses it.

    It keeps spare sockets of the replica's network namespace: making one is a round trip to the sandbox's pid 1 (0.1 ms), and no
    connection should wait for that.

    Args:
        replica: where the route leads.
        loop: the gateway's.
        helpers: make sockets.
        begin: starts a task that ends with the gateway.

    Attributes:
        replica: see above.
        is_late: whether the replica took the last question and did not answer in time. A busy one answers later.
    """

    def __init__(
        self,
        replica: GatewayReplica,
        loop: asyncio.AbstractEventLoop,
        helpers: ThreadPoolExecutor,
        begin: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self.replica = replica
        self._begin = begin
        self.end = os.dup(replica.sandbox.fileno())  # the sandbox closes its own when it is killed
        self._loop, self._helpers = loop, helpers
        self._spare: deque[socket.socket] = deque()
        self._refilling = self._closed = False
        self._ready = False
        self.is_late = False
        self._checked_at = -READY_FOR_S
        self._checking: asyncio.Task[None] | None = None
        self._refill()

    async def is_ready(self, *, late: bool = False) -> bool:
        """Whether the replica says that it is ready, now or less than 250 ms ago. Many callers share one question.

        Args:
            late: wait ten seconds in place of one for a replica that was late.
        """
        asks_again = late and self.is_late
        if (asks_again or time.monotonic() - self._checked_at >= READY_FOR_S) and not self._closed:
            if self._checking is None:
                self._checking = self._begin(self._check(_LATE_S if asks_again else _PROMPT_S))
            await asyncio.shield(self._checking)
        return self._ready and not self._closed

    @property
    def was_ready(self) -> bool:
        """Whether the replica said less than 250 ms ago that it is ready."""
        return self._ready and not self._closed and time.monotonic() - self._checked_at < READY_FOR_S

    def note_failure(self) -> None:
        """A connection failed: ask whether the replica is ready before the next one."""
        self._checked_at = -READY_FOR_S

    async def connect(self) -> socket.socket:
        """Connect to the replica from inside its network namespace.

        Raises:
            OSError: nobody listens, or not in time.
            SnapshotError: the sandbox is gone.
        """
        upstream = self._spare.popleft() if self._spare else await self._new_socket()
        self._refill()
        try:
            upstream.setblocking(False)
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._loop.sock_connect(upstream, (LOOPBACK, self.replica.port))
        except BaseException:
            upstream.close()
            raise
        return upstream

    def close(self) -> None:
        """Close the spare sockets and stop watching the replica's end."""
        self._closed = True
        os.close(self.end)
        while self._spare:
            self._spare.pop().close()

    async def _new_socket(self) -> socket.socket:
        """A new socket of the replica's network namespace; closed when its caller was cancelled."""
        making = self._helpers.submit(self.replica.sandbox.socket)
        try:
            return await asyncio.wrap_future(making)
        except asyncio.CancelledError:
            making.add_done_callback(_close_result)
            raise

    async def _check(self, timeout_s: float) -> None:
        ready = late = False
        try:
            async with asyncio.timeout(timeout_s):
                upstream = await self.connect()
                with contextlib.closing(upstream):
                    request = _READY_REQUEST.format(path=self.replica.ready_path).encode()
                    await self._loop.sock_sendall(upstream, request)
                    answer = await self._loop.sock_recv(upstream, 64)
            ready = answer.startswith(_READY_ANSWERS)
        except TimeoutError:
            late = True
        except (OSError, SnapshotError):
            pass
        finally:
            self._ready, self.is_late = ready, late
            self._checked_at, self._checking = time.monotonic(), None

    def _refill(self) -> None:
        if self._refilling or self._closed or len(self._spare) > _SPARE_SOCKETS // 2:
            return
        self._refilling = True
        self._helpers.submit(self._make_spare, _SPARE_SOCKETS - len(self._spare))

    def _make_spare(self, count: int) -> None:
        """Runs in a helper's thread."""
        made: list[socket.socket] = []
        with contextlib.suppress(OSError, SnapshotError):
            made = self.replica.sandbox.sockets(count)
        self._loop.call_soon_threadsafe(self._store, made)

    def _store(self, made: list[socket.socket]) -> None:
        self._refilling = False
        for spare in made:
            if self._closed:
                spare.close()
            else:
                self._spare.append(spare)


def _close_result(making: Future[socket.socket]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().close()
