"""Torpor's contract kit with a real model, and tests that the kit does not cover."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from torpor import ConfigurationError, Deployment, Engine, ImagePatch, Model, Recipe, override, start_engine
from torpor.testing import EngineContract

from tiny_gguf import write_tiny_gguf
from torpor_llamacpp import LlamaCpp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KV_CACHE_BYTES = 65_536 * 2 * 2 * 64 * 2
"""Tokens, layers, keys and values, width, bytes of a half-precision number."""

QUESTION = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the tiny model."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture
def tiny(model: Path, free_port: int) -> Deployment:
    """A deployment that starts within a second on this machine."""
    plugin = LlamaCpp(context_tokens=65_536, parallel=2, threads=2)
    return Deployment(name="tiny", model=Model(path=str(model)), plugins=(plugin,), port=free_port, stop_timeout_s=5)


class TestLlamaCpp(EngineContract):
    """Every rule of the contract."""

    @override
    @pytest.fixture
    def plugin(self) -> LlamaCpp:
        return LlamaCpp()

    @override
    @pytest.fixture
    def live_deployment(self, tiny: Deployment) -> Deployment:
        return tiny


@pytest.fixture
def server(tiny: Deployment) -> Iterator[tuple[Engine, httpx.Client]]:
    """The server without a guard, which listens on this machine only, and a client."""
    argv = tiny.engine.engine_argv(tiny, Recipe(image=ImagePatch()))
    engine = start_engine(argv, env={"TORPOR_UNGUARDED": "1"})
    with httpx.Client(base_url=f"http://127.0.0.1:{tiny.port}", trust_env=False, timeout=10) as client:
        while True:
            assert engine.wait(0.05) is None, engine.log_tail()
            try:
                client.get("/v1/models").raise_for_status()
            except httpx.ConnectError:
                continue
            break
        yield engine, client
    engine.terminate(0)


def text_of(response: httpx.Response) -> str:
    """Return the text of an answer, streamed or whole."""
    if response.headers["content-type"] != "text/event-stream":
        return str(response.json()["choices"][0]["message"]["content"])
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [choice["delta"] for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def test_a_streamed_answer_equals_the_whole_one(server: tuple[Engine, httpx.Client]) -> None:
    """Both are greedy, with the served name and usage."""
    _, client = server
    whole = client.post("/v1/chat/completions", json=QUESTION)
    streamed = client.post("/v1/chat/completions", json={**QUESTION, "stream": True})
    assert text_of(whole) == text_of(streamed) != ""
    assert whole.json()["model"] == "tiny.gguf"
    assert whole.json()["usage"]["completion_tokens"] == 12


def test_a_refused_request_is_a_client_error(server: tuple[Engine, httpx.Client]) -> None:
    """It does not matter whether llama.cpp raises or answers with an error, streamed or not. The server keeps running."""
    _, client = server
    too_long: dict[str, object] = {"messages": [{"role": "user", "content": "x" * 40_000}]}
    bodies: tuple[object, ...] = ({"messages": "none"}, too_long, {**too_long, "stream": True}, [])
    for body in bodies:
        assert client.post("/v1/chat/completions", json=body).status_code == 400
    assert client.post("/v1/chat/completions", json=QUESTION).status_code == 200


def test_a_sleep_frees_the_memory(server: tuple[Engine, httpx.Client]) -> None:
    """Weights and KV cache are freed, and the answer after the wake is the same. A second call does nothing."""
    engine, client = server
    process = psutil.Process(engine.pid)
    answer, awake = text_of(client.post("/v1/chat/completions", json=QUESTION)), process.memory_info().rss
    for _ in range(2):
        assert client.post("/sleep").status_code == 200
    assert awake - process.memory_info().rss > KV_CACHE_BYTES * 0.9
    assert client.post("/v1/chat/completions", json=QUESTION).status_code == 503
    for _ in range(2):
        assert client.post("/wake").status_code == 200
    assert text_of(client.post("/v1/chat/completions", json=QUESTION)) == answer


def test_llama_cpps_own_listener_is_closed_by_a_key(server: tuple[Engine, httpx.Client]) -> None:
    """It cannot be switched off, so it requires a key that is stored nowhere else."""
    engine, _ = server
    found = re.search(r"listening on (http://127\.0\.0\.1:\d+)", "\n".join(engine.log_tail()))
    assert found
    for path in ("/v1/models", "/slots", "/props"):
        assert httpx.get(found[1] + path, trust_env=False).status_code == 401


def test_a_model_that_is_not_gguf_is_reported_before_anything_starts() -> None:
    """The plugin's check says what to write."""
    deployment = Deployment(name="hub", model=Model(repo_id="a/b", revision="0" * 40), plugins=(LlamaCpp(),))
    (finding,) = deployment.engine.check(deployment)
    assert finding.level == "error"
    assert "the model is 'a/b'" in finding.seen
    assert finding.cure == "write Model(path='/models/chat.gguf')"


def test_a_wrong_option_is_a_configuration_error() -> None:
    """The message gives the value and the allowed range."""
    with pytest.raises(ConfigurationError, match=r"parallel 0 \(1 or more is allowed\)"):
        LlamaCpp(parallel=0)
