"""Requests to an ASGI application without a server: every message is the test's own."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import TYPE_CHECKING, ParamSpec, cast

from tests.guard.engine import KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.guard.engine import Message, Scope
    from torpor.guard import Guard

__all__ = ["Exchange", "ask", "control", "in_loop", "settle", "to_asleep", "to_serving", "to_waking"]

P = ParamSpec("P")
Pairs = tuple[tuple[str, str], ...]


def in_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an async test on an event loop of its own, for at most ten seconds."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def limited() -> None:
            await asyncio.wait_for(test(*args, **kwargs), 10)

        asyncio.run(limited())

    return run


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


class Exchange:
    """One request and its answer, in progress.

    Args:
        guard: the application.
        path: as it goes on the wire; escapes are the caller's business.
        method: HTTP method.
        key: value of the header torpor-key.
        headers: further headers.
        body: the request's body; a tuple comes in pieces with a body of unknown length.
        scope: further or other items of the scope.
        ends: whether the body is complete.
    """

    def __init__(
        self,
        guard: Guard,
        path: str,
        *,
        method: str = "GET",
        key: str | None = None,
        headers: Pairs = (),
        body: bytes | tuple[bytes, ...] = b"",
        scope: Scope | None = None,
        ends: bool = True,
    ) -> None:
        pieces = (body,) if isinstance(body, bytes) else body
        pairs = [(name.encode(), value.encode()) for name, value in headers]
        if key is not None:
            pairs.append((b"torpor-key", key.encode()))
        if not isinstance(body, bytes):
            pairs.append((b"transfer-encoding", b"chunked"))
        elif method == "POST" and not any(name == b"content-length" for name, _ in pairs):
            pairs.append((b"content-length", str(len(body)).encode()))
        self.status = 0
        self.complete = False
        self.headers: dict[str, str] = {}
        self.body = b""
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._gone = False
        for number, piece in enumerate(pieces, start=1):
            self.feed(piece, more=not ends or number < len(pieces))
        full_scope: Scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": pairs,
            **(scope or {}),
        }
        self.task = asyncio.ensure_future(guard(full_scope, self._receive, self._send))

    def feed(self, body: bytes, *, more: bool) -> None:
        """A further piece of the body."""
        self._inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def hang_up(self) -> None:
        """The client goes away."""
        self._inbox.put_nowait({"type": "http.disconnect"})

    @property
    def json(self) -> dict[str, object]:
        """The answer's body."""
        return cast("dict[str, object]", json.loads(self.body))

    @property
    def code(self) -> object:
        """The code of an error in OpenAI's form."""
        return cast("dict[str, object]", self.json["error"])["code"]

    async def _receive(self) -> Message:
        if not self._gone:
            message = await self._inbox.get()
            self._gone = message["type"] == "http.disconnect"
            return message
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._gone:
            return
        assert not self.complete, f"{message} after the end of the answer"
        if message["type"] == "http.response.start":
            assert self.status == 0, "an answer began twice"
            self.status = cast("int", message["status"])
            pairs = cast("list[tuple[bytes, bytes]]", message["headers"])
            self.headers = {name.decode(): value.decode() for name, value in pairs}
        else:
            assert self.status, "a body without a beginning"
            self.body += cast("bytes", message.get("body", b""))
            self.complete = not message.get("more_body", False)
            if self.complete:
                self._inbox.put_nowait({"type": "http.disconnect"})


async def ask(
    guard: Guard,
    path: str,
    *,
    method: str = "GET",
    key: str | None = None,
    headers: Pairs = (),
    body: bytes | tuple[bytes, ...] = b"",
    scope: Scope | None = None,
) -> Exchange:
    """A whole request; its answer."""
    exchange = Exchange(guard, path, method=method, key=key, headers=headers, body=body, scope=scope)
    await exchange.task
    return exchange


async def control(guard: Guard, name: str, options: object = None, *, key: str = KEY) -> Exchange:
    """A call of the lifecycle; `state` is a GET, the others are POSTs."""
    body = b"" if options is None else json.dumps(options).encode()
    return await ask(guard, f"/_torpor/{name}", method="GET" if name == "state" else "POST", key=key, body=body)


async def to_serving(guard: Guard) -> None:
    """From starting to serving."""
    assert (await control(guard, "serve")).status == 200


async def to_asleep(guard: Guard) -> None:
    """From starting or serving to asleep."""
    assert (await control(guard, "drain")).status == 200
    for step in ("/pause", "/release"):
        assert (await ask(guard, step, method="POST", key=KEY)).status == 200
    assert (await control(guard, "asleep")).status == 200


async def to_waking(guard: Guard) -> None:
    """From starting or serving to waking, with no step done."""
    await to_asleep(guard)
    assert (await control(guard, "wake")).status == 200
