"""One public port before any number of replicas, each in a network of its own.

A connection is taken on the public port, joined to a connection that begins inside a ready replica's network namespace
(`Sandbox.socket`), and forwarded byte for byte in both directions; no HTTP is parsed. No veth pair, no packet filter and
no privilege is needed, and a replica stays unreachable for everything else on the machine.

The port survives its clients. A connection has 60 s for the head of its first request, and only then costs a replica
anything; one that takes nothing of its answer for 300 s is closed; a quiet one is the engine's to close. Connections are
limited (`Limits`), and the one too many gets 503 at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from torpor.errors import ConfigurationError, SnapshotError
from torpor.platforms.local.listener import MAX_CONNECTIONS, Listener
from torpor.platforms.local.relay import Side
from torpor.values.addresses import cannot_bind

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Mapping
    from socket import socket as Socket  # noqa: N812 - a class, and `socket` is the name of a method

    from torpor.hookspecs import EnginePlugin

__all__ = [
    "CONNECTIONS_VARIABLE",
    "HEAD_VARIABLE",
    "READY_FOR_S",
    "STALL_VARIABLE",
    "Gateway",
    "Limits",
    "Target",
    "ready_path",
]

CONNECTIONS_VARIABLE = "TORPOR_MAX_CONNECTIONS"
HEAD_VARIABLE = "TORPOR_HEAD_TIMEOUT_S"
STALL_VARIABLE = "TORPOR_STALL_TIMEOUT_S"

READY_FOR_S = 0.25
"""Seconds for which an answer on the ready path is good."""

_READY_TIMEOUT_S = 1.0
_CONNECT_TIMEOUT_S = 5.0
_SPARE_SOCKETS = 16
_DESCRIPTORS_A_REPLICA = _SPARE_SOCKETS + 4
_SWEEP_S = 5.0
_LOOK_S = 0.05
_QUIET_S = 2.0
_HELPERS = 4
_ROUNDS_TO_CLOSE = 3
_READY_REQUEST = "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_READY_ANSWERS = (b"HTTP/1.1 200", b"HTTP/1.0 200")
Result = TypeVar("Result")


def _unavailable(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
    )


_NOBODY = _unavailable(b'{"error": "no replica is ready"}')
_FULL = _unavailable(b'{"error": "too many connections"}')


def ready_path(engine: EnginePlugin) -> str:
    """Where a replica of this engine says that it may get requests.

    Without a guard nothing tells traffic from the lifecycle's own requests, so such a replica is put behind the front only when
    it has woken.
    """
    return "/ready" if engine.guarded else engine.ready_path


class Place(Protocol):
    """Where a replica runs, as far as the front asks: a `Sandbox`."""

    def fileno(self) -> int:
        """A descriptor that becomes readable when the replica ends."""

    def socket(self) -> Socket:
        """A TCP socket from which the replica's loopback is reached."""

    def sockets(self, count: int) -> list[Socket]:
        """As `socket`, several at once."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client of the public port may take.

    Attributes:
        connections: at once; fewer where the limit of open descriptors (RLIMIT_NOFILE) is low: a connection takes two, and 48 are
            kept for everything else.
        head_timeout_s: seconds for the head of a connection's first request.
        stall_timeout_s: seconds in which a client has to take something of what waits for it.
    """

    connections: int = MAX_CONNECTIONS
    head_timeout_s: float = 60.0
    stall_timeout_s: float = 300.0

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self:
        """The limits that environment variables say.

        Raises:
            ConfigurationError: a variable is not a number from 1 on.
        """
        return cls(
            connections=int(_positive(environ, CONNECTIONS_VARIABLE, cls.connections)),
            head_timeout_s=_positive(environ, HEAD_VARIABLE, cls.head_timeout_s),
            stall_timeout_s=_positive(environ, STALL_VARIABLE, cls.stall_timeout_s),
        )


def _positive(environ: Mapping[str, str], name: str, default: float) -> float:
    value = environ.get(name, "")
    try:
        number = float(value) if value else float(default)
    except ValueError:
        number = 0.0
    if not 1 <= number < float("inf"):
        raise ConfigurationError(f"The environment variable {name} is {value!r}; allowed is a number from 1 on.")
    return number


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
    sandbox: Place
    port: int
    ready_path: str = "/ready"


