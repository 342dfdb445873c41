"""Adapters behind `torpor serve`: requests find their deployment by an adapter's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.platforms.local.serve.served import ask, write_app
from tests.tiny_adapter import write_adapter
from torpor.platforms.local.criu_backend import CriuBackend

if TYPE_CHECKING:
    from pathlib import Path

    from tests.platforms.local.serve.conftest import Serve

pytestmark = pytest.mark.slow

WITH_ADAPTERS = """
from dataclasses import replace
from torpor import Adapter

adapters = {{name: Adapter(path=f"{folder}/{{name}}") for name in ("sql", "law")}}
deployment = replace(deployment, model=replace(deployment.model, adapters=adapters))
"""


@pytest.mark.parametrize("engine", ["StandIn", "StandInVLLM"])
def test_an_adapters_name_starts_its_deployment(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """The list has it, each answers for itself, and an unknown name is a 404 with what there is."""
    monkeypatch.setattr(CriuBackend, "available", lambda *_: ("there is no CRIU",))
    for seed, name in enumerate(("sql", "law")):
        write_adapter(tmp_path / name, seed)
    files = [write_app(tmp_path, name, engine=engine) for name in ("a", "b")]
    with open(files[0], "a") as file:  # noqa: PTH123 - a path as text
        file.write(WITH_ADAPTERS.format(folder=tmp_path))
    server = serve(*files)
    port = server.address[1]
    listed = httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=30).json()["data"]
    assert [one["id"] for one in listed] == ["model-a", "sql", "law", "model-b"]
    first = ask(port, "sql", tokens=6)
    assert (first.status, first.start) == (200, "cold"), first
    others = [ask(port, name, tokens=6) for name in ("law", "model-a")]
    assert [(one.status, one.start) for one in others] == [(200, ""), (200, "")], others
    texts = [one.body["choices"][0]["message"]["content"] for one in (first, *others)]  # type: ignore[index] # JSON
    assert len(set(texts)) == 3
    refused = ask(port, "tax")
    assert refused.status == 404
    assert "There is no model 'tax' here; served are law, model-a, model-b, sql" in str(refused.body), refused.body
    states = {one["name"]: one["state"] for one in server.status()}
    assert (states["a"], states["b"]) == ("serving", "on disk"), states
