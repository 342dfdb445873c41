"""One public port before any number of replicas, each in a network of its own.

A connection is taken on the public port, joined to a connection that begins inside a ready replica's network namespace
(`Sandbox.socket`), and forwarded byte for byte in both directions; no HTTP is parsed. No veth pair, no packet filter and
no privilege is needed, and a replica stays unreachable for everything else on the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeVar

from torpor.errors import PortInUseError, SnapshotError
from torpor.snapshots.forward import Side

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Coroutine

    from torpor.hookspecs import Plugin
    from torpor.snapshots.sandbox import Sandbox

    Choose = Callable[[set["_Backend"]], Awaitable["_Backend | None"]]

__all__ = ["READY_FOR_S", "Front", "Target", "ready_path"]

READY_FOR_S = 0.25
"""Seconds for which an answer on the ready path is good."""

_READY_TIMEOUT_S = 1.0
_CONNECT_TIMEOUT_S = 5.0
_BACKLOG = 1024
_SPARE_SOCKETS = 16
_HELPERS = 4
_ROUNDS_TO_CLOSE = 3
_READY_REQUEST = "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_READY_ANSWERS = (b"HTTP/1.1 200", b"HTTP/1.0 200")
_NOBODY = b'{"error": "no replica is ready"}'
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(_NOBODY), _NOBODY)
)
Result = TypeVar("Result")


def ready_path(engine: Plugin) -> str:
    """Where a replica of this engine says that it may get requests.

    Without a guard nothing tells traffic from the lifecycle's own requests, so such a replica is put behind the front only when
    it has woken.
    """
    return "/ready" if engine.guarded else engine.ready_path


@dataclass(frozen=True, kw_only=True)
class Target:
    """A replica behind the front.

    Attributes:
        name: for messages and callbacks.
        sandbox: where it runs.
        port: where its server listens on the sandbox's loopback.
        ready_path: answers 200 when it may get requests: the guard's own, or the engine's where there is no guard.
    """

    name: str
    sandbox: Sandbox
    port: int
    ready_path: str = "/ready"


class Front:
    """The public port, served by a thread of its own.

    A new connection goes to the next replica that answers 200 on its ready path, in turn; the answer is good for 250 ms and
    asked for anew after a failed connection. When none is ready, the client gets 503 with Retry-After.

    Args:
        host: address to listen on.
        port: port to listen on; 0 takes a free one, see `port`.
        on_death: told the target whose leader or sandbox ended, once each, in a thread of its own; it was taken out before.
    """

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, on_death: Callable[[Target], None] | None = None
    ) -> None:
        self._host, self._port = host, port
        self._on_death = on_death
        self._backends: list[_Backend] = []
        self._exposed: dict[int, tuple[_Backend, asyncio.Server]] = {}
        self._turn = 0
        self._sides: set[Side] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="torpor-front")
        self._thread = threading.Thread(target=self._loop.run_forever, name="torpor-front", daemon=True)
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def targets(self) -> tuple[Target, ...]:
        """The replicas behind it now."""
        return tuple(backend.target for backend in self._backends)

    def start(self) -> None:
        """Listen and serve.

        Raises:
            PortInUseError: somebody else listens there.
        """
        self._thread.start()
        try:
            self._server, self._port = self._do(self._listen(self._pick, self._host, self._port))
        except OSError as error:
            self.stop()
            if error.errno != errno.EADDRINUSE:
                raise
            raise PortInUseError(
                f"Port {self._port} is in use: another program listens there (`ss -ltnp 'sport = :{self._port}'` names it). "
                "End it, or choose another port."
            ) from error

    def add(self, target: Target) -> None:
        """Put a replica behind the port; it gets connections as soon as it says that it is ready."""
        self._do(self._add(target))

    def remove(self, target: Target) -> None:
        """Send it no new connection, and close its `expose`d port; connections that it has go on. Harmless to repeat."""
        self._do(self._remove(target))

    def expose(self, target: Target) -> int:
        """A loopback port of the host that always leads to this one replica, ready or not; for the lifecycle's client.

        Args:
            target: behind the front or not; the port is closed by `remove` and `stop`.
        """
        return self._do(self._expose(target))

    def stop(self) -> None:
        """Close the port and every connection. Harmless to repeat."""
        if self._thread.is_alive():
            self._do(self._stop())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        if not self._loop.is_closed():
            self._helpers.shutdown()
            self._loop.run_until_complete(asyncio.sleep(0))  # closes the sockets that came last
            self._loop.close()

    def _do(self, work: Coroutine[None, None, Result]) -> Result:
        """Let the front's thread do something and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start work in the front's thread that is ended with the front."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _listen(self, choose: Choose, host: str, port: int) -> tuple[asyncio.Server, int]:
        def begin(client: Side) -> None:
            self._begin(self._serve(client, choose))

        server = await self._loop.create_server(lambda: Side(self._sides, on_made=begin), host, port, backlog=_BACKLOG)
        return server, server.sockets[0].getsockname()[1]

    async def _serve(self, client: Side, choose: Choose) -> None:
        """Join a new connection to a replica, or to another when one fails."""
        tried: set[_Backend] = set()
        while backend := await choose(tried):
            tried.add(backend)
            try:
                upstream = await backend.connect()
            except (OSError, SnapshotError):
                backend.note_failure()
                continue
            await self._loop.create_connection(lambda: Side(self._sides, other=client), sock=upstream)
            return
        client.refuse(_REFUSAL)

    async def _pick(self, tried: set[_Backend]) -> _Backend | None:
        """The next ready replica in turn; every one that is there now is looked at once, whoever else picks meanwhile."""
        turn, self._turn = self._turn, self._turn + 1
        present = tuple(self._backends)
        for step in range(len(present)):
            backend = present[(turn + step) % len(present)]
            if backend not in tried and await backend.is_ready():
                return backend
            if (
                self._turn == turn + step + 1
            ):  # nobody picked meanwhile: the next one begins behind the one that was passed
                self._turn += 1
        return None

    async def _add(self, target: Target) -> None:
        backend = _Backend(target, self._loop, self._helpers, self._begin)
        self._backends.append(backend)
        self._loop.add_reader(backend.end, self._ended, backend)

    async def _remove(self, target: Target) -> None:
        for backend in [backend for backend in self._backends if backend.target is target]:
            self._take_out(backend)
        for port, (backend, server) in list(self._exposed.items()):
            if backend.target is target:
                del self._exposed[port]
                server.close()
                backend.close()

    async def _expose(self, target: Target) -> int:
        backend = _Backend(target, self._loop, self._helpers, self._begin)

        async def choose(tried: set[_Backend]) -> _Backend | None:
            return None if backend in tried else backend

        server, port = await self._listen(choose, "127.0.0.1", 0)
        self._exposed[port] = backend, server
        return port

    def _ended(self, backend: _Backend) -> None:
        self._take_out(backend)
        if self._on_death:
            name = f"torpor-front-death-{backend.target.name}"
            threading.Thread(target=self._on_death, args=(backend.target,), name=name, daemon=True).start()

    def _take_out(self, backend: _Backend) -> None:
        self._backends.remove(backend)
        self._loop.remove_reader(backend.end)
        backend.close()

    async def _stop(self) -> None:
        for server in [*([self._server] if self._server else []), *(server for _, server in self._exposed.values())]:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for side in list(self._sides):
            side.abort()
        for backend in list(self._backends):
            self._take_out(backend)
        for backend, _ in self._exposed.values():
            backend.close()
        self._exposed.clear()
        for _ in range(_ROUNDS_TO_CLOSE):
            await asyncio.sleep(0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Backend:
    """What the front knows of a replica; used by its thread alone.

    Sockets of the replica's namespace are kept in store: making one is a round trip to pid 1 (0.1 ms), which a connection
    should not wait for.
    """

    def __init__(
        self,
        target: Target,
        loop: asyncio.AbstractEventLoop,
        helpers: ThreadPoolExecutor,
        begin: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self.target = target
        self._begin = begin
        self.end = os.dup(target.sandbox.fileno())  # the sandbox closes its own when it is killed
        self._loop, self._helpers = loop, helpers
        self._spare: deque[socket.socket] = deque()
        self._refilling = self._closed = False
        self._ready = False
        self._checked_at = -READY_FOR_S
        self._checking: asyncio.Task[None] | None = None
        self._refill()

    async def is_ready(self) -> bool:
        """Whether it says so, or said so less than 250 ms ago; many may ask at once."""
        if time.monotonic() - self._checked_at >= READY_FOR_S and not self._closed:
            if self._checking is None:
                self._checking = self._begin(self._check())
            await asyncio.shield(self._checking)
        return self._ready and not self._closed

    def note_failure(self) -> None:
        """A connection failed: ask again before the next."""
        self._checked_at = -READY_FOR_S

    async def connect(self) -> socket.socket:
        """A connection that begins in its network namespace.

        Raises:
            OSError: nobody listens, or not in time.
            SnapshotError: the sandbox is gone.
        """
        if self._spare:
            upstream = self._spare.popleft()
        else:
            upstream = await self._loop.run_in_executor(self._helpers, self.target.sandbox.socket)
        self._refill()
        try:
            upstream.setblocking(False)
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._loop.sock_connect(upstream, ("127.0.0.1", self.target.port))
        except BaseException:
            upstream.close()
            raise
        return upstream

    def close(self) -> None:
        """Let go of everything."""
        self._closed = True
        os.close(self.end)
        while self._spare:
            self._spare.pop().close()

    async def _check(self) -> None:
        ready = False
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                upstream = await self.connect()
                with contextlib.closing(upstream):
                    request = _READY_REQUEST.format(path=self.target.ready_path).encode()
                    await self._loop.sock_sendall(upstream, request)
                    answer = await self._loop.sock_recv(upstream, 64)
            ready = answer.startswith(_READY_ANSWERS)
        except (OSError, SnapshotError):  # TimeoutError is an OSError
            pass
        finally:
            self._ready, self._checked_at, self._checking = ready, time.monotonic(), None

    def _refill(self) -> None:
        if self._refilling or self._closed or len(self._spare) > _SPARE_SOCKETS // 2:
            return
        self._refilling = True
        self._helpers.submit(self._make_spare, _SPARE_SOCKETS - len(self._spare))

    def _make_spare(self, count: int) -> None:
        """In a helper's thread."""
        made: list[socket.socket] = []
        with contextlib.suppress(OSError, SnapshotError):
            made = self.target.sandbox.sockets(count)
        self._loop.call_soon_threadsafe(self._store, made)

    def _store(self, made: list[socket.socket]) -> None:
        self._refilling = False
        for spare in made:
            if self._closed:
                spare.close()
            else:
                self._spare.append(spare)
