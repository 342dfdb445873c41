"""ASGI messages: answers of the guard's own, and what is wrapped around those of the engine."""

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
        code: what a program looks at.
        message: what a person reads.
        kind: OpenAI's `type` of the error.
        retry: whether the answer says when to try again.
        authenticate: whether it asks for a bearer key.
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
    """Send a whole answer in JSON. A server leaves out the body itself where the method is HEAD."""
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
    """Answer 409: this cannot be done in this state."""
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
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


class OwnAnswer:
    """An answer of the guard's own to a request whose body it may not have read.

    What is left of a short body is read and dropped before the answer, so that the connection takes the next request. Where
    that does not end soon (`MAX_SKIPPED_BYTES`, `SKIPPING_S`), where the client waits for a word before it sends the body, or
    where nobody can tell its end, the answer closes the connection: two readers must not take what follows for different things.

    Args:
        scope: of the request.
        receive: the server's.
        send: the server's.
        ended: whether the body was read to its end.
        ambiguous: whether its end is in doubt.

    Attributes:
        scope: of the request.
        headers: of the request; of one that comes twice the last.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, ended: bool = False, ambiguous: bool = False
    ) -> None:
        self.scope = scope
        self.headers = headers = dict(cast("list[tuple[bytes, bytes]]", scope["headers"]))
        has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        # From HTTP/2 on a request is a stream of its own, and the header that closes is forbidden.
        one_connection = scope.get("http_version") in ("1.0", "1.1")
        self._receive = receive
        self._send = send
        self._ended = ended or not has_body
        self._readable = not ambiguous and b"expect" not in headers
        self._closes = one_connection and (ambiguous or not self._ended)

    async def receive(self) -> Message:
        """For whoever reads the body after all."""
        message = await self._receive()
        self._ended = self._ended or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """For the answer."""
        if message["type"] == "http.response.start" and self._closes and not await self._skipped():
            pairs = cast("list[tuple[bytes, bytes]]", message["headers"])
            message = {**message, "headers": [*pairs, (b"connection", b"close")]}
        await self._send(message)

    async def _skipped(self) -> bool:
        """Read what is left of the body; whether it has an end that is near."""
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

    Over the limit the application sees a client that has gone, which every server application copes with, and whatever it
    answers to that is dropped; the guard answers instead.

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
        """Whether the body was too large, and the application had not begun to answer before it was."""
        return self.exceeded and not self._answered

    async def receive(self) -> Message:
        """For the application."""
        if self.exceeded:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self.ended = self.ended or not message.get("more_body", False)
        self._left -= len(cast("bytes", message.get("body", b"")))
        return {"type": "http.disconnect"} if self.exceeded else message

    async def send(self, message: Message) -> None:
        """For the application."""
        if not self.unanswered:
            self._answered = True
            await self._send(message)


class HeldEnd:
    """Holds the last message of an answer back until the application has returned.

    The holder of the lifecycle key makes its calls one after another, each on a connection of its own: the next one must not
    arrive while the one before is still counted as in flight.

    Args:
        send: the server's.

    Attributes:
        status: of the answer; 0 before it began.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._last: Message | None = None
        self.status = 0

    @property
    def complete(self) -> bool:
        """Whether the application has sent a whole answer."""
        return self._last is not None

    async def send(self, message: Message) -> None:
        """For the application."""
        if message["type"] == "http.response.start":
            self.status = cast("int", message["status"])
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._last = message
        else:
            await self._send(message)

    async def release(self) -> None:
        """Let the last message go, if there is one."""
        if self._last is not None:
            await self._send(self._last)
