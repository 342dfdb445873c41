"""A tiny engine for the guard's tests: an ASGI application that knows what it must never see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import TypeAlias, cast

from torpor.guard import Guard, GuardRules, State

__all__ = ["KEY", "OTHER_KEY", "REPLICA_ID", "RULES", "Call", "TinyEngine", "guarded"]

Message: TypeAlias = MutableMapping[str, object]
Scope: TypeAlias = MutableMapping[str, object]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

KEY = "k" * 43
OTHER_KEY = "o" * 43
REPLICA_ID = "0123456789abcdef"
RULES = GuardRules(
    public=("/v1/chat", "/v1/models", "/v1/stream", "/v1/crash", "/v1/late_crash", "/v1/afterwards", "/v1/polling"),
    open=("/metrics",),
    keyed=("/info", "/flush"),
    sleep=("/pause", "/release"),
    wake=("/resume", "/continue"),
    max_body_bytes=1000,
    max_in_flight=3,
    retry_after_s=7,
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request that reached the engine."""

    path: str
    method: str
    headers: tuple[tuple[bytes, bytes], ...]
    state: State


class TinyEngine:
    """Answers like an engine and dies, by saying so, of what engines die of.

    Attributes:
        guard: the guard in front of it.
        calls: every request that reached it.
        violations: what an engine would not have survived, or should never have seen.
        statuses: what a path answers in place of 200.
        gate: while it is not set, public requests wait; streams after their first chunk.
        hung_up: public requests whose client went away while they waited.
    """

    def __init__(self) -> None:
        self.guard: Guard | None = None
        self.calls: list[Call] = []
        self.violations: list[str] = []
        self.statuses: dict[str, int] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.hung_up = 0
        self.lifespan = False
        self._running = 0
        self._asleep: list[str] = []

    @property
    def paths(self) -> list[str]:
        """The paths of all calls, in order."""
        return [call.path for call in self.calls]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            self.lifespan = True
            return
        path = str(scope["path"])
        self._note(scope)
        if scope["type"] == "websocket":
            await self._socket(receive, send)
        elif path in ("/pause", "/release", "/resume", "/continue"):
            await self._step(path, receive, send)
        elif path in ("/info", "/flush", "/metrics", "/v1/models"):
            await self._answer(send, path, b"{}")
        elif path.startswith("/v1/"):
            await self._generate(path, receive, send)
        else:
            self.violations.append(f"{path} is closed")
            await self._answer(send, path, b"secret")

    def _note(self, scope: Scope) -> None:
        assert self.guard is not None
        headers = tuple(cast("list[tuple[bytes, bytes]]", scope["headers"]))
        path, state = str(scope["path"]), self.guard.state
        self.calls.append(Call(path=path, method=str(scope.get("method")), headers=headers, state=state))
        if any(name == b"torpor-key" for name, _ in headers):
            self.violations.append(f"{path} came with the lifecycle key")
        if state is State.ASLEEP:
            self.violations.append(f"{path} came while asleep")

    async def _step(self, path: str, receive: Receive, send: Send) -> None:
        """Go to sleep or wake: each step once, in order, with nothing running."""
        order = ["/pause", "/release", "/resume", "/continue"]
        if self._asleep != order[: order.index(path)]:
            self.violations.append(f"{path} came after {self._asleep}")
        if self._running:
            self.violations.append(f"{path} came with {self._running} requests running")
        await _body(receive)
        if path in self.statuses or self.violations:
            await self._answer(send, path, b"")
            return
        self._asleep = [] if path == "/continue" else [*self._asleep, path]
        await self._answer(send, path, b"")

    async def _generate(self, path: str, receive: Receive, send: Send) -> None:
        if self._asleep:
            self.violations.append(f"{path} came after {self._asleep}")
        self._running += 1
        try:
            if path == "/v1/crash":
                raise RuntimeError("crash")
            if await _body(receive) is None:
                self.hung_up += 1
            elif path in ("/v1/stream", "/v1/late_crash"):
                await self._stream(path, receive, send)
            elif await (self._poll(receive) if path == "/v1/polling" else self._open_gate(receive)):
                await self._answer(send, path, b"{}")
            if path == "/v1/afterwards":
                await asyncio.sleep(0.05)
        finally:
            self._running -= 1

    async def _stream(self, path: str, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        if path == "/v1/late_crash":
            raise RuntimeError("late crash")
        if await self._open_gate(receive):
            await send({"type": "http.response.body", "body": b"last", "more_body": False})

    async def _open_gate(self, receive: Receive) -> bool:
        """Wait for the gate; False when the client went away first."""
        if self.gate.is_set():
            return True
        gate = asyncio.ensure_future(self.gate.wait())
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({gate, gone}, return_when=asyncio.FIRST_COMPLETED)
            self.hung_up += gone.done()
            return not gone.done()
        finally:
            for task in (gate, gone):
                task.cancel()

    async def _poll(self, receive: Receive) -> bool:
        """Wait for the gate as engines do: look now and then whether the client is still there."""
        while not self.gate.is_set():
            look = asyncio.ensure_future(receive())
            done, _ = await asyncio.wait({look}, timeout=0.002)
            look.cancel()
            if done and look.result()["type"] == "http.disconnect":
                self.hung_up += 1
                return False
        return True

    async def _answer(self, send: Send, path: str, body: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": self.statuses.get(path, 200), "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _socket(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": json.dumps(message.get("text"))})


def guarded(rules: GuardRules = RULES) -> tuple[TinyEngine, Guard]:
    """A new engine behind a new guard; to be made on the loop that serves it."""
    engine = TinyEngine()
    engine.guard = Guard(engine, rules, key=KEY, replica_id=REPLICA_ID)
    return engine, engine.guard


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None when the client went away in it."""
    data, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        data += cast("bytes", message.get("body", b""))
        more = bool(message.get("more_body", False))
    return data


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
