"""A replica without a sandbox for the gateway: a small HTTP server in a thread, on its own loopback port."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from typing import TYPE_CHECKING, Self

from torpor.platforms.local.gateway_route import GatewayReplica

if TYPE_CHECKING:
    from socket import socket as Socket  # noqa: N812 - a class, and `socket` is the name of a method

__all__ = ["Place"]


class Place:
    """Answers `/ready` as `ready` says, `/flood` with endless bytes, `/never` not at all, and everything else with `ok`.

    For the test, `asked` counts the requests that reached it and `open` its open connections.
    """

    def __init__(self) -> None:
        self.ready = True
        self.asked = 0
        self.open = 0
        self._alive, self._end = os.pipe()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    def replica(self, name: str = "a") -> GatewayReplica:
        """The replica as the gateway knows it."""
        return GatewayReplica(name=name, sandbox=self, port=self.port)

    def fileno(self) -> int:
        """A descriptor that becomes readable when it ends."""
        return self._alive

    def socket(self) -> Socket:
        """A plain socket: the server is in the test's network."""
        return socket.socket()

    def sockets(self, count: int) -> list[Socket]:
        """Several plain sockets."""
        return [socket.socket() for _ in range(count)]

    def __enter__(self) -> Self:
        self._thread.start()
        started = asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024, limit=1 << 20)
        server = asyncio.run_coroutine_threadsafe(started, self._loop).result()
        self.port = server.sockets[0].getsockname()[1]
        self._server = server
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        os.close(self._alive)
        os.close(self._end)

    async def _stop(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head.split()[1].decode(), writer)
                if b"onnection: close" in head:
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/ready":
            status = b"200 OK" if self.ready else b"503 Service Unavailable"
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status)
            return
        self.asked += 1
        if path == "/flood":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
        if path == "/never":
            await asyncio.Event().wait()
        if path.startswith("/drip"):  # 20 chunks
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n")
            for _ in range(20):
                writer.write(b"x")
                await asyncio.sleep(0.05)
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
