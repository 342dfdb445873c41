"""Clients that people have: OpenAI's own, one that asks as Open WebUI does, and one that comes from llama-swap."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.platforms.local.serve.served import wait_until, write_app
from torpor.platforms.local.criu_backend import CriuBackend

if TYPE_CHECKING:
    from pathlib import Path

    from tests.platforms.local.serve.conftest import Serve
    from torpor.platforms.local.serve.server import ServeHere

pytestmark = pytest.mark.slow

KEY = "key-of-b"
QUESTION = [{"role": "user", "content": "Count."}]
KEYED = """
from dataclasses import dataclass, replace

@dataclass(frozen=True, kw_only=True)
class Keyed(StandIn):
    api_key_sha256: tuple[str, ...] = ()

deployment = replace(deployment, plugins=(Keyed(warmup_requests=0, api_key_sha256=({digest!r},)),))
"""


@pytest.fixture
def openai() -> Any:
    """OpenAI's client. Its import takes a second, which the quick tests do not wait for."""
    return pytest.importorskip("openai", reason="needs openai: pip install -r requirements/dev.txt")


@pytest.fixture
def server(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServeHere:
    """Three models: `model-a` for everybody, `model-b` for those with its key, and `broken`, which cannot be started."""
    monkeypatch.setattr(CriuBackend, "available", lambda *_: ("there is no CRIU",))
    files = [write_app(tmp_path, name) for name in ("a", "b")]
    with open(files[1], "a") as file:  # noqa: PTH123 - a path as text
        file.write(KEYED.format(digest=hashlib.sha256(KEY.encode()).hexdigest()))
    files.append(write_app(tmp_path, "broken", more="fault='exit_at_start'"))
    return serve(*files, config='[deployment.a]\naliases = ["gpt-4", "org/name:tag"]\n')


def of(server: ServeHere, key: str = "none") -> dict[str, object]:
    """What OpenAI's client is made with; it tries once."""
    url = f"http://127.0.0.1:{server.address[1]}/v1"
    return {"base_url": url, "api_key": key, "max_retries": 0, "timeout": 30}


def test_openais_client_gets_answers_streams_and_its_own_errors(openai: Any, server: ServeHere) -> None:
    """A request starts a model, whole or streamed, by its name or an alias. 401, 404 and 503 are the client's own exceptions."""
    with openai.OpenAI(**of(server)) as client:
        assert [model.id for model in client.models.list()] == ["model-a", "gpt-4", "org/name:tag", "model-broken"]
        whole = client.chat.completions.create(model="model-a", messages=QUESTION, max_tokens=5, temperature=0)
        text = whole.choices[0].message.content
        assert len(text.split()) == 5
        for name in ("gpt-4", "org/name:tag"):
            stream = client.chat.completions.create(
                model=name, messages=QUESTION, max_tokens=5, temperature=0, stream=True
            )
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == text
        assert client.models.retrieve("org/name:tag").id == "org/name:tag"
        with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-5' here; served are gpt-4, model-a"):
            client.chat.completions.create(model="gpt-5", messages=QUESTION)
        with pytest.raises(openai.AuthenticationError, match="A valid bearer key is needed"):
            client.chat.completions.create(model="model-b", messages=QUESTION)
        with pytest.raises(openai.InternalServerError, match="'broken' could not be started") as refused:
            client.chat.completions.create(model="model-broken", messages=QUESTION)
    assert (refused.value.status_code, refused.value.code) == (503, "start_failed")
    assert int(refused.value.response.headers["retry-after"]) >= 1
    with openai.OpenAI(**of(server, KEY)) as client:
        assert "model-b" in [model.id for model in client.models.list()]
        assert client.chat.completions.create(model="model-b", messages=QUESTION, max_tokens=1).choices


def test_a_web_interface_lists_models_with_its_key_and_then_chats(server: ServeHere) -> None:
    """As Open WebUI does: the list by GET with the key, again and again, which starts nothing; then a streamed chat."""
    with httpx.Client(
        base_url=f"http://127.0.0.1:{server.address[1]}", headers={"authorization": f"Bearer {KEY}"}, timeout=30
    ) as client:
        for _ in range(3):
            listed = client.get("/v1/models").json()
        assert listed["object"] == "list"
        assert {one["id"]: one["state"] for one in listed["data"]}["model-b"] == "on disk"
        body = {"model": "model-b", "messages": QUESTION, "stream": True, "max_tokens": 3}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.headers["x-torpor-start"] == "cold"
            lines = [line for line in answer.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        states = {one["id"]: one["state"] for one in client.get("/v1/models").json()["data"]}
        assert (states["model-a"], states["model-b"]) == ("on disk", "serving")


def test_a_client_of_llama_swap_finds_what_it_needs_elsewhere(server: ServeHere) -> None:
    """Its own paths start and end nothing; docs/serve.md says what takes their place, as here."""
    key = {"authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{server.address[1]}", timeout=30) as client:
        for path in ("/running", "/unload", "/upstream/model-a/v1/models", "/logs", "/api/models/unload/model-a"):
            assert client.get(path).status_code == 400, path
        assert {one["state"] for one in server.status()} == {"on disk"}
        chat = {"messages": QUESTION, "max_tokens": 1}
        named = client.post("/v1/chat/completions", json=chat, headers={"x-torpor-model": "gpt-4"})
        assert named.status_code == 200
        running = client.get("/torpor/status", headers=key).json()["deployments"]
        assert [one["name"] for one in running if one["replicas"]] == ["a"]
        assert client.get("/v1/models?model=model-a").json()["data"]
        assert client.post("/torpor/deployments/a/sleep", headers=key).status_code == 200
        assert client.post("/torpor/deployments/a/sleep").status_code == 401
        assert wait_until(lambda: server.status()[0]["state"] == "asleep")
