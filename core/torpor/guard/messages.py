"""ASGI messages: the guard's own answers, and wrappers around the engine's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MAX_CONTROL_BYTES",
    "App",
    "Headers",
    "HeldEnd",
    "LimitedBody",
    "Message",
    "OwnAnswer",
    "Receive",
    "Refusal",
    "Scope",
    "Send",
    "answer",
    "closing",
    "conflict",
    "hung_up",
    "read_options",
    "refuse",
]

Headers: TypeAlias = dict[bytes, bytes]
Message: TypeAlias = MutableMapping[str, object]
Scope: TypeAlias = MutableMapping[str, object]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_CONTROL_BYTES = 4096
MAX_SKIPPED_BYTES = 64 * 1024
SKIPPING_S = 1.0
_CONFLICT = 409


@dataclass(frozen=True)
class Refusal:
    """An error in the form that OpenAI clients read.

    Attributes:
        status: HTTP status.
        code: for programs.
        message: for people.
        kind: OpenAI's `type` of the error.
        retry: whether the answer has a Retry-After header.
        authenticate: whether the answer asks for a bearer key.
    """

    status: int
    code: str
    message: str
    kind: str = "invalid_request_error"
    retry: bool = False
    authenticate: bool = False


async def refuse(send: Send, refusal: Refusal, retry_after_s: int = 1) -> None:
    """Answer with a refusal."""
    headers = {"retry-after": str(retry_after_s)} if refusal.retry else {}
    if refusal.authenticate:
        headers["www-authenticate"] = "Bearer"
    error = {"message": refusal.message, "type": refusal.kind, "code": refusal.code}
    await answer(send, refusal.status, {"error": error}, headers)


async def answer(send: Send, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
    """Send a complete answer in JSON. For HEAD the server itself leaves out the body."""
    data = json.dumps(body).encode()
    pairs = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    pairs += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": data})


def closing(send: Send) -> Send:
    """Send the answer with a header that ends its connection."""

    async def send_last(message: Message) -> None:
        if message["type"] == "http.response.start":
            pairs = cast("list[tuple[bytes, bytes]]", message.get("headers", []))
            if not any(name.lower() == b"connection" for name, _ in pairs):
                message["headers"] = [*pairs, (b"connection", b"close")]
        await send(message)

    return send_last


async def conflict(send: Send, error: str, state: str, **more: object) -> None:
    """Answer 409: this state does not allow the call."""
    await answer(send, _CONFLICT, {"error": error, "state": state, **more})


async def read_options(receive: Receive) -> dict[str, object] | None:
    """The JSON object in a control request's body; {} for an empty body, None for anything else."""
    data, more = b"", True
    while more:
        message = await receive()
        data += cast("bytes", message.get("body", b""))
        if message["type"] != "http.request" or len(data) > MAX_CONTROL_BYTES:
            return None
        more = bool(message.get("more_body", False))
    try:
        options = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        return None
    return options if isinstance(options, dict) else None


async def hung_up(receive: Receive) -> None:
    """Return when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass


class OwnAnswer:
    """One of the guard's own answers, to a request whose body may not have been read.

    The rest of a short body is read and dropped before the answer, so that the connection can take the next request. The answer
    closes the connection if the body is long (`MAX_SKIPPED_BYTES`, `SKIPPING_S`), if the client waits for an answer before it
    sends the body, or if the body's end is ambiguous: two servers must not read what follows differently.

    Args:
        scope: of the request.
        receive: the server's.
        send: the server's.
        ended: whether the body was read to its end.
        ambiguous: whether two servers could disagree on its end.

    Attributes:
        scope: of the request.
        headers: of the request; the last one counts if a header is repeated.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, ended: bool = False, ambiguous: bool = False
    ) -> None:
        self.scope = scope
        self.headers = headers = dict(cast("list[tuple[bytes, bytes]]", scope["headers"]))
        has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        # From HTTP/2 on each request is its own stream, and "connection: close" is forbidden.
        one_connection = scope.get("http_version") in ("1.0", "1.1")
        self._receive = receive
        self._send = send
        self._ended = ended or not has_body
        self._readable = not ambiguous and b"expect" not in headers
        self._closes = one_connection and (ambiguous or not self._ended)

    async def receive(self) -> Message:
        """The `receive` for an application that reads the body."""
        message = await self._receive()
        self._ended = self._ended or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """The `send` for the answer."""
        if message["type"] == "http.response.start" and self._closes and not await self._skipped():
            pairs = cast("list[tuple[bytes, bytes]]", message["headers"])
            message = {**message, "headers": [*pairs, (b"connection", b"close")]}
        await self._send(message)

    async def _skipped(self) -> bool:
        """Read the rest of the body; return whether it ended within the limits."""
        if not self._readable:
            return False
        left = MAX_SKIPPED_BYTES
        try:
            async with asyncio.timeout(SKIPPING_S):
                while not self._ended and left >= 0:
                    left -= len(cast("bytes", (await self.receive()).get("body", b"")))
        except TimeoutError:
            return False
        return self._ended


class LimitedBody:
    """A request body of unknown length, counted as it comes.

    Over the limit the application sees a client that hung up, which every server application handles. Its answer is dropped,
    and the guard answers instead.

    Args:
        receive: the server's.
        send: the server's.
        limit: largest body, bytes.

    Attributes:
        ended: whether the whole body has come.
    """

    def __init__(self, receive: Receive, send: Send, limit: int) -> None:
        self._receive = receive
        self._send = send
        self._left = limit
        self._answered = False
        self.ended = False

    @property
    def exceeded(self) -> bool:
        """Whether the body was too large."""
        return self._left < 0

    @property
    def unanswered(self) -> bool:
        """Whether the body was too large before the application began to answer."""
        return self.exceeded and not self._answered

    async def receive(self) -> Message:
        """The wrapped ASGI callable for the application."""
        if self.exceeded:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self.ended = self.ended or not message.get("more_body", False)
        self._left -= len(cast("bytes", message.get("body", b"")))
        return {"type": "http.disconnect"} if self.exceeded else message

    async def send(self, message: Message) -> None:
        """The wrapped ASGI callable for the application."""
        if not self.unanswered:
            self._answered = True
            await self._send(message)


class HeldEnd:
    """Holds back the last message of an answer until the application has returned.

    Core sends its lifecycle calls one after another, each on its own connection. The next call must not arrive while the one
    before still counts as in flight.

    Args:
        send: the server's.

    Attributes:
        status: of the answer; 0 before the answer begins.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._last: Message | None = None
        self.status = 0

    @property
    def complete(self) -> bool:
        """Whether the application has sent a complete answer."""
        return self._last is not None

    async def send(self, message: Message) -> None:
        """The wrapped ASGI callable for the application."""
        if message["type"] == "http.response.start":
            self.status = cast("int", message["status"])
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._last = message
        else:
            await self._send(message)

    async def release(self) -> None:
        """Send the last message, if there is one."""
        if self._last is not None:
            await self._send(self._last)
