"""The gateway of several models in front of the stand-in engine, asked by OpenAI's own client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.scripted import Engine, Leases
from torpor import Deployment, Model
from torpor.runtime.boot import Boot
from torpor.serving.gateway import HttpGateway
from torpor.serving.values import StartFailedError
from torpor.testing import StandIn
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow


@pytest.fixture
def openai() -> Any:
    """OpenAI's client. Its import takes a second, which the quick tests do not wait for."""
    return pytest.importorskip("openai", reason="needs openai: pip install -r requirements/dev.txt")


@pytest.fixture(scope="module")
def engine() -> Iterator[int]:
    """The stand-in behind its guard; its port."""
    port = unused_port()
    standin = StandIn(token_s=0.001, warmup_requests=0)
    boot = Boot(Deployment(name="a", model=Model(path="/models/a"), plugins=(standin,), port=port))
    try:
        boot.cold_start()
        boot.serve()
        yield port
    finally:
        boot.stop()


@pytest.fixture
def leases(engine: int) -> Leases:
    """Two models, both at the stand-in."""
    way = Engine()
    way.port = engine
    way._loop.close()
    return Leases(ways={"a": way, "b": way})


def test_the_client_lists_models_chats_and_streams(leases: Leases, openai: Any) -> None:
    """On one kept connection, with both models, and sees an unknown model as its own kind of error."""
    with (
        HttpGateway(leases) as gateway,
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="none", max_retries=0, timeout=20
        ) as client,
    ):
        assert [model.id for model in client.models.list()] == ["a", "b"]
        question = [{"role": "user", "content": "Count."}]
        for model in ("a", "b"):
            whole = client.chat.completions.create(model=model, messages=question, max_tokens=5, temperature=0)
            stream = client.chat.completions.create(
                model=model, messages=question, max_tokens=5, temperature=0, stream=True
            )
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
            assert "".join(pieces) == whole.choices[0].message.content
            assert len(whole.choices[0].message.content.split()) == 5
        with pytest.raises(openai.NotFoundError, match="served are a, b"):
            client.chat.completions.create(model="c", messages=question)
        assert (leases.out, leases.most) == (0, 1)


def test_the_client_reads_the_comments_and_the_error_of_a_start(leases: Leases, openai: Any) -> None:
    """While the model starts it gets comments, which it skips. A failed start is an APIError with the reason."""
    leases.gate = asyncio.Event()
    with (
        HttpGateway(leases) as gateway,
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{gateway.port}/v1", api_key="none", max_retries=0, timeout=20
        ) as client,
    ):
        asks = {"Accept": "text/event-stream", "X-Torpor-Waiting": "comments"}
        question = [{"role": "user", "content": "Count."}]
        for refusal in (None, StartFailedError("No GPU is free.", retry_after_s=3)):
            leases.gate.clear()
            leases.refusal = refusal
            stream = client.chat.completions.create(
                model="a", messages=question, max_tokens=5, stream=True, extra_headers=asks
            )
            gateway.loop.call_soon_threadsafe(leases.gate.set)
            if refusal is None:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
                assert len(text.split()) == 5
            else:
                with pytest.raises(openai.APIError, match="No GPU is free"):
                    list(stream)
    assert leases.out == 0