class Gateway:
    """The public port, served by a thread of its own.

    A new connection goes to the next replica that answers 200 on its ready path, in turn; the answer is good for 250 ms and
    asked for anew after a failed connection. When none is ready, the client gets 503 with Retry-After.

    Args:
        host: address to listen on.
        port: port to listen on; 0 takes a free one, see `port`.
        on_death: told the target whose leader or sandbox ended, once each, in a thread of its own; it was taken out before.
        limits: what its clients may take; by default what the environment says.

    Raises:
        ConfigurationError: an environment variable of the limits is not a number.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        on_death: Callable[[Target], None] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits.of(os.environ)
        self._host, self._port = host, port
        self._on_death = on_death
        self._backends: list[_Backend] = []
        self._turn = 0
        self._sides: set[Side] = set()
        self._draining = False
        self._nobody = _NOBODY
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="torpor-front")
        self._thread = threading.Thread(target=self._loop.run_forever, name="torpor-front", daemon=True)
        self._listener = Listener(self._loop, self._take, answer=_FULL, most=self.limits.connections)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def connections(self) -> int:
        """The clients' connections that are open now."""
        return self._listener.open

    @property
    def most_connections(self) -> int:
        """How many may be open at once, as the limit of open descriptors allows."""
        return self._listener.most

    @property
    def targets(self) -> tuple[Target, ...]:
        """The replicas behind it now."""
        return tuple(backend.target for backend in self._backends)

    def start(self) -> None:
        """Listen and serve.

        Raises:
            PortInUseError: somebody else listens there.
            ConfigurationError: this user may not listen there, or this machine has no such address.
        """
        self._thread.start()
        try:
            self._port = self._do(self._listen())
        except OSError as error:
            self.stop()
            raise cannot_bind(self._host, self._port, error, cure="choose another port") from error

    def add(self, target: Target) -> None:
        """Put a replica behind the port; it gets connections as soon as it says that it is ready."""
        self._do(self._add(target))

    def remove(self, target: Target) -> None:
        """Send it no new connection; connections that it has go on. Harmless to repeat."""
        self._do(self._remove(target))

    def sleeps(self, woken_by: str) -> None:
        """What clients are told while there is no replica: that it sleeps, and what wakes it, in the form of the guard's refusals.

        Args:
            woken_by: e.g. `kill -USR2 17 on its machine`; empty once none sleeps.
        """
        message = f"The server is asleep; it answers again once it is woken: {woken_by}."
        error = {"message": message, "type": "server_error", "code": "not_serving"}
        self._nobody = _unavailable(json.dumps({"error": error}).encode()) if woken_by else _NOBODY

    def drain(self, limit_s: float) -> int:
        """Refuse whoever comes from now on, and let those who are joined take their answers.

        A connection is over when its replica has closed it and the client has what was sent; one that its replica leaves open,
        asked for nothing and quiet for two seconds, counts as over, too.

        Args:
            limit_s: seconds to wait at most.

        Returns:
            How many connections are not over; `stop` cuts them.
        """
        return self._do(self._drain(limit_s))

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

    async def _listen(self) -> int:
        self._loop.set_exception_handler(_tell_unexpected)
        port = self._listener.listen(self._host, self._port)
        self._sweep()
        return port

    def _take(self, connection: socket.socket) -> None:
        self._begin(self._accept(connection))

    async def _accept(self, connection: socket.socket) -> None:
        def begin(client: Side) -> None:
            self._begin(self._serve(client))

        client = Side(self._sides, on_head=begin, on_lost=self._listener.left)
        try:
            await self._loop.connect_accepted_socket(lambda: client, connection)
        except BaseException:
            connection.close()
            if not client.made:
                self._listener.left()
            raise

    async def _serve(self, client: Side) -> None:
        """Join a connection that has asked something to a replica, or to another when one fails."""
        tried: set[_Backend] = set()
        try:
            while not self._draining and (backend := await self._pick(tried)):
                tried.add(backend)
                try:
                    upstream = await backend.connect()
                except (OSError, SnapshotError):
                    backend.note_failure()
                    continue
                await self._join(client, upstream)
                return
            client.refuse(self._nobody)
        except BaseException:
            client.abort()
            raise

    async def _join(self, client: Side, upstream: socket.socket) -> None:
        try:
            await self._loop.create_connection(lambda: Side(self._sides, other=client), sock=upstream)
        except BaseException:
            upstream.close()
            raise

    def _sweep(self) -> None:
        """Close the connections whose time is over."""
        now, limits = self._loop.time(), self.limits
        for side in tuple(self._sides):
            side.check(now, head_timeout_s=limits.head_timeout_s, stall_timeout_s=limits.stall_timeout_s)
        self._loop.call_later(min(_SWEEP_S, limits.head_timeout_s / 4, limits.stall_timeout_s / 4), self._sweep)

    async def _drain(self, limit_s: float) -> int:
        self._draining = True
        deadline = self._loop.time() + limit_s
        quiet: dict[Side, tuple[int, float]] = {}
        while True:
            now = self._loop.time()
            left = [side for side in self._sides if side.is_client and not self._is_over(side, quiet, now)]
            if not left or now >= deadline:
                return len(left)
            await asyncio.sleep(_LOOK_S)

    def _is_over(self, side: Side, quiet: dict[Side, tuple[int, float]], now: float) -> bool:
        """Whether a client has all that was asked for, as far as bytes can tell."""
        if side.unsent:
            return False
        if not side.joined:
            return not side.asks
        answered, since = quiet.get(side, (-1, now))
        if answered != side.answered or side.owed:
            quiet[side] = side.answered, now
            return False
        return now - since >= _QUIET_S

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
        self._listener.fit(more=_DESCRIPTORS_A_REPLICA)
        backend = _Backend(target, self._loop, self._helpers, self._begin)
        self._backends.append(backend)
        self._loop.add_reader(backend.end, self._ended, backend)

    async def _remove(self, target: Target) -> None:
        for backend in [backend for backend in self._backends if backend.target is target]:
            self._take_out(backend)

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
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for side in tuple(self._sides):
            side.abort()
        for backend in list(self._backends):
            self._take_out(backend)
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
        upstream = self._spare.popleft() if self._spare else await self._made()
        self._refill()
        try:
            upstream.setblocking(False)
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._loop.sock_connect(upstream, ("127.0.0.1", self.target.port))
        except BaseException:
            upstream.close()
            raise
        return upstream

    async def _made(self) -> socket.socket:
        """A new socket of its network namespace; closed where nobody waits for it any more."""
        making = self._helpers.submit(self.target.sandbox.socket)
        try:
            return await asyncio.wrap_future(making)
        except asyncio.CancelledError:
            making.add_done_callback(_close_made)
            raise

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


def _close_made(making: Future[socket.socket]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().close()


def _tell_unexpected(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """Log what nobody expected; a connection that was reset at the wrong moment is no news."""
    error = context.get("exception")
    if isinstance(error, OSError):
        return
    from torpor.telemetry.events import log  # noqa: PLC0415 - only when there is something to say

    log("error", "front_failed", detail=f"{context.get('message')}: {error!r}")
