"""A browser's page of another origin can read the guard's own answers wherever it could read the engine's."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from tests.guard.engine import KEY, OTHER_KEY, REPLICA_ID, RULES, Receive, Scope, Send, TinyEngine
from tests.guard.exchange import Exchange, Pairs, ask, control, in_loop, to_asleep, to_serving
from torpor.guard import Guard, GuardRules

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.guard.engine import Message

ORIGIN: Pairs = (("origin", "https://page.example"),)
PREFLIGHT: Pairs = (*ORIGIN, ("access-control-request-method", "POST"))


class Headed:
    """A layer of an engine's that adds CORS headers by itself, in no way that anybody could know.

    Args:
        app: the engine.
        allowed: what it allows for an origin; None: nothing.
    """

    def __init__(self, app: TinyEngine, allowed: Callable[[bytes], bytes | None]) -> None:
        self.engine = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(cast("list[tuple[bytes, bytes]]", scope.get("headers", [])))

        async def adding(message: Message) -> None:
            allowed = self._allowed(headers[b"origin"]) if b"origin" in headers else None
            if message["type"] == "http.response.start" and allowed is not None:
                own = cast("list[tuple[bytes, bytes]]", message["headers"])
                more = [(b"Access-Control-Allow-Origin", allowed), (b"vary", b"Origin"), (b"x-other", b"1")]
                message = {**message, "headers": [*own, *more]}
            await send(message)

        await self.engine(scope, receive, adding)


class StarletteLike:
    """What is used of Starlette's CORSMiddleware: it answers preflights itself and adds its simple headers to the rest."""

    def __init__(self, app: object) -> None:
        self.app = app
        self.simple_headers = {"Access-Control-Allow-Origin": "*"}
        self.preflight_headers = {"Access-Control-Allow-Methods": "POST"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(cast("list[tuple[bytes, bytes]]", scope.get("headers", [])))
        simple = [(name.lower().encode(), value.encode()) for name, value in self.simple_headers.items()]
        if scope.get("method") == "OPTIONS" and b"access-control-request-method" in headers:
            more = [(name.lower().encode(), value.encode()) for name, value in self.preflight_headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": [*simple, *more]})
            await send({"type": "http.response.body", "body": b"OK"})
            return

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start" and b"origin" in headers:
                message["headers"] = [*cast("list[tuple[bytes, bytes]]", message["headers"]), *simple]
            await send(message)

        await cast("Callable[..., object]", self.app)(scope, receive, adding)  # type: ignore[misc]


class Outer:
    """A layer outside of that one."""

    def __init__(self, app: object) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await cast("Callable[..., object]", self.app)(scope, receive, send)  # type: ignore[misc]


def behind(layer: Callable[[TinyEngine], object], rules: GuardRules = RULES) -> tuple[TinyEngine, Guard]:
    """A tiny engine with a layer of its own, behind a guard."""
    engine = TinyEngine()
    engine.guard = Guard(cast("TinyEngine", layer(engine)), rules, key=KEY, replica_id=REPLICA_ID)
    return engine, engine.guard


def starlette(engine: TinyEngine) -> Outer:
    """The usual layers."""
    return Outer(Outer(StarletteLike(engine)))


def allowed(answer: Exchange) -> str | None:
    """What the answer lets a page read."""
    return answer.headers.get("access-control-allow-origin")


@pytest.mark.fault("a page of another origin asks while the engine sleeps", area="browsers", outcome="held")
@in_loop
async def test_a_page_can_read_that_the_engine_sleeps() -> None:
    """Before any request passed; a preflight is answered as the engine answers it, and reaches no engine."""
    engine, guard = behind(starlette)
    await to_asleep(guard)
    calls = len(engine.calls)
    refused = await ask(guard, "/v1/chat", method="POST", headers=ORIGIN, body=b"{}")
    assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "not_serving", "7")
    assert allowed(refused) == "*"
    preflight = await ask(guard, "/v1/chat", method="OPTIONS", headers=PREFLIGHT)
    assert (preflight.status, preflight.headers["access-control-allow-methods"]) == (200, "POST")
    for path in ("/health", "/ready"):
        health = await ask(guard, path, headers=ORIGIN)
        assert (health.status, allowed(health)) == (503, "*")
    assert len(engine.calls) == calls


@in_loop
async def test_every_refusal_on_a_public_path_can_be_read() -> None:
    """400, 401, 403, 413 and 503 alike, each once and with its own headers."""
    rules = GuardRules(public=("/v1/chat",), bearer_sha256=("0" * 64,), max_body_bytes=10)
    _, guard = behind(starlette, rules)
    await to_serving(guard)
    twice = (*ORIGIN, ("authorization", "Bearer a"), ("authorization", "Bearer b"))
    for answer, status in (
        (await ask(guard, "/v1/chat", method="POST", headers=ORIGIN, body=b"{}"), 401),
        (await ask(guard, "/v1/chat", method="POST", headers=ORIGIN, key=OTHER_KEY), 403),
        (await ask(guard, "/v1/chat", method="POST", headers=twice, body=b"{}"), 400),
    ):
        assert (answer.status, allowed(answer)) == (status, "*")
    _, guard = behind(starlette)
    await to_serving(guard)
    for body in (b"x" * 2000, (b"x" * 600, b"x" * 600)):
        answer = await ask(guard, "/v1/chat", method="POST", headers=ORIGIN, body=body)
        assert (answer.status, allowed(answer)) == (413, "*")


@in_loop
async def test_no_management_path_is_open_to_a_page() -> None:
    """Neither with a wrong key nor with the right one, nor a path that does not exist."""
    _, guard = behind(starlette)
    await to_serving(guard)
    for path in ("/info", "/pause", "/_torpor/state", "/_torpor/identity", "/secret", "/v1/chat/"):
        for key in (None, KEY, OTHER_KEY):
            answer = await ask(guard, path, headers=ORIGIN, key=key)
            if not (path == "/info" and key == KEY):  # the engine's own answer
                assert allowed(answer) is None, (path, key, answer.status)
        assert (await ask(guard, path, method="OPTIONS", headers=PREFLIGHT)).status in (404, 405)


@in_loop
async def test_headers_of_an_unknown_layer_are_those_of_its_last_answer() -> None:
    """By origin: what the engine allows one page says nothing about another."""
    _, guard = behind(lambda engine: Headed(engine, lambda origin: origin if b"page" in origin else None))
    await to_serving(guard)
    foreign: Pairs = (("origin", "https://other.example"),)
    for origin in (ORIGIN, foreign):
        assert (await ask(guard, "/v1/models", headers=origin)).status == 200
    await to_asleep(guard)
    refused = await ask(guard, "/v1/models", headers=ORIGIN)
    assert (allowed(refused), refused.headers["vary"]) == ("https://page.example", "Origin")
    assert "x-other" not in refused.headers
    assert allowed(await ask(guard, "/v1/models", headers=foreign)) is None
    assert allowed(await ask(guard, "/v1/models")) is None
    assert allowed(await ask(guard, "/info", headers=ORIGIN)) is None


@in_loop
async def test_an_engine_that_lets_everybody_read_is_learnt_from_once() -> None:
    """A star holds for each origin; origins that only try fill no memory."""
    _, guard = behind(lambda engine: Headed(engine, lambda _: b"*"))
    await to_serving(guard)
    for number in range(300):
        await ask(guard, "/v1/models", headers=(("origin", f"https://{number}.example"),))
    await to_asleep(guard)
    assert allowed(await ask(guard, "/v1/models", headers=ORIGIN)) == "*"


@pytest.mark.fault("a client sends a thousand origins", area="browsers", outcome="held")
@in_loop
async def test_the_origins_that_are_kept_have_a_limit() -> None:
    """The oldest is forgotten."""
    _, guard = behind(lambda engine: Headed(engine, lambda origin: origin))
    await to_serving(guard)
    for number in range(1000):
        await ask(guard, "/v1/models", headers=(("origin", f"https://{number}.example"),))
    await control(guard, "drain")
    assert allowed(await ask(guard, "/v1/models", headers=(("origin", "https://999.example"),))) is not None
    assert allowed(await ask(guard, "/v1/models", headers=(("origin", "https://0.example"),))) is None


@in_loop
async def test_an_engine_without_cors_stays_without() -> None:
    """The guard adds nothing that the engine would not."""
    _, guard = behind(lambda engine: engine)
    await to_serving(guard)
    await ask(guard, "/v1/models", headers=ORIGIN)
    await to_asleep(guard)
    refused = await ask(guard, "/v1/models", headers=ORIGIN)
    assert (refused.status, allowed(refused)) == (503, None)
