"""The warm-up set of a chat server: what it sends, and that it ends with a burst."""

from __future__ import annotations

import json
from threading import Lock

import httpx
import pytest

from torpor.engine_plugins.warmup import warm_up
from torpor.errors import EngineRequestError


def _client(seen: list[dict[str, object]], status: int = 200) -> httpx.Client:
    lock = Lock()

    def answer(request: httpx.Request) -> httpx.Response:
        with lock:
            seen.append(json.loads(request.content))
        return httpx.Response(status, text="ok")

    return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://engine")


def _prompt_words(body: dict[str, object]) -> int:
    messages = body["messages"]
    assert isinstance(messages, list)
    return len(str(messages[-1]["content"]).split())


def test_the_set_is_short_and_long_streamed_and_not_greedy_and_sampled_and_a_burst() -> None:
    """Each length is asked both ways; the burst comes last."""
    seen: list[dict[str, object]] = []
    with _client(seen) as client:
        warm_up(client, model="m", prompt_words=(8, 400), burst=5, timeout_s=5)
    assert len(seen) == 4 + 5
    alone = seen[:4]
    assert {(body["stream"], body["temperature"] == 0.0) for body in alone} == {(False, True), (True, False)}
    for streamed in (False, True):
        lengths = [_prompt_words(body) for body in alone if body["stream"] is streamed]
        assert min(lengths) < 20
        assert max(lengths) > 300
    assert {body["model"] for body in seen} == {"m"}


def test_an_engine_that_refuses_a_warm_up_request_ends_the_warm_up() -> None:
    """The error names the status."""
    seen: list[dict[str, object]] = []
    with _client(seen, status=500) as client, pytest.raises(EngineRequestError, match="got 500"):
        warm_up(client, model="m", prompt_words=(8,), burst=2, timeout_s=5)
    assert len(seen) == 1
