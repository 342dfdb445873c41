"""One HTTP request to the stand-in and its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, TypeAlias, cast
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Exchange", "Message", "Receive", "Scope", "Send"]

Scope: TypeAlias = MutableMapping[str, object]
Message: TypeAlias = MutableMapping[str, object]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class Exchange:
    """One request and its answer.

    Args:
        scope: from the ASGI server.
        receive: from the ASGI server.
        send: from the ASGI server.

    Attributes:
        method: the request's method.
        path: the request's path, without the query.
        query: every value of every parameter, in order.
        gone: whether the client has hung up; only noticed inside `watched`.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method = str(scope["method"])
        self.path = str(scope["path"])
        self.query = parse_qs(cast("bytes", scope.get("query_string", b"")).decode())
        self._receive = receive
        self._send = send
        self.gone = False

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Set `gone` if the client hangs up in this block. The body must already be read."""
        watch = asyncio.ensure_future(self._note_the_end())
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _note_the_end(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True

    async def json(self) -> object:
        """Return the body as JSON; None if it is not JSON."""
        try:
            return cast("object", json.loads(await self.body()))
        except (ValueError, RecursionError):
            return None

    async def body(self) -> bytes:
        """Return the body; empty if the client hangs up before its end."""
        body = b""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return b""
            body += cast("bytes", message.get("body", b""))
            more = bool(message.get("more_body", False))
        return body

    async def answer(self, status: int, value: object) -> None:
        """Send JSON."""
        await self._whole(status, "application/json", json.dumps(value).encode())

    async def answer_text(self, status: int, text: str) -> None:
        """Send plain text."""
        await self._whole(status, "text/plain; charset=utf-8", text.encode())

    async def begin(self, status: int, content_type: str, *extra: tuple[bytes, bytes]) -> None:
        """Send the status line and headers."""
        headers = [(b"content-type", content_type.encode()), *extra]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def chunk(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _whole(self, status: int, content_type: str, body: bytes) -> None:
        await self.begin(status, content_type, (b"content-length", str(len(body)).encode()))
        await self.chunk(body, more=False)
