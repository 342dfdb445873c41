"""An engine whose answers are scripts, byte by byte, and places that count their leases: for tests of the gateway's data path."""

from __future__ import annotations

import asyncio
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from torpor.serving.values import NoPlaceError, ServedModel, Start

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from socket import socket as Socket  # noqa: N812 - a class, as in `socket.socket`

    from torpor.serving.values import Way

__all__ = ["Engine", "Leases", "Script", "answer"]


@dataclass
class Talk:
    """One connection of the engine, as a script sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def request(self) -> bytes:
        """Read a whole request: the head, and a body of known length."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int((head.lower().partition(b"content-length: ")[2].split() or [b"0"])[0])
        return head + await self.reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)
        await self.writer.drain()


Script = "Callable[[Talk], Coroutine[None, None, None]]"


def answer(body: bytes = b"ok", head: bytes = b"HTTP/1.1 200 OK\r\n") -> bytes:
    """A whole answer."""
    return b"%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body)


class Engine:
    """Runs a script for each connection, on a loop of its own. It is a `Way` to itself.

    Attributes:
        connections: how many were accepted.
        open: how many are open.
        got: what the default script read.
    """

    def __init__(self, script: Callable[[Talk], Coroutine[None, None, None]] | None = None) -> None:
        self._script = script or self._echo
        self.connections = self.open = 0
        self.got: list[bytes] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    async def connect(self) -> Socket:
        """See `torpor.serving.values.Way`."""
        made = socket.socket()
        made.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self.port))
        except BaseException:
            made.close()
            raise
        return made

    async def _echo(self, talk: Talk) -> None:
        while True:
            request = await talk.request()
            self.got.append(request)
            await talk.send(answer(request.partition(b"\r\n\r\n")[2] or b"ok"))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            await self._script(Talk(reader, writer, self.connections))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.close()

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024, limit=1 << 22)
        self._server = asyncio.run_coroutine_threadsafe(started, self._loop).result(30)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class Lease:
    """A lease that is counted."""

    way: Way
    leases: Leases
    start: Start = "serving"
    waited_s: float = 0.0
    open: bool = True

    def release(self, *, failed: bool = False) -> None:
        """See `torpor.serving.values.Lease`."""
        if self.open:
            self.open = False
            self.leases.out -= 1
            self.leases.failed += failed


@dataclass
class Leases:
    """Places whose replicas are there, or come when the test lets them.

    Attributes:
        ways: to the engine of each deployment.
        keys: digests of the keys of each deployment that asks for one.
        aliases: further names; the engine knows its deployment's only.
        by_model: whether a request's model decides.
        gate: requests wait until the test sets it; None: nobody waits.
        refusal: what a request that waited gets instead of a lease.
        start: what a request that waited met.
        out: leases that were not given back.
        most: the most that were out at once.
        failed: leases at whose address nobody answered.
        waiting: requests that wait.
        cancelled: requests that left.
        asked: the models of all leases.
    """

    ways: dict[str, Way]
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    by_model: bool = True
    public_paths: tuple[str, ...] = ()
    gate: asyncio.Event | None = None
    refusal: NoPlaceError | None = None
    start: Start = "restored"
    out: int = 0
    most: int = 0
    failed: int = 0
    waiting: int = 0
    cancelled: int = 0
    asked: list[str] = field(default_factory=list)

    def models(self) -> Sequence[ServedModel]:
        """All of them."""
        found = (self.find(name) for name in (*self.ways, *self.aliases))
        return [model for model in found if model is not None]

    def find(self, model: str) -> ServedModel | None:
        """By name or alias."""
        deployment = self.aliases.get(model, model)
        if deployment not in self.ways:
            return None
        return ServedModel(
            name=model,
            deployment=deployment,
            alias_of=deployment if model in self.aliases else "",
            created=17,
            state="serving",
            key_sha256=self.keys.get(deployment, ()),
            public_paths=self.public_paths,
        )

    def default(self) -> ServedModel | None:
        """The only one."""
        return self.find(next(iter(self.ways))) if len(self.ways) == 1 else None

    def take(self, model: ServedModel, prefer: Way | None) -> Lease | None:
        """At once, unless there is a gate."""
        return None if self.gate is not None or self.refusal is not None else self._lease(model)

    async def acquire(self, model: ServedModel, prefer: Way | None) -> Lease:
        """Behind the gate."""
        self.waiting += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        if self.refusal is not None:
            raise self.refusal
        lease = self._lease(model)
        lease.start, lease.waited_s = self.start, 1.25
        return lease

    def _lease(self, model: ServedModel) -> Lease:
        self.out += 1
        self.most = max(self.most, self.out)
        self.asked.append(model.name)
        return Lease(self.ways[model.deployment], self)
