"""The guard: a pure-ASGI door inside the engine's own server process.

An engine's management routes are open to whoever has the URL, a health probe or a second resume kills a sleeping SGLang,
and nothing tells a load balancer that a replica is asleep (measured; see SECURITY.md). The guard stands before the
engine's application, outside all of its middlewares, and adds no hop and no copy of a token stream.

    starting --serve--> serving --drain--> draining --asleep--> asleep --wake--> waking --serve--> serving
        '--------------------drain-----------^ |
                             serving <--serve--' (nothing was put to sleep yet)

Who may pass, by path and state; a path is compared whole, as the application will see it:

    /health, /ready      everybody; answered here from the state: 200 only when serving, else 503 with Retry-After
    public paths         everybody while serving (with a bearer key, if the rules hold any); else 503 with Retry-After
    keyed paths          the lifecycle key, but never while asleep; without the key 404
    sleep, wake steps    the lifecycle key, in order, once each, only while draining and waking; else 409 with the state
    /_torpor/*           the lifecycle key: the transitions above, and GET /_torpor/state
    everything else      404; with a wrong key 403, whatever the path

Standard library only: it runs in the engine's environment, whose packages are the engine's business.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum

__all__ = ["BOOT_FD_VARIABLE", "BootDocument", "Guard", "GuardRules", "State", "boot_document_json", "read_boot"]

Message = MutableMapping[str, object]
Scope = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

BOOT_FD_VARIABLE = "TORPOR_BOOT_FD"
KEY_HEADER = b"torpor-key"
CONTROL = "/_torpor/"
HEALTH = frozenset({"/health", "/ready"})

_MAX_BOOT_BYTES = 64 * 1024
_MAX_CONTROL_BYTES = 4096
_MIN_KEY_LENGTH = 16
_SHA256_HEX = 64
_POLICY_VIOLATION = 1008  # RFC 6455, section 7.4.1


class State(StrEnum):
    """What the guard lets pass."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"
    ASLEEP = "asleep"
    WAKING = "waking"


@dataclass(frozen=True, kw_only=True)
class GuardRules:
    """Which of the engine's paths are whose.

    Attributes:
        public: exact paths open while serving, behind a bearer key if `bearer_sha256` holds any.
        open: exact paths open while serving without any key, e.g. `/metrics` where the operator says so.
        keyed: exact paths that only the lifecycle key opens, in every state but asleep.
        sleep: the calls that put the engine to sleep: with the key, in this order, once each, while draining.
        wake: the calls that wake it: with the key, in this order, once each, while waking.
        bearer_sha256: SHA-256 (hex) of the bearer keys that open the public paths; none: they need no key.
        max_body_bytes: largest request body.
        max_in_flight: public requests at once; further ones get 503 with Retry-After.
        retry_after_s: what Retry-After says, seconds.
    """

    public: tuple[str, ...]
    open: tuple[str, ...] = ()
    keyed: tuple[str, ...] = ()
    sleep: tuple[str, ...] = ()
    wake: tuple[str, ...] = ()
    bearer_sha256: tuple[str, ...] = ()
    max_body_bytes: int = 32 * 1024 * 1024
    max_in_flight: int = 1000
    retry_after_s: int = 2

    def __post_init__(self) -> None:
        for digest in self.bearer_sha256:
            if len(digest) != _SHA256_HEX or set(digest) - set("0123456789abcdef"):
                raise ValueError("bearer_sha256 has to hold SHA-256 digests of keys, 64 lower-case hex digits each")
        for path in self.public + self.open + self.keyed + self.sleep + self.wake:
            if not path.startswith("/") or path.startswith(CONTROL) or path in HEALTH:
                raise ValueError(
                    f"{path!r} cannot be ruled: paths begin with '/', and {CONTROL}* and health are the guard's own"
                )


@dataclass(frozen=True, kw_only=True)
class BootDocument:
    """What core hands the engine's launcher: the lifecycle key, the boot's identity and the rules."""

    key: str
    boot_id: str
    rules: GuardRules


