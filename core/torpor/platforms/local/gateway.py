"""The gateway: one public port before all replicas of a deployment, each in a network of its own.

The gateway accepts a connection on the public port, opens one inside a ready replica's network namespace (`Sandbox.socket`),
and relays bytes in both directions. It parses no HTTP. It needs no veth pair, no packet filter and no privilege, and nothing else
on the machine can reach a replica.

Bad clients cannot block the port. A connection costs a replica nothing before the head of its first request is complete, which has
to happen within 60 s. A client that reads nothing of its answer for 300 s is disconnected; the engine closes idle ones. The number
of connections is limited (`Limits`); further ones get 503 at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self, TypeVar

from torpor.errors import SnapshotError
from torpor.platforms.local.gateway_limits import Limits
from torpor.platforms.local.gateway_route import DESCRIPTORS_A_ROUTE, GatewayReplica, Route
from torpor.platforms.local.listener import Listener
from torpor.platforms.local.relay import Endpoint
from torpor.telemetry.events import log
from torpor.values.addresses import LOOPBACK, cannot_bind

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine

__all__ = ["Gateway"]

_SWEEP_S = 5.0
_LOOK_S = 0.05
_QUIET_S = 2.0
_HELPERS = 4
_ROUNDS_TO_CLOSE = 3
Result = TypeVar("Result")


def _unavailable(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)
    )


_NOT_READY = _unavailable(b'{"error": "no replica is ready"}')
_FULL = _unavailable(b'{"error": "too many connections"}')


class Gateway:
    """The public port, served by a thread of its own.

    New connections go to the ready replicas in turn. A replica is ready when it answers 200 on its ready path; the answer counts
    for 250 ms, and a failed connection asks again. Without a ready replica the client gets 503 with Retry-After.

    Args:
        host: address to listen on.
        port: port to listen on; 0 takes a free one, see `port`.
        on_death: called once for each replica whose leader or sandbox ended, in a thread of its own, after its removal.
        limits: what its clients may take; by default what the environment says.

    Raises:
        ConfigurationError: an environment variable of the limits is not a number.
    """

    def __init__(
        self,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        on_death: Callable[[GatewayReplica], None] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits.of(os.environ)
        self._host, self._port = host, port
        self._on_death = on_death
        self._routes: list[Route] = []
        self._turn = 0
        self._endpoints: set[Endpoint] = set()
        self._draining = False
        self._not_ready = _NOT_READY
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="torpor-gateway")
        self._thread = threading.Thread(target=self._loop.run_forever, name="torpor-gateway", daemon=True)
        self._listener = Listener(self._loop, self._take, answer=_FULL, most=self.limits.connections)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def connections(self) -> int:
        """The number of open client connections."""
        return self._listener.open

    @property
    def most_connections(self) -> int:
        """How many may be open at once, within the limit of open descriptors."""
        return self._listener.most

    @property
    def replicas(self) -> tuple[GatewayReplica, ...]:
        """The replicas behind it now."""
        return tuple(route.replica for route in self._routes)

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

    def add(self, replica: GatewayReplica) -> None:
        """Put a replica behind the port; it gets connections as soon as it says that it is ready."""
        self._do(self._add(replica))

    def remove(self, replica: GatewayReplica) -> None:
        """Send the replica no new connection; its open ones go on. Harmless to repeat."""
        self._do(self._remove(replica))

    def sleeps(self, woken_by: str) -> None:
        """Tell clients that the server sleeps and what wakes it, in the form of the guard's refusals.

        Args:
            woken_by: e.g. `kill -USR2 17 on its machine`; empty once none sleeps.
        """
        message = f"The server is asleep; it answers again once it is woken: {woken_by}."
        error = {"message": message, "type": "server_error", "code": "not_serving"}
        self._not_ready = _unavailable(json.dumps({"error": error}).encode()) if woken_by else _NOT_READY

    def drain(self, limit_s: float) -> int:
        """Refuse new connections, and let clients read the answers that they wait for.

        A connection is done when its replica has closed it and the client has read everything. If the replica leaves it open,
        it is done after two seconds without a request or an answer on their way.

        Args:
            limit_s: seconds to wait at most.

        Returns:
            How many connections are not done; `stop` cuts them.
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
        """Run a coroutine in the gateway's thread and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start a task in the gateway's thread; `stop` cancels it."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _listen(self) -> int:
        self._loop.set_exception_handler(_log_unexpected)
        port = self._listener.listen(self._host, self._port)
        self._sweep()
        return port

    def _take(self, connection: socket.socket) -> None:
        self._begin(self._accept(connection))

    async def _accept(self, connection: socket.socket) -> None:
        def begin(client: Endpoint) -> None:
            self._begin(self._serve(client))

        client = Endpoint(self._endpoints, on_head=begin, on_lost=self._listener.left)
        try:
            await self._loop.connect_accepted_socket(lambda: client, connection)
        except BaseException:
            connection.close()
            if not client.made:
                self._listener.left()
            raise

    async def _serve(self, client: Endpoint) -> None:
        """Join a client that sent its first head to a ready replica; when one fails, to the next."""
        tried: set[Route] = set()
        try:
            while not self._draining and (route := await self._pick(tried)):
                tried.add(route)
                try:
                    upstream = await route.connect()
                except (OSError, SnapshotError):
                    route.note_failure()
                    continue
                await self._join(client, upstream)
                return
            client.refuse(self._not_ready)
        except BaseException:
            client.abort()
            raise

    async def _join(self, client: Endpoint, upstream: socket.socket) -> None:
        try:
            await self._loop.create_connection(lambda: Endpoint(self._endpoints, other=client), sock=upstream)
        except BaseException:
            upstream.close()
            raise

    def _sweep(self) -> None:
        """Close the connections that exceeded a time limit."""
        now, limits = self._loop.time(), self.limits
        for endpoint in tuple(self._endpoints):
            endpoint.check(now, head_timeout_s=limits.head_timeout_s, stall_timeout_s=limits.stall_timeout_s)
        self._loop.call_later(min(_SWEEP_S, limits.head_timeout_s / 4, limits.stall_timeout_s / 4), self._sweep)

    async def _drain(self, limit_s: float) -> int:
        self._draining = True
        deadline = self._loop.time() + limit_s
        quiet: dict[Endpoint, tuple[int, float]] = {}
        while True:
            now = self._loop.time()
            left = [client for client in self._endpoints if client.is_client and not self._is_done(client, quiet, now)]
            if not left or now >= deadline:
                return len(left)
            await asyncio.sleep(_LOOK_S)

    def _is_done(self, client: Endpoint, quiet: dict[Endpoint, tuple[int, float]], now: float) -> bool:
        """Whether a client has every answer that it asked for, as far as bytes can tell."""
        if client.unsent:
            return False
        if not client.joined:
            return not client.asks
        answered, since = quiet.get(client, (-1, now))
        if answered != client.answered or client.owed:
            quiet[client] = client.answered, now
            return False
        return now - since >= _QUIET_S

    async def _pick(self, tried: set[Route]) -> Route | None:
        """The next ready replica in turn. Each replica is asked at most once, also when other connections pick meanwhile."""
        turn, self._turn = self._turn, self._turn + 1
        present = tuple(self._routes)
        for step in range(len(present)):
            route = present[(turn + step) % len(present)]
            if route not in tried and await route.is_ready():
                return route
            # If nobody picked meanwhile, the next connection begins behind the replica that was passed over.
            if self._turn == turn + step + 1:
                self._turn += 1
        return None

    async def _add(self, replica: GatewayReplica) -> None:
        self._listener.fit(more=DESCRIPTORS_A_ROUTE)
        route = Route(replica, self._loop, self._helpers, self._begin)
        self._routes.append(route)
        self._loop.add_reader(route.end, self._ended, route)

    async def _remove(self, replica: GatewayReplica) -> None:
        for route in [route for route in self._routes if route.replica is replica]:
            self._take_out(route)

    def _ended(self, route: Route) -> None:
        self._take_out(route)
        if self._on_death:
            name = f"torpor-gateway-death-{route.replica.name}"
            threading.Thread(target=self._on_death, args=(route.replica,), name=name, daemon=True).start()

    def _take_out(self, route: Route) -> None:
        self._routes.remove(route)
        self._loop.remove_reader(route.end)
        route.close()

    async def _stop(self) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for endpoint in tuple(self._endpoints):
            endpoint.abort()
        for route in list(self._routes):
            self._take_out(route)
        for _ in range(_ROUNDS_TO_CLOSE):
            await asyncio.sleep(0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _log_unexpected(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """Log an error that nothing handled. A connection that was reset at the wrong moment is not worth a line."""
    error = context.get("exception")
    if not isinstance(error, OSError):
        log("error", "gateway_failed", detail=f"{context.get('message')}: {error!r}")
