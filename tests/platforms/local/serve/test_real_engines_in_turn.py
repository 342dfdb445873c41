"""The real SGLang and the real vLLM on the CPU at one address, with memory for one of them."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from tests import ROOT
from tests.platforms.local.serve.served import ask, control, wait_until
from tests.snapshots.test_real_engines import SGLANG, VLLM, Kind
from torpor.snapshots.before_capture.lasting_folders import LASTING_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.platforms.local.serve.conftest import Serve
    from torpor.platforms.local.serve.server import ServeHere

APP = """
from dataclasses import replace

from torpor.app_file import load_app

tiny = load_app({app!r}).deployment
deployment = replace(tiny, name={name!r}, model=replace(tiny.model, served_name={name!r}))
"""
CONFIG = """
[budget]
memory = "9 GB"
[deployment.sglang]
memory = "5 GB"
capture_after_s = 0.2
[deployment.vllm]
memory = "5 GB"
capture_after_s = 0.2
"""
AWAKE = ("starting", "waking", "serving", "capturing", "sleeping")
START_S = 240.0


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache root with a short path: vLLM's sockets lie below it, and their paths are limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="torpor-") as folder:
        monkeypatch.setenv("TORPOR_CACHE", folder)
        monkeypatch.setenv(LASTING_VARIABLE, f"{tmp_path}:{folder}")
        yield Path(folder)


def write_app(folder: Path, kind: Kind) -> str:
    """The tiny model on an engine, under the engine's name."""
    file = folder / f"{kind.engine}.py"
    file.write_text(APP.format(app=str(kind.app), name=kind.engine))
    return str(file)


def processes_of(cache: Path) -> list[psutil.Process]:
    """Every process that was started for this cache root, but this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != psutil.Process().pid and process.environ().get("TORPOR_CACHE") == str(cache):
                found.append(process)
    return found


@contextlib.contextmanager
def watched(server: ServeHere) -> Iterator[list[tuple[str, ...]]]:
    """The deployments that were awake together, seen ten times a second."""
    seen: list[tuple[str, ...]] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            seen.append(tuple(str(one["name"]) for one in server.status() if one["state"] in AWAKE))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.criu
@pytest.mark.sglang
@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("with_criu")
def test_two_real_engines_take_turns_in_memory_for_one(serve: Serve, tmp_path: Path, cache: Path) -> None:
    """Each answers the same after a cold start, a restore and a wake. Never are both awake, and nothing is left at the end."""
    assert (ROOT / ".engines").exists()
    for kind in (SGLANG, VLLM):
        kind.needed()
    server = serve(*(write_app(tmp_path, kind) for kind in (SGLANG, VLLM)), config=CONFIG)
    port, names = server.address[1], ("sglang", "vllm")
    said: dict[str, set[str]] = {name: set() for name in names}
    starts: dict[str, list[str]] = {name: [] for name in names}

    def told(name: str) -> dict[str, object]:
        return next(one for one in server.status() if one["name"] == name)

    def asked(name: str) -> None:
        answer = ask(port, name, tokens=12, prompt="the quick brown fox", timeout_s=START_S)
        assert answer.status == 200, answer.body
        choices: list[dict[str, dict[str, str]]] = answer.body["choices"]  # type: ignore[assignment]
        said[name].add(choices[0]["message"]["content"])
        starts[name].append(answer.start)

    with watched(server) as awake:
        for name in names:
            asked(name)
            assert wait_until(lambda name=name: bool(told(name)["has_snapshot"]), START_S)  # type: ignore[misc]
        for _ in range(2):
            for name in names:
                asked(name)
        for name in names:
            asked(name)
            control(port, server.key, "POST", f"deployments/{name}/sleep")
            assert wait_until(lambda name=name: told(name)["state"] == "asleep", START_S)  # type: ignore[misc]
            asked(name)
    server.stop()
    assert [kind for kind in map(len, awake) if kind > 1] == []
    for name in names:
        assert starts[name][0] == "cold"
        assert "restored" in starts[name]
        assert starts[name][-1] == "woken"
        assert len(said[name]) == 1, said[name]
    deadline = time.monotonic() + 10.0
    while processes_of(cache) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(cache) == []


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(600)
def test_a_real_vllm_answers_to_an_alias(serve: Serve, tmp_path: Path, cache: Path) -> None:
    """As to its own name, which is the only one that it knows: of known length, in chunks, and by the header."""
    VLLM.needed()
    config = '[deployment.vllm]\naliases = ["gpt-4"]\ncapture = "never"\n'
    server = serve(write_app(tmp_path, VLLM), config=config)
    port = server.address[1]
    own = ask(port, "vllm", prompt="the quick brown fox", timeout_s=START_S)
    assert (own.status, own.start) == (200, "cold"), own
    message = {"role": "user", "content": "the quick brown fox"}
    body = json.dumps({"messages": [message], "max_tokens": 2, "temperature": 0, "model": "gpt-4"}).encode()
    by_header = {"x-torpor-model": "gpt-4"}
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"content-type": "application/json"}, timeout=60
    ) as client:
        for content, headers in ((body, {}), (body, by_header), (iter([body[:-3], body[-3:]]), {})):
            answer = client.post("/v1/chat/completions", content=content, headers=headers)
            assert answer.status_code == 200, answer.text
            told = answer.json()
            assert told["model"] == "vllm"
            assert told["choices"][0]["message"]["content"] == own.body["choices"][0]["message"]["content"]  # type: ignore[index] # JSON
        refused = client.post("/v1/chat/completions", content=body, headers={"x-torpor-model": "vllm"})
        assert (refused.status_code, "`gpt-4` does not exist" in refused.text) == (404, True), refused.text
