"""The guard as an ASGI application around the engine's: it lets requests pass, and answers the others itself."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, cast

from torpor.engine_patches.process_identity import keep_process_identities
from torpor.guard.connections import Connections
from torpor.guard.control import Control
from torpor.guard.cors import ORIGIN, Cors
from torpor.guard.keys import BEARER_HEADER, KEY_HEADER, BearerKeys, LifecycleKey
from torpor.guard.messages import HeldEnd, LimitedBody, OwnAnswer, Refusal, answer, closing, conflict, refuse
from torpor.guard.protocol import HEALTH, IDENTITY
from torpor.guard.states import State, StateMachine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from torpor.guard.control import OnWake
    from torpor.guard.messages import App, Headers, Receive, Scope, Send
    from torpor.guard.rules import GuardRules

__all__ = ["Guard"]

_LENGTH, _ENCODING, _HOST = b"content-length", b"transfer-encoding", b"host"
_ONCE = (KEY_HEADER, BEARER_HEADER, _LENGTH, _ENCODING, _HOST)
_MAX_LENGTH_DIGITS = 19
_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1
_OK, _UNAVAILABLE = 200, 503
_ASKS = "POST"  # what a monitor GETs, like /v1/models, says nothing of the model
_SUCCESS = range(200, 300)

_CLOSED = Refusal(404, "not_found", "There is no such path.")
_FORBIDDEN = Refusal(403, "forbidden", "The key is wrong.", "permission_error")
_AMBIGUOUS = Refusal(400, "ambiguous_headers", "A header that may come once came twice, or a body has two lengths.")
_NO_BEARER = Refusal(401, "invalid_api_key", "A valid bearer key is needed.", authenticate=True)
_NOT_POST = Refusal(405, "method_not_allowed", "This call is a POST.")


class _Access(Enum):
    """Who may use a path."""

    HEALTH = auto()
    OPEN = auto()
    PUBLIC = auto()
    KEYED = auto()
    STEP = auto()
    CONTROL = auto()
    IDENTITY = auto()


class _Route(NamedTuple):
    """One exact path: who may use it, and its bytes on the wire. `public` requests go to the engine."""

    access: _Access
    raw: bytes
    public: bool

    @property
    def for_browsers(self) -> bool:
        """Whether the guard's own answers on this path carry the engine's CORS headers."""
        return self.public or self.access is _Access.HEALTH


class Guard:
    """Lets requests to the engine pass, or refuses them. One object per server process; it runs on that server's event loop.

    Args:
        app: the engine's ASGI application, with all of its own middlewares.
        rules: who may use which path.
        key: the lifecycle key of this start, or what the boot document holds in its place. Only digests are kept.
        replica_id: shown to the holder of the key, so that core recognises its own engine.
        on_wake: renews state of the engine's own that is the same in each replica of a snapshot, e.g. a sampler's generator.
            Called at each wake, on the event loop, after every wake step and before the first public request. The guard
            awaits it if it returns a coroutine; an exception fails the wake. The guard renews the default generators itself.

    Raises:
        ValueError: the key is too short, or not what a header can carry.
    """

    def __init__(
        self, app: App, rules: GuardRules, *, key: LifecycleKey | str, replica_id: str, on_wake: OnWake | None = None
    ) -> None:
        self._app = app
        self._cors = Cors(app)
        self._rules = rules
        self._routes = _routes(rules)
        self._bearers = BearerKeys(rules.bearer_sha256)
        self._asks_for_bearer = bool(rules.bearer_sha256)
        self._key = LifecycleKey(key)
        self._machine = StateMachine(rules)
        self._control = Control(self._machine, self._key, replica_id, on_wake)
        self._too_large = Refusal(413, "body_too_large", f"A body may have {rules.max_body_bytes} bytes.")
        self._busy = _unavailable("too_many_requests", f"{rules.max_in_flight} requests are in flight.")
        keep_process_identities()

    @property
    def state(self) -> State:
        """The guard's state."""
        return self._machine.state

    @property
    def in_flight(self) -> int:
        """Requests that the engine is answering."""
        return self._machine.in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection. A public request that may pass takes the fast path."""
        if scope["type"] != "http":
            await self._not_http(scope, receive, send)
            return
        pairs = cast("list[tuple[bytes, bytes]]", scope["headers"])
        headers = dict(pairs)
        route = self._route(scope)
        if (len(headers) != len(pairs) or _ENCODING in headers) and _ambiguous(scope, pairs, headers):
            await self._refuse(OwnAnswer(scope, receive, send, ambiguous=True), _AMBIGUOUS, route)
        elif route is None or not route.public or KEY_HEADER in headers:
            await self._not_public(scope, headers, route, receive, send)
        elif refusal := self._public_refusal(scope, headers, route):
            await self._refuse(OwnAnswer(scope, receive, self._last(send)), refusal, route)
        elif self._asks_for_bearer or _LENGTH not in headers or ORIGIN in headers:
            await self._pass(scope, headers, route, receive, send)
        else:
            self._machine.arrive()
            try:
                await self._app(scope, receive, send)
            finally:
                self._machine.leave(public=scope["method"] == _ASKS)

    def _route(self, scope: Scope) -> _Route | None:
        """The rule for a path; None if no rule matches it byte for byte."""
        route = self._routes.get(cast("str", scope["path"]))
        if route is None or scope.get("root_path") or scope.get("raw_path") not in (route.raw, None):
            return None
        return route

    def _last(self, send: Send) -> Send:
        """Wrap `send` for the guard's own answers: while it drains, each closes its connection."""
        return closing(send) if self._machine.state is State.DRAINING else send

    def _public_refusal(self, scope: Scope, headers: Headers, route: _Route) -> Refusal | None:
        """Why a request without the lifecycle key is refused now; None if it may pass."""
        machine = self._machine
        if machine.state is not State.SERVING:
            return _unavailable("not_serving", f"The server is {machine.state}; {self._control.until}.")
        if self._asks_for_bearer and route.access is not _Access.OPEN and not self._bearers.fit(scope, headers):
            return _NO_BEARER
        if machine.in_flight >= self._rules.max_in_flight:
            return self._busy
        return self._length_refusal(headers)

    def _length_refusal(self, headers: Headers) -> Refusal | None:
        length = headers.get(_LENGTH, b"0").rstrip(b" \t")  # httptools leaves blanks behind a value (RFC 9110, 5.5)
        if length.isdigit() and len(length) <= _MAX_LENGTH_DIGITS and int(length) <= self._rules.max_body_bytes:
            return None
        return self._too_large

    async def _pass(self, scope: Scope, headers: Headers, route: _Route, receive: Receive, send: Send) -> None:
        """Pass a request to the engine without its keys, and count it as in flight until the engine is done with it."""
        if ORIGIN in headers and route.public:
            send = self._cors.watched(headers, send)
        public = KEY_HEADER not in headers
        asks = public and scope["method"] == _ASKS
        if self._asks_for_bearer or not public:
            scope = _without_keys(scope)
        if _bounded(scope, headers):
            await self._count(scope, receive, send, public=asks)
            return
        body = LimitedBody(receive, send, self._rules.max_body_bytes)
        try:
            await self._count(scope, body.receive, body.send, public=asks)
        except Exception:
            if not body.unanswered:
                raise
        if body.unanswered:
            await self._refuse(OwnAnswer(scope, receive, send, ended=body.ended), self._too_large, route)

    async def _count(self, scope: Scope, receive: Receive, send: Send, *, public: bool) -> None:
        self._machine.arrive()
        try:
            await self._app(scope, receive, send)
        finally:
            self._machine.leave(public=public)

    async def _not_public(
        self, scope: Scope, headers: Headers, route: _Route | None, receive: Receive, send: Send
    ) -> None:
        access = route.access if route else None
        own = OwnAnswer(scope, receive, send if access is _Access.IDENTITY else self._last(send))
        refusal: Refusal | None = None
        if access is _Access.HEALTH and scope["method"] in ("GET", "HEAD"):
            await self._openly(own, self._answer_health, route)
        elif KEY_HEADER in headers and not self._key.fits(headers[KEY_HEADER]):
            refusal = _FORBIDDEN
        elif access is _Access.IDENTITY:
            await self._control.prove(scope, headers, own.send)
        elif KEY_HEADER not in headers or route is None or access is _Access.HEALTH:
            refusal = _CLOSED
        elif access is _Access.CONTROL:
            own = OwnAnswer(scope, receive, send)
            await self._control(scope, own.receive, own.send, lambda: Connections.of(receive))
        elif not (refusal := self._length_refusal(headers)):
            await self._keyed(scope, headers, route, receive, send)
        if refusal:
            await self._refuse(own, refusal, route)

    async def _keyed(self, scope: Scope, headers: Headers, route: _Route, receive: Receive, send: Send) -> None:
        """Serve a request that carries the lifecycle key."""
        path, held, own = str(scope["path"]), HeldEnd(send), OwnAnswer(scope, receive, send)
        is_step = route.access is _Access.STEP
        if is_step and scope["method"] != "POST":
            await self._refuse(own, _NOT_POST)
        elif is_step and not self._machine.begin_step(path):
            await self._conflict(own.send, f"{path} is out of order, was called before, or follows a step that failed")
        elif not is_step and not self._machine.engine_is_awake:
            await self._conflict(own.send, f"{path} would reach an engine that is not awake")
        else:
            try:
                await self._pass(scope, headers, route, receive, held.send)
                if is_step:
                    self._machine.end_step(succeeded=held.complete and held.status in _SUCCESS)
            finally:
                await held.release()

    async def _not_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            raise ValueError(f"the guard knows no connections of type {scope['type']!r}")

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        pairs = cast("list[tuple[bytes, bytes]]", scope["headers"])
        headers, route = dict(pairs), self._route(scope)
        known = (
            route is not None and route.public and KEY_HEADER not in headers and not _ambiguous(scope, pairs, headers)
        )
        if known and route is not None and self._public_refusal(scope, headers, route) is None:
            await self._count(_without_keys(scope) if self._asks_for_bearer else scope, receive, send, public=True)
        else:
            await receive()  # the connect message; to close before accepting is answered with 403 by the server
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})

    async def _answer_health(self, send: Send) -> None:
        serving = self._machine.state is State.SERVING
        retry = {} if serving else {"retry-after": str(self._rules.retry_after_s)}
        headers = {**retry, **self._control.boot_headers}
        woken_by = {"woken_by": self._control.woken_by} if self._control.woken_by else {}
        body = {"state": self._machine.state, **woken_by}
        await answer(send, _OK if serving else _UNAVAILABLE, body, headers)

    async def _conflict(self, send: Send, error: str) -> None:
        await conflict(send, error, self._machine.state)

    async def _refuse(self, own: OwnAnswer, refusal: Refusal, route: _Route | None = None) -> None:
        async def refusing(send: Send) -> None:
            await refuse(send, refusal, self._rules.retry_after_s)

        await self._openly(own, refusing, route)

    async def _openly(self, own: OwnAnswer, answering: Callable[[Send], Awaitable[None]], route: _Route | None) -> None:
        """Answer in the engine's place; on public paths with the CORS headers that the engine would send."""
        if route is not None and route.for_browsers and ORIGIN in own.headers:
            await self._cors.answer(own.scope, own.headers, own.send, answering)
        else:
            await answering(own.send)


