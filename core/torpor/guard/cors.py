"""Gives the guard's answers the CORS headers that the engine's own answers would carry.

Without them a page of another origin sees a network error instead of a 503, and does not know that it may try again.

SGLang, vLLM and most engines use Starlette's CORSMiddleware. The guard finds it among the engine's layers and uses its
settings; the middleware itself answers preflights. For any other engine the guard repeats the CORS headers of the engine's
last answer to the same origin. Only for paths that are open to everybody.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from torpor.guard.messages import App, Headers, Message, Receive, Scope, Send

    class _Layer(Protocol):
        app: App

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


__all__ = ["ORIGIN", "Cors"]

ORIGIN = b"origin"

_ALLOWED = b"access-control-allow-origin"
_EVERYBODY = b"*"
_KEPT = (_ALLOWED, b"access-control-allow-credentials", b"access-control-expose-headers", b"vary")
_MOST_ORIGINS = 100
_INNER = ("middleware_stack", "app", "_app", "application")
_MOST_LAYERS = 50

Pairs = tuple[tuple[bytes, bytes], ...]


class Cors:
    """Adds the engine's CORS headers to the guard's answers.

    Args:
        app: the engine's application.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._layer: _Layer | None = None
        self._seen: dict[bytes, Pairs] = {}  # by origin, or _EVERYBODY

    async def answer(
        self, scope: Scope, headers: Headers, send: Send, answering: Callable[[Send], Awaitable[None]]
    ) -> None:
        """Answer a browser's request in the engine's place.

        Args:
            scope: the request's.
            headers: its headers.
            send: the server's.
            answering: sends the guard's answer.
        """
        self._layer = self._layer or _cors_layer(self._app)
        if self._layer is not None:
            layer = copy.copy(self._layer)
            layer.app = lambda _scope, _receive, inner: answering(inner)
            await layer(scope, _nothing_comes, send)
            return
        seen = self._seen.get(headers[ORIGIN]) or self._seen.get(_EVERYBODY, ())
        await answering(_adding(send, seen))

    def watched(self, headers: Headers, send: Send) -> Send:
        """Remember the CORS headers of the engine's answer to this origin, unless its settings are known."""
        if self._layer is not None:
            return send

        async def watching(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._keep(headers[ORIGIN], cast("list[tuple[bytes, bytes]]", message.get("headers", ())))
            await send(message)

        return watching

    def _keep(self, origin: bytes, pairs: list[tuple[bytes, bytes]]) -> None:
        kept = tuple((name.lower(), value) for name, value in pairs if name.lower() in _KEPT)
        allowed = dict(kept).get(_ALLOWED)
        self._seen.pop(origin, None)
        if allowed is None:
            return
        while len(self._seen) >= _MOST_ORIGINS:
            del self._seen[next(iter(self._seen))]
        self._seen[_EVERYBODY if allowed == _EVERYBODY else origin] = kept


def _cors_layer(app: object) -> _Layer | None:
    """The CORSMiddleware (or a subclass) among an application's layers; None before the layers are built."""
    for _ in range(_MOST_LAYERS):
        if hasattr(app, "simple_headers") and hasattr(app, "preflight_headers") and hasattr(app, "app"):
            return cast("_Layer", app)
        inner = next((found for name in _INNER if callable(found := getattr(app, name, None))), None)
        if inner is None:
            return None
        app = inner
    return None


def _adding(send: Send, pairs: Pairs) -> Send:
    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = cast("list[tuple[bytes, bytes]]", message["headers"])
            message = {**message, "headers": [*own, *pairs]}
        await send(message)

    return adding


async def _nothing_comes() -> Message:
    return {"type": "http.disconnect"}
