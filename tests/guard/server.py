"""The guard behind a real server, and clients that write their bytes themselves."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from typing_extensions import override
from uvicorn.config import Config
from uvicorn.server import Server

from tests.guard.engine import KEY, RULES, guarded

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor.guard import GuardRules

__all__ = ["GuardedServer", "Reply", "read_all", "read_until", "replies", "request", "statuses"]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes


class GuardedServer:
    """Uvicorn on a thread, with the guard and the tiny engine in it.

    Args:
        http: uvicorn's HTTP parser, or a class in its place.
        ws: uvicorn's websocket implementation.
        rules: the guard's.

    Attributes:
        port: on loopback.
        errors: what the server logged as an error: an exception that came out of the guard.
    """

    def __init__(
        self, *, http: str | type[asyncio.Protocol] = "h11", ws: str = "none", rules: GuardRules = RULES
    ) -> None:
        self.port = 0
        self.errors: list[str] = []
        self._options = (http, ws, rules)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._log = _Collector(self.errors)
        logging.getLogger("uvicorn.error").addHandler(self._log)
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.engine.gate.set)
        self._server.should_exit = True
        self._thread.join(10)
        logging.getLogger("uvicorn.error").removeHandler(self._log)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        http, ws, rules = self._options
        self.loop = asyncio.get_running_loop()
        self.engine, self.guard = guarded(rules)
        config = Config(
            self.guard,
            host="127.0.0.1",
            port=0,
            http=http,
            ws=ws,
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=2,
        )
        self._server = _ReadyServer(config, self._opened)
        await self._server.serve()

    def _opened(self, port: int) -> None:
        self.port = port
        self._ready.set()

    def run(self, function: Callable[[], None]) -> None:
        """Call something on the server's loop."""
        self.loop.call_soon_threadsafe(function)

    def send(self, data: bytes, *, timeout_s: float = 5.0) -> bytes:
        """Send bytes on a new connection; everything that came back until the server closed it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            connection.sendall(data)
            return read_all(connection)

    def ask(
        self, target: str, *, method: str = "GET", key: str | None = None, more: str = "", body: bytes = b""
    ) -> Reply:
        """One request on a connection of its own."""
        return replies(self.send(request(target, method=method, key=key, more=more, body=body)))[0]

    def control(self, name: str, *, key: str = KEY, body: bytes = b"") -> Reply:
        """A call of the lifecycle."""
        return self.ask(f"/_torpor/{name}", method="GET" if name == "state" else "POST", key=key, body=body)

    def sleep(self) -> None:
        """From serving to asleep."""
        calls = (("/_torpor/drain", 200), ("/pause", 200), ("/release", 200), ("/_torpor/asleep", 200))
        for path, status in calls:
            assert self.ask(path, method="POST", key=KEY).status == status

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the server does, at most 30 seconds."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)


class _ReadyServer(Server):
    """Uvicorn's server, which tells its port when it listens."""

    def __init__(self, config: Config, opened: Callable[[int], None]) -> None:
        super().__init__(config)
        self._opened = opened

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._opened(self.servers[0].sockets[0].getsockname()[1])

    @override
    async def main_loop(self) -> None:
        """Look for the end more often than each 0.1 s, as uvicorn does: hundreds of tests wait for it."""
        await self.on_tick(0)
        while not self.should_exit:  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.005)


class _Collector(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._lines = lines

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))


def request(
    target: str, *, method: str = "GET", key: str | None = None, more: str = "", body: bytes = b"", close: bool = True
) -> bytes:
    """The bytes of a request; `more` is further header lines, each with its line end."""
    lines = f"{method} {target} HTTP/1.1\r\nHost: test\r\n{more}"
    lines += f"torpor-key: {key}\r\n" if key is not None else ""
    lines += (
        f"Content-Length: {len(body)}\r\n" if method == "POST" and "ength" not in more and "ncoding" not in more else ""
    )
    lines += "Connection: close\r\n" if close else ""
    return lines.encode("latin-1") + b"\r\n" + body


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """Everything up to the piece with this in it."""
    data = b""
    while mark not in data:
        piece = connection.recv(65536)
        assert piece, data
        data += piece
    return data


def statuses(data: bytes) -> list[int]:
    """The statuses of the answers that came on one connection."""
    return [int(found) for found in re.findall(rb"HTTP/1\.[01] (\d{3}) ", data)]


def replies(data: bytes, *, head: bool = False) -> list[Reply]:
    """Take apart the answers that came on one connection; `head`: they have no bodies."""
    found = []
    while data:
        top, _, data = data.partition(b"\r\n\r\n")
        first, *lines = top.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        status = int(first.split(" ")[1])
        if headers.get("transfer-encoding") == "chunked":
            body, data = _chunks(data)
        else:
            size = 0 if head or status < 200 else int(headers.get("content-length", len(data)))
            body, data = data[:size], data[size:]
        found.append(Reply(status=status, headers=headers, body=body))
    return found


def _chunks(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
        if length == 0:
            break
    return body, data