def _routes(rules: GuardRules) -> dict[str, _Route]:
    """Each path with its rule; the most open rule wins."""
    groups = (
        (_Access.STEP, rules.sleep + rules.wake),
        (_Access.KEYED, rules.keyed),
        (_Access.PUBLIC, rules.public),
        (_Access.OPEN, rules.open),
        (_Access.HEALTH, HEALTH),
        (_Access.CONTROL, Control.paths),
        (_Access.IDENTITY, (IDENTITY,)),
    )
    public = (_Access.OPEN, _Access.PUBLIC)
    return {path: _Route(access, path.encode(), access in public) for access, paths in groups for path in paths}


def _unavailable(code: str, message: str) -> Refusal:
    return Refusal(_UNAVAILABLE, code, message, "server_error", retry=True)


def _ambiguous(scope: Scope, pairs: list[tuple[bytes, bytes]], headers: Headers) -> bool:
    """Whether two servers could read these headers differently: who the client is, or how long the body is."""
    if _ENCODING in headers and (
        _LENGTH in headers or headers[_ENCODING].lower() != b"chunked" or scope.get("http_version") == "1.0"
    ):
        return True
    names = [name for name, _ in pairs]
    return any(names.count(name) > 1 for name in _ONCE)


def _bounded(scope: Scope, headers: Headers) -> bool:
    """Whether the body's end is known in advance (HTTP/1: it has a length, or there is no body)."""
    return _LENGTH in headers or (_ENCODING not in headers and scope.get("http_version") in ("1.1", "1.0"))


def _without_keys(scope: Scope) -> Scope:
    """The scope for the engine, without keys, so that none gets into its log."""
    pairs = cast("list[tuple[bytes, bytes]]", scope["headers"])
    return {**scope, "headers": [pair for pair in pairs if pair[0] not in (KEY_HEADER, BEARER_HEADER)]}