def boot_document_json(*, key: str, boot_id: str, rules: GuardRules) -> str:
    """The document as it goes through the pipe."""
    return json.dumps({"key": key, "boot_id": boot_id, "rules": asdict(rules)})


def read_boot() -> BootDocument | None:
    """Read the inherited pipe to its end, close it and forget its number; None where there is no pipe.

    Call it under `__name__ == "__main__"` only and before anything is spawned: a spawned child imports the main module
    again, and the same descriptor number is another file there.

    Raises:
        ValueError: the variable or the document is not what `Engine.start` writes.
    """
    number = os.environ.pop(BOOT_FD_VARIABLE, None)
    if number is None:
        return None
    try:
        with os.fdopen(int(number), "rb") as pipe:
            data = pipe.read(_MAX_BOOT_BYTES + 1)
    except (ValueError, OSError) as error:
        raise ValueError(f"{BOOT_FD_VARIABLE}={number} is not an open descriptor: {error}") from None
    if len(data) > _MAX_BOOT_BYTES:
        raise ValueError(f"the boot document is larger than {_MAX_BOOT_BYTES} bytes")
    try:
        document = json.loads(data)
        known = {item.name for item in fields(GuardRules)}
        rules = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in document["rules"].items()
            if name in known
        }
        return BootDocument(key=document["key"], boot_id=document["boot_id"], rules=GuardRules(**rules))  # type: ignore[arg-type] # __post_init__ looks at the values
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"the boot document is damaged: {type(error).__name__}") from None


