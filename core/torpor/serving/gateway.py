"""The public port before all models: accepts clients, in a thread with an event loop of its own.

Bad clients cannot block the port. A connection costs a replica nothing before the head of a request is complete, which has
to happen within 60 s. A client that reads nothing of its answer for 300 s is disconnected, and an idle one after 75 s. The number
of connections is limited (`Limits`); further ones get 503 at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Self, TypeVar

from torpor.serving.answers import error_answer
from torpor.serving.client import Client
from torpor.serving.limits import Limits
from torpor.serving.listener import Listener
from torpor.serving.router import Router
from torpor.serving.shared import Shared
from torpor.telemetry.events import log
from torpor.values.addresses import LOOPBACK, cannot_bind

if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine

    from torpor.serving.values import Pages, Places, Way

__all__ = ["HttpGateway"]

_SWEEP_S = 1.0
_LOOK_S = 0.05
_ROUNDS_TO_CLOSE = 3
_HELPERS = 4
Result = TypeVar("Result")


class HttpGateway:
    """The public port, served by a thread of its own.

    Args:
        places: the models and their replicas; called in the gateway's thread only.
        host: address to listen on.
        port: port to listen on; 0 takes a free one, see `port`.
        pages: of the gateway's own; called in its thread.
        limits: what its clients may take; by default what the environment says.

    Attributes:
        limits: see above.
        loop: of its thread.
        helpers: threads for calls that block, e.g. for sockets of a replica's network; their last results reach the loop.
        listener: of the port.

    Raises:
        ConfigurationError: an environment variable of the limits is not a number.
    """

    def __init__(
        self,
        places: Places,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        pages: Pages | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits.of(os.environ)
        self._host, self._port = host, port
        self._tasks: set[asyncio.Task[None]] = set()
        self.loop = asyncio.new_event_loop()
        self.helpers = ThreadPoolExecutor(_HELPERS, thread_name_prefix="torpor-gateway")
        self._thread = threading.Thread(target=self.loop.run_forever, name="torpor-gateway", daemon=True)
        full = error_answer(
            HTTPStatus.SERVICE_UNAVAILABLE, "too_many_connections", "too many connections", retry_after_s=1
        )
        self.listener = Listener(self.loop, self._take, answer=full.encoded(closes=True), most=self.limits.connections)
        self._shared = Shared(
            places=places,
            router=Router(places, pages),
            pages=pages,
            limits=self.limits,
            begin=self.begin,
            left=self.listener.left,
        )

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def connections(self) -> int:
        """The number of open client connections."""
        return self.listener.open

    @property
    def most_connections(self) -> int:
        """How many may be open at once, within the limit of open descriptors."""
        return self.listener.most

    @property
    def in_flight(self) -> int:
        """The number of requests that are not answered yet, those that wait included."""
        return sum(client.in_request for client in tuple(self._shared.clients))

    def start(self) -> None:
        """Listen and serve.

        Raises:
            PortInUseError: somebody else listens there.
            ConfigurationError: this user may not listen there, or this machine has no such address.
        """
        self._thread.start()
        try:
            self._port = self.call(self._listen())
        except OSError as error:
            self.stop()
            raise cannot_bind(self._host, self._port, error, cure="choose another port") from error

    def forget(self, way: Way) -> None:
        """Close the idle connections to a replica, before it sleeps or ends. From any thread."""
        self.call(self._forget(way))

    def close_idle(self, way: Way) -> None:
        """As `forget`, from the gateway's own thread."""
        self._shared.pool.forget(way)

    def drain(self, limit_s: float) -> int:
        """Refuse new requests, close idle connections, and let clients read the answers that they wait for.

        Args:
            limit_s: seconds to wait at most.

        Returns:
            How many clients still wait; `stop` cuts them.
        """
        return self.call(self._drain(limit_s))

    def stop(self) -> None:
        """Close the port and every connection. Harmless to repeat."""
        if self._thread.is_alive():
            self.call(self._stop())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
        if not self.loop.is_closed():
            self.helpers.shutdown()
            self.loop.run_until_complete(asyncio.sleep(0))  # closes the sockets that came last
            self.loop.close()

    def call(self, work: Coroutine[None, None, Result]) -> Result:
        """Run a coroutine in the gateway's thread and wait for it. Not from that thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Start a task in the gateway's thread, from that thread; `stop` cancels it."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _listen(self) -> int:
        self.loop.set_exception_handler(_log_unexpected)
        port = self.listener.listen(self._host, self._port)
        self._sweep()
        return port

    def _take(self, connection: socket.socket) -> None:
        self.begin(self._accept(connection))

    async def _accept(self, connection: socket.socket) -> None:
        client = Client(self._shared)
        self._shared.pool.trim(now=self.loop.time(), most=self._most_idle())
        try:
            await self.loop.connect_accepted_socket(lambda: client, connection)
        except BaseException:
            connection.close()
            if not client.made:
                self.listener.left()
            raise

    def _most_idle(self) -> int:
        """Idle connections to replicas that the descriptors of further clients leave room for."""
        return max(0, 2 * (self.listener.most - self.listener.open))

    def _sweep(self) -> None:
        """Close the connections that exceeded a time limit."""
        now, limits = self.loop.time(), self.limits
        for client in tuple(self._shared.clients):
            client.check(now)
        self._shared.pool.trim(now=now, most=self._most_idle())
        self.loop.call_later(min(_SWEEP_S, limits.head_timeout_s / 4, limits.stall_timeout_s / 4), self._sweep)

    async def _forget(self, way: Way) -> None:
        self.close_idle(way)

    async def _drain(self, limit_s: float) -> int:
        self._shared.draining = True
        deadline = self.loop.time() + limit_s
        for client in tuple(self._shared.clients):
            if not client.in_request and not client.in_head:
                client.finish()
        while True:
            left = sum(client.is_busy for client in self._shared.clients)
            if not left or self.loop.time() >= deadline:
                return left
            await asyncio.sleep(_LOOK_S)

    async def _stop(self) -> None:
        self.listener.close()
        tasks = tuple(self._tasks)
        for client in tuple(self._shared.clients):
            client.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._shared.pool.trim(now=self.loop.time(), most=0)
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
