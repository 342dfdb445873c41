"""Torpor's contract kit with a real model, and what the kit does not cover: the answers, and the memory of a sleep."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from torpor import ConfigurationError, Deployment, Engine, ImagePatch, Model, Recipe, override, start_engine
from torpor.testing import EngineContract

from torpor_transformers import Transformers

if TYPE_CHECKING:
    from collections.abc import Iterator

QUESTION = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter with torch and transformers."""
    return os.environ.get("TORPOR_ENGINE_PYTHON", "")


@pytest.fixture
def tiny(python: str, free_port: int) -> Deployment:
    """A deployment of a tiny model."""
    folder = os.environ.get("TORPOR_TINY_MODEL")
    if not folder:
        pytest.skip("TORPOR_TINY_MODEL names no folder with a model")
    return Deployment(
        name="tiny",
        model=Model(path=folder, served_name="tiny"),
        plugins=(Transformers(python=python, threads=1),),
        port=free_port,
        startup_timeout_s=180,
        stop_timeout_s=5,
    )


class TestTransformers(EngineContract):
    """Every rule of the contract."""

    @override
    @pytest.fixture
    def plugin(self) -> Transformers:
        return Transformers()

    @override
    @pytest.fixture
    def live_deployment(self, tiny: Deployment) -> Deployment:
        return tiny


@pytest.fixture
def server(tiny: Deployment) -> Iterator[tuple[Engine, httpx.Client]]:
    """The server without a guard, which listens on this machine only, and a client."""
    argv = tiny.engine.engine_argv(tiny, Recipe(image=ImagePatch()))
    engine = start_engine(argv, env={"TORPOR_UNGUARDED": "1", "HF_HUB_OFFLINE": "1"})
    with httpx.Client(base_url=f"http://127.0.0.1:{tiny.port}", trust_env=False, timeout=60) as client:
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
    """The text of an answer, streamed or whole."""
    if response.headers["content-type"] != "text/event-stream":
        return str(response.json()["choices"][0]["message"]["content"])
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [choice["delta"] for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def test_answers_are_as_asked_and_a_sleep_frees_the_weights(server: tuple[Engine, httpx.Client]) -> None:
    """Streamed as whole; greedy and seeded ones repeat; refused requests say why; the answer after a wake is the same."""
    engine, client = server

    def ask(**more: object) -> httpx.Response:
        return client.post("/v1/chat/completions", json={**QUESTION, **more})

    whole = ask()
    answer = text_of(whole)
    assert answer == text_of(ask(stream=True)) == text_of(ask()) != ""
    assert whole.json()["model"] == "tiny"
    assert 1 <= whole.json()["usage"]["completion_tokens"] <= 12
    seeded = {text_of(ask(temperature=1, seed=7)) for _ in range(2)}
    assert len(seeded) == 1
    assert len({text_of(ask(temperature=2)) for _ in range(4)}) > 1
    bad: tuple[dict[str, object], ...] = (
        {"messages": "none"},
        {"max_tokens": 0},
        {"temperature": 9},
        {"seed": -1},
        {"top_p": "x"},
    )
    for one in bad:
        refused = ask(**one)
        assert refused.status_code == 400
        assert next(iter(one)) in refused.json()["error"]["message"]
    process = psutil.Process(engine.pid)
    awake = process.memory_info().rss
    for path in ("/sleep", "/sleep", "/wake", "/wake"):
        assert client.post(path).status_code == 200
        if path == "/sleep":
            assert process.memory_info().rss < awake
    assert text_of(ask()) == answer


def test_a_model_that_is_no_folder_is_reported_before_anything_starts() -> None:
    """The plugin's check says what to write."""
    deployment = Deployment(name="hub", model=Model(repo_id="a/b", revision="0" * 40), plugins=(Transformers(),))
    (finding,) = deployment.engine.check(deployment)
    assert (finding.level, finding.cure) == ("error", "download it, and write Model(path='/models/name')")


def test_device_and_gpu_belong_together() -> None:
    """A GPU that stays idle, or one that is missing, is an error."""
    for gpu, device in ((None, "cuda"), ("L4", "cpu"), ("L4:2", "cuda")):
        plugin = Transformers(device=device)
        deployment = Deployment(name="x", model=Model(path="/models/x"), gpu=gpu, plugins=(plugin,))
        assert [finding.what for finding in plugin.check(deployment)] == ["GPU"]


def test_a_wrong_option_is_a_configuration_error() -> None:
    """The message gives the value and the allowed ones."""
    with pytest.raises(ConfigurationError, match=r"parallel is 0 \(1 or more is allowed\)"):
        Transformers(parallel=0)
    with pytest.raises(ConfigurationError, match="device is 'tpu'; allowed are 'cpu' and 'cuda'"):
        Transformers(device="tpu")