class Guard:
    """The door. One object per server process; every method runs on that server's event loop.

    Args:
        app: the engine's ASGI application, with all of its own middlewares.
        rules: which paths are whose.
        key: the lifecycle key of this boot.
        boot_id: told to the holder of the key, so that core knows its own engine.
    """

    def __init__(self, app: App, rules: GuardRules, *, key: str, boot_id: str) -> None:
        self._app = app
        self._rules = rules
        self._public = frozenset(rules.public + rules.open)
        self._open = frozenset(rules.open)
        self._keyed = frozenset(rules.public + rules.open + rules.keyed)
        self._steps = frozenset(rules.sleep + rules.wake)
        self._bearers = tuple(bytes.fromhex(digest) for digest in rules.bearer_sha256)
        self._retry_after = str(rules.retry_after_s).encode()
        self._key = key.encode()
        self._boot_id = boot_id
        self._idle: asyncio.Event | None = None
        self.state = State.STARTING
        self.in_flight = 0
        self._passed = 0  # sleep or wake steps of this transition that were let through
        self._step_failed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        headers: Headers = scope["headers"]  # type: ignore[assignment] # ASGI 3.0: pairs of bytes, names in lower case
        keys = [value for name, value in headers if name == KEY_HEADER]
        if not keys and path in self._public and not scope.get("root_path"):
            await self._public_request(scope, headers, receive, send)
        elif path in HEALTH and scope["method"] in ("GET", "HEAD"):
            serving = self.state is State.SERVING
            await self._answer(send, 200 if serving else 503, {"state": self.state.value}, retry=not serving)
        elif not keys:
            await self._answer(send, 404, {"error": "not found"})
        elif len(keys) > 1 or not hmac.compare_digest(keys[0], self._key):
            await self._answer(send, 403, {"error": "forbidden"})
        else:
            await self._keyed_request(scope, headers, receive, send)

    async def _public_request(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        if self.state is not State.SERVING:
            await self._unavailable(send, f"The server is {self.state.value}; try again in a moment.")
        elif self._bearers and scope["path"] not in self._open and not self._bearer_fits(scope, headers):
            await self._refuse(send, 401, "A valid bearer key is needed.", "invalid_api_key")
        elif self.in_flight >= self._rules.max_in_flight:
            await self._unavailable(send, f"{self.in_flight} requests are in flight, which is the limit.")
        else:
            await self._pass(scope, headers, receive, send)

    async def _keyed_request(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        path = str(scope["path"])
        if path.startswith(CONTROL):
            await self._control(str(scope["method"]), path.removeprefix(CONTROL), receive, send)
        elif path in self._steps:
            await self._step(scope, headers, receive, send)
        elif path not in self._keyed or scope.get("root_path"):
            await self._answer(send, 404, {"error": "not found"})
        elif self.state is State.ASLEEP or (self.state is State.DRAINING and self._passed):
            await self._conflict(send, f"{path} would reach an engine that sleeps")
        else:
            await self._pass(scope, headers, receive, send)

    async def _step(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Let a sleep or wake call through when it is the next one, and remember how it ended."""
        steps = {State.DRAINING: self._rules.sleep, State.WAKING: self._rules.wake}.get(self.state, ())
        busy = self.in_flight > 0
        if busy or self._step_failed or self._passed >= len(steps) or scope["path"] != steps[self._passed]:
            await self._conflict(send, f"{scope['path']} is out of order or was called before")
            return
        self._passed += 1
        self._step_failed = True  # until it has answered well: an error or a lost connection leaves it so

        async def watching(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._step_failed = not 200 <= int(str(message["status"])) < 300  # noqa: PLR2004 - HTTP's success class
            await send(message)

        await self._pass(scope, headers, receive, watching)

    async def _pass(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Hand a request to the engine and count it until its answer is complete."""
        length = next((value for name, value in headers if name == b"content-length"), b"")
        if length and not (length.isdigit() and int(length) <= self._rules.max_body_bytes):
            await self._refuse(send, 413, f"The body may have {self._rules.max_body_bytes} bytes.", "body_too_large")
            return
        inner = {**scope, "headers": [pair for pair in headers if pair[0] != KEY_HEADER]}
        self.in_flight += 1
        try:
            if length or not any(name == b"transfer-encoding" for name, _ in headers):
                await self._app(inner, receive, send)
            else:
                await self._pass_chunked(inner, receive, send)
        finally:
            self._leave()

    async def _pass_chunked(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A body of unknown length is counted as it comes."""
        size, started = 0, False

        async def counting() -> Message:
            nonlocal size
            message = await receive()
            body = message.get("body", b"")
            size += len(body) if isinstance(body, bytes) else 0
            if size > self._rules.max_body_bytes:
                raise _BodyTooLargeError
            return message

        async def noting(message: Message) -> None:
            nonlocal started
            if size > self._rules.max_body_bytes and not started:
                raise _BodyTooLargeError  # the application swallowed the first one
            started = True
            await send(message)

        try:
            await self._app(scope, counting, noting)
        except _BodyTooLargeError:
            if not started:
                await self._refuse(
                    send, 413, f"The body may have {self._rules.max_body_bytes} bytes.", "body_too_large"
                )

    def _leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0 and self._idle is not None:
            self._idle.set()

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = scope["headers"]  # type: ignore[assignment] # as in _http
        allowed = (
            self.state is State.SERVING
            and scope["path"] in self._public
            and not scope.get("root_path")
            and not any(name == KEY_HEADER for name, _ in headers)
            and (not self._bearers or scope["path"] in self._open or self._bearer_fits(scope, headers))
            and self.in_flight < self._rules.max_in_flight
        )
        if not allowed:
            await receive()  # the connect message
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
            return
        self.in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._leave()

    def _bearer_fits(self, scope: Scope, headers: Headers) -> bool:
        if scope.get("method") == "OPTIONS":
            return True  # a browser's CORS preflight carries no key, and reaches no route's handler
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1 or given[0][:7].lower() != b"bearer ":
            return False
        digest = hashlib.sha256(given[0][7:].strip()).digest()
        # every digest is compared, so that the time tells nothing about which one fits
        return sum([hmac.compare_digest(digest, known) for known in self._bearers]) > 0

    async def _control(self, method: str, name: str, receive: Receive, send: Send) -> None:
        if name == "state" and method == "GET":
            body = {"state": self.state.value, "in_flight": self.in_flight, "boot_id": self._boot_id}
            await self._answer(send, 200, body)
            return
        if method != "POST" or name not in ("serve", "drain", "asleep", "wake"):
            await self._answer(send, 404, {"error": "not found"})
            return
        options = await _read_options(receive)
        if options is None:
            await self._answer(
                send, 400, {"error": f"the body has to be a JSON object of at most {_MAX_CONTROL_BYTES} bytes"}
            )
        elif name == "drain":
            await self._drain(options, send)
        elif name == "wake":
            await self._wake(options, send)
        elif self._may_enter(name):
            self._enter(State.SERVING if name == "serve" else State.ASLEEP)
            await self._answer(send, 200, {"state": self.state.value})
        else:
            await self._conflict(send, f"{name} is out of order")

    def _may_enter(self, name: str) -> bool:
        done = not self._step_failed and not (self.in_flight and self.state is not State.STARTING)
        if name == "asleep":
            return self.state is State.DRAINING and done and self._passed == len(self._rules.sleep)
        if self.state is State.DRAINING:
            return self._idle is None and self._passed == 0
        return self.state is State.STARTING or (
            self.state is State.WAKING and done and self._passed == len(self._rules.wake)
        )

    def _enter(self, state: State) -> None:
        self.state, self._passed, self._step_failed = state, 0, False

    async def _drain(self, options: dict[str, object], send: Send) -> None:
        """Refuse new requests and wait until none is in flight; at the deadline go back, with nothing lost."""
        before = self.state
        deadline_s = options.get("deadline_s", 0.0)
        if before not in (State.STARTING, State.SERVING):
            await self._conflict(send, "drain is out of order")
            return
        if isinstance(deadline_s, bool) or not isinstance(deadline_s, int | float) or not 0 <= deadline_s <= 3600:  # noqa: PLR2004
            await self._answer(send, 400, {"error": "deadline_s has to be a number of seconds, 0 to 3600"})
            return
        self._enter(State.DRAINING)
        self._idle = asyncio.Event()
        idle = False
        try:
            if self.in_flight:
                await asyncio.wait_for(self._idle.wait(), deadline_s)
            idle = True
        except TimeoutError:
            pass
        finally:
            self._idle = None
            if not idle:  # also when the caller went away
                self._enter(before)
        if idle:
            await self._answer(send, 200, {"state": self.state.value})
        else:
            body = {"error": "requests are still in flight", "state": self.state.value, "in_flight": self.in_flight}
            await self._answer(send, 409, body)

    async def _wake(self, options: dict[str, object], send: Send) -> None:
        key = options.get("key")
        if self.state is not State.ASLEEP:
            await self._conflict(send, "wake is out of order")
        elif key is not None and (not isinstance(key, str) or len(key) < _MIN_KEY_LENGTH or not key.isascii()):
            await self._answer(
                send, 400, {"error": f"key has to be an ASCII string of at least {_MIN_KEY_LENGTH} characters"}
            )
        else:
            if isinstance(key, str):
                self._key = key.encode()
            self._enter(State.WAKING)
            await self._answer(send, 200, {"state": self.state.value})

    async def _conflict(self, send: Send, what: str) -> None:
        await self._answer(send, 409, {"error": what, "state": self.state.value})

    async def _unavailable(self, send: Send, message: str) -> None:
        await self._refuse(send, 503, message, "unavailable", retry=True)

    async def _refuse(self, send: Send, status: int, message: str, code: str, *, retry: bool = False) -> None:
        """An error in the form that OpenAI clients read."""
        await self._answer(
            send, status, {"error": {"message": message, "type": "torpor_guard", "code": code}}, retry=retry
        )

    async def _answer(self, send: Send, status: int, body: object, *, retry: bool = False) -> None:
        data = json.dumps(body).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
        if retry:
            headers.append((b"retry-after", self._retry_after))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})


class _BodyTooLargeError(Exception):
    """A chunked body went over the limit."""


async def _read_options(receive: Receive) -> dict[str, object] | None:
    """The JSON object in a control request's body; {} for an empty body, None for anything else."""
    data = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunk = message.get("body", b"")
        data += chunk if isinstance(chunk, bytes) else b""
        if len(data) > _MAX_CONTROL_BYTES:
            return None
        if not message.get("more_body"):
            break
    if not data:
        return {}
    try:
        options = json.loads(data)
    except ValueError:
        return None
    return options if isinstance(options, dict) else None
