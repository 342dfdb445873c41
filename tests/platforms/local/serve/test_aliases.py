"""Aliases behind `torpor serve`: an engine that knows its own names only answers to every name of its deployment."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.platforms.local.serve.served import wait_until, write_app
from tests.platforms.local.serve.test_adapters import WITH_ADAPTERS
from tests.tiny_adapter import write_adapter
from torpor.platforms.local.criu_backend import CriuBackend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.platforms.local.serve.conftest import Serve

pytestmark = pytest.mark.slow

ALIASES = ["gpt-4", "org/name:tag", "é"]
CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "Count."}], "max_tokens": 4, "temperature": 0}


@pytest.fixture
def client(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A client of a vLLM that serves `model-a` and an adapter `sql`, beside a second model."""
    monkeypatch.setattr(CriuBackend, "available", lambda *_: ("there is no CRIU",))
    files = [write_app(tmp_path, name, engine="StandInVLLM") for name in ("a", "b")]
    for seed, name in enumerate(("sql", "law")):
        write_adapter(tmp_path / name, seed)
    with open(files[0], "a") as file:  # noqa: PTH123 - a path as text
        file.write(WITH_ADAPTERS.format(folder=tmp_path))
    config = f"[deployment.a]\naliases = {json.dumps([*ALIASES, 'sql'])}\n[deployment.b]\naliases = ['bee']\n"
    server = serve(*files, config=config)
    with httpx.Client(base_url=f"http://127.0.0.1:{server.address[1]}", timeout=60) as made:
        yield made


def test_every_name_of_a_deployment_is_answered(client: httpx.Client) -> None:
    """By the model itself, as if its own name had been sent: of known length, in chunks, streamed, and in three places."""
    listed = [one["id"] for one in client.get("/v1/models").json()["data"]]
    assert listed == ["model-a", "sql", "law", *ALIASES, "model-b", "bee"]
    assert client.get("/v1/models/gpt-4").json()["id"] == "gpt-4"

    def told(**request: object) -> tuple[str, str]:
        answer = client.post(CHAT, **request)  # type: ignore[arg-type]
        assert answer.status_code == 200, (request, answer.text)
        return answer.json()["model"], answer.json()["choices"][0]["message"]["content"]

    own, adapter = told(json={"model": "model-a", **QUESTION}), told(json={"model": "sql", **QUESTION})
    assert (own[0], adapter[0]) == ("model-a", "sql")
    assert own[1] != adapter[1]
    for name in ALIASES:
        for body in ({"model": name, **QUESTION}, {**QUESTION, "model": name}):
            text = json.dumps(body).encode()
            assert told(content=text, headers={"content-type": "application/json"}) == own
            pieces = iter([text[at : at + 7] for at in range(0, len(text), 7)])
            assert told(content=pieces, headers={"content-type": "application/json"}) == own
    for body in (QUESTION, {**QUESTION, "model": "gpt-4"}, {**QUESTION, "model": "org/name:tag"}):
        assert told(json=body, headers={"x-torpor-model": "gpt-4"}) == own
        assert told(json=body, params={"model": "gpt-4"}) == own
    with client.stream("POST", CHAT, json={"model": "gpt-4", "stream": True, **QUESTION}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert (answer.status_code, lines[-1]) == (200, "data: [DONE]"), lines
    assert told(json={"model": "bee", **QUESTION})[0] == "model-b"


def test_a_name_that_the_gateway_leaves_is_the_engines_to_judge(client: httpx.Client) -> None:
    """A second model behind the alias, and an alias in a body whose header names the model itself: the body is not read."""
    twice = b'{"model": "gpt-4", "model": "%b", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}'
    for second, status in ((b"model-a", 200), (b"sql", 200), (b"gpt-4", 404), (b"model-b", 404)):
        answer = client.post(CHAT, content=twice % second, headers={"content-type": "application/json"})
        assert answer.status_code == status, (second, answer.text)
    named = client.post(CHAT, json={"model": "gpt-4", **QUESTION}, headers={"x-torpor-model": "model-a"})
    assert named.status_code == 404, named.text
    assert "gpt-4" in named.text
    assert wait_until(lambda: client.get("/health").status_code == 200)
