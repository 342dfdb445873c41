"""What the plugin's rules make of every route that SGLang has, had, or will have."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.guard.engine import BOOT_ID, KEY, Message, Receive, Scope, Send
from tests.guard.exchange import Exchange, ask, control, in_loop, settle, to_serving
from torpor import ConfigurationError, Deployment, Lifecycle, Model, Scaling
from torpor.engine import engines_started_by
from torpor.guard import Guard, GuardRules
from torpor_sglang import SGLang, routes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CLOSED = tuple(path for _, paths in routes.CLOSED for path in paths)
STEPS = (*routes.SLEEP, *routes.WAKE)
OF_TOMORROW = (
    "/update_weights_from_the_future",
    "/v2/chat/completions",
    "/v1/chat/completions/{chat_id}",
    "/release_memory_occupation/all",
    "/resume_memory_occupation_v2",
)
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE")


class NotStartedError(Exception):
    """The rules are seen; no engine is started."""


def rules_of(plugin: SGLang, *, max_concurrency: int = 100) -> GuardRules:
    """The rules that the plugin hands to the engine's launcher."""
    found: list[GuardRules | None] = []

    def starter(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None, guard: GuardRules | None) -> object:
        found.append(guard)
        raise NotStartedError

    scaling = Scaling(target_concurrency=1, max_concurrency=max_concurrency)
    deployment = Deployment(name="x", model=Model(path="/m"), plugins=(plugin,), scaling=scaling)
    with engines_started_by(starter), suppress(NotStartedError):  # type: ignore[arg-type] # it gives no engine
        plugin.launch(deployment, Lifecycle(deployment).recipe())
    (rules,) = found
    assert rules is not None
    return rules


class Anything:
    """An application that has every route there could be; bodies that come wait for the gate."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200."""
        self.reached.append((str(scope["method"]), str(scope["path"])))
        message: Message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def guarded(plugin: SGLang, *, max_concurrency: int = 100) -> tuple[Anything, Guard]:
    """An application with every route behind the plugin's rules."""
    app = Anything()
    return app, Guard(app, rules_of(plugin, max_concurrency=max_concurrency), key=KEY, boot_id=BOOT_ID)


@pytest.mark.parametrize("path", OF_TOMORROW)
@in_loop
async def test_a_route_that_only_a_new_version_has_is_closed(path: str) -> None:
    """Nobody has judged it, so nobody gets there, with the key or without, by whatever method."""
    assert path not in (*routes.PUBLIC, *routes.KEYED, *STEPS, *routes.ANSWERED, *CLOSED)
    app, guard = guarded(SGLang())
    await to_serving(guard)
    for method in METHODS:
        for key in (None, KEY):
            assert (await ask(guard, path, method=method, key=key)).status == 404
    assert app.reached == []


@pytest.mark.parametrize("options", [{}, {"open_metrics": True, "open_docs": True}], ids=["default", "opened"])
@in_loop
async def test_every_closed_route_is_closed_whatever_the_options(options: dict[str, bool]) -> None:
    """In all three supported versions; the steps belong to the lifecycle, in their order."""
    app, guard = guarded(SGLang(**options))  # type: ignore[arg-type] # flags
    await to_serving(guard)
    for path in CLOSED:
        for method in METHODS:
            assert (await ask(guard, path, method=method)).status == 404
            assert (await ask(guard, path, method=method, key=KEY)).status == 404
    for path in STEPS:
        assert (await ask(guard, path, method="POST")).status == 404
        assert (await ask(guard, path, method="POST", key=KEY)).status == 409
    assert app.reached == []


@in_loop
async def test_public_routes_are_open_and_keyed_ones_take_the_key() -> None:
    """And nothing else is."""
    app, guard = guarded(SGLang())
    await to_serving(guard)
    for path in routes.PUBLIC:
        assert (await ask(guard, path, method="POST")).status == 200
    for path in routes.KEYED:
        assert (await ask(guard, path)).status == 404
        assert (await ask(guard, path, key=KEY)).status == 200
    assert [path for _, path in app.reached] == [*routes.PUBLIC, *routes.KEYED]


@pytest.mark.parametrize(
    ("options", "opened"),
    [
        ({}, ()),
        ({"open_metrics": True}, ("/metrics",)),
        ({"open_metrics": True, "metrics": False}, ()),
        ({"open_docs": True}, ("/docs", "/openapi.json")),
        ({"open_docs": True, "open_metrics": True}, ("/docs", "/metrics", "/openapi.json")),
    ],
)
@in_loop
async def test_metrics_and_docs_are_opened_by_options_of_their_own(
    options: dict[str, bool], opened: tuple[str, ...]
) -> None:
    """To everybody, bearer keys or not; what holds the engine's arguments never is."""
    _, guard = guarded(SGLang(api_key_sha256=("0" * 64,), **options))  # type: ignore[arg-type] # flags
    assert {(await ask(guard, path)).status for path in opened} <= {503}
    await to_serving(guard)
    answered = [path for path in routes.KEYED if (await ask(guard, path)).status == 200]
    assert tuple(answered) == opened
    assert (await ask(guard, "/server_info")).status == 404
    assert (await ask(guard, "/v1/models")).status == 401


@in_loop
async def test_the_limits_are_the_options_and_the_deployments() -> None:
    """A body's size by the plugin's option, requests in flight by the deployment's concurrency."""
    _, guard = guarded(SGLang(max_body_bytes=10), max_concurrency=2)
    await to_serving(guard)
    path = routes.PUBLIC[0]
    assert (await ask(guard, path, method="POST", body=b"x" * 10)).status == 200
    assert (await ask(guard, path, method="POST", body=b"x" * 11)).status == 413
    assert (await ask(guard, path, method="POST", body=(b"x" * 6, b"x" * 6))).status == 413
    running = [Exchange(guard, path, method="POST", body=(b"x",), ends=False) for _ in range(2)]
    await settle()
    busy = await ask(guard, path, method="POST")
    assert (busy.status, busy.code, busy.headers["retry-after"]) == (503, "too_many_requests", "2")
    assert (await control(guard, "state")).json["in_flight"] == 2
    for exchange in running:
        exchange.feed(b"", more=False)
        await exchange.task
        assert exchange.status == 200


def test_a_body_limit_of_nothing_is_refused() -> None:
    """Before a launch, not at it."""
    with pytest.raises(ConfigurationError, match="max_body_bytes is 0; the lowest allowed value is 1"):
        SGLang(max_body_bytes=0)
