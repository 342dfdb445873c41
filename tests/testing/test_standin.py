"""The stand-in engine in SGLang's dialect without the guard, and the errors that end it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.conftest import BOTH_DIALECTS, living_members, wait_until_gone
from tests.testing.unguarded import chat, launch, text_of
from torpor import ConfigurationError
from torpor.runtime.guard_client import open_client
from torpor.runtime.readiness import wait_ready
from torpor.testing import StandIn

if TYPE_CHECKING:
    from pathlib import Path

    from tests.testing.unguarded import Started
    from torpor.testing.pytest_plugin import StandInDeployment


pytest_plugins = "pytester"


@BOTH_DIALECTS
@pytest.mark.alone
def test_it_starts_quickly_with_unknown_flags(free_port: int, standin: type[StandIn]) -> None:
    """The process tree starts in the time of two bare servers (best of three); unknown engine flags are ignored."""
    bare = [sys.executable, "-c", "import uvicorn.server, uvicorn.protocols.http.h11_impl"]
    seconds, yardstick = [], []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run(bare, check=True)
        yardstick.append(time.monotonic() - began)
        began = time.monotonic()
        engine = launch(free_port, "--dialect", standin.dialect, "--mem-fraction-static", "0.9", "--po", "1")
        with open_client(engine, port=free_port, timeout_s=30) as client:
            wait_ready(engine, client, port=free_port, ready_path="/v1/models", timeout_s=60)
        seconds.append(time.monotonic() - began)
        assert len(living_members(engine.pid)) == 3
        assert engine.terminate(30) == 0
        assert wait_until_gone(engine.pid) == []
    assert min(seconds) < 0.4 + 2 * min(yardstick)


def test_it_refuses_to_run_without_a_guard(free_port: int) -> None:
    """Without a boot document and TORPOR_UNGUARDED=1 the exit code is 2."""
    engine = launch(free_port, unguarded="")
    assert engine.wait(30) == 2
    assert "no boot document (TORPOR_BOOT_FD), so nothing is started" in engine.log_tail()[-1]


@BOTH_DIALECTS
def test_greedy_answers_repeat_and_sampled_ones_do_not(started: Started, standin: type[StandIn]) -> None:
    """The greedy answer is the same streamed and whole; usage counts its tokens."""
    _, client = started("--dialect", standin.dialect)
    whole = chat(client)
    assert whole.json()["usage"]["completion_tokens"] == len(text_of(whole).split()) == 8
    assert whole.json()["choices"][0]["finish_reason"] == "length"
    assert text_of(chat(client)) == text_of(whole) == text_of(chat(client, stream=True))
    assert text_of(chat(client, "Another question.")) != text_of(whole)
    assert len({text_of(chat(client, temperature=1)) for _ in range(3)}) == 3
    assert len(text_of(chat(client, max_tokens=3)).split()) == 3


def test_it_answers_like_sglang(started: Started) -> None:
    """It has the routes, methods and bodies of SGLang's HTTP server."""
    _, client = started("--served-model-name", "tiny")
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.get("/model_info").json()["model_path"] == "tiny"
    assert client.get("/health").status_code == 200
    assert client.post("/flush_cache").status_code == 200
    assert client.get("/no_such_route").status_code == 404
    assert client.get("/v1/chat/completions").status_code == 405
    assert chat(client, messages=[]).status_code == 400
    assert client.post("/release_memory_occupation").status_code == 400  # a JSON body is required
    assert client.get("/server_info").json() == {"served_model_name": "tiny", "running": 0}
    assert client.get("/metrics").text == "sglang:num_running_reqs 0\n"


def test_it_sleeps_and_wakes_with_the_same_answer(started: Started) -> None:
    """The calls are pause, release, resume, continue; chats wait while it is paused."""
    _, client = started()
    before = text_of(chat(client))
    with ThreadPoolExecutor() as pool:
        assert client.post("/pause_generation", json={}).status_code == 200
        waiting = pool.submit(chat, client)
        assert client.post("/release_memory_occupation", json={}).status_code == 200
        time.sleep(0.05)
        assert not waiting.done()
        assert client.post("/resume_memory_occupation", json={}).status_code == 200
        assert client.post("/continue_generation", json={}).status_code == 200
        assert text_of(waiting.result()) == before


@pytest.mark.parametrize(
    ("calls", "because"),
    [
        (("release", "release"), "Cannot pause allocation that is not active: kv_cache"),
        (("resume",), "KeyError: 'kv_cache'"),
        (("release", "chat"), "Pointer argument cannot be accessed"),
        (("release", "health"), "Pointer argument cannot be accessed"),
    ],
)
def test_the_errors_that_end_sglang_end_it(started: Started, calls: tuple[str, ...], because: str) -> None:
    """The scheduler prints a traceback and sends SIGQUIT to the server, which kills the whole tree."""
    engine, client = started()

    def call(name: str) -> int:
        match name:
            case "chat":
                return chat(client).status_code
            case "health":
                return client.get("/health").status_code
        return client.post(f"/{name}_memory_occupation", json={"tags": ["kv_cache", "weights"]}).status_code

    for name in calls[:-1]:
        assert call(name) == 200
    with pytest.raises(httpx.TransportError):
        call(calls[-1])
    assert engine.wait(30) == -signal.SIGKILL
    tail = "\n".join(engine.log_tail())
    assert because in tail
    assert tail.endswith("Received sigquit from a child process. It usually means the child failed.")
    assert wait_until_gone(engine.pid) == []


def test_a_release_under_load_ends_it(started: Started) -> None:
    """SGLang's scheduler asserts that no request is running."""
    engine, client = started("--token-s", "0.2")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(chat, client)
        while client.post("/flush_cache").status_code == 200:
            time.sleep(0.01)
        with pytest.raises(httpx.TransportError):
            client.post("/release_memory_occupation", json={})
        assert isinstance(running.exception(), httpx.TransportError)
    assert engine.wait(30) == -signal.SIGKILL
    assert "should be called only when server is idle" in "\n".join(engine.log_tail())


def test_the_journal_lists_the_requests_that_reach_the_engine(started: Started, tmp_path: Path) -> None:
    """It has one JSON line per request, for tests of the guard."""
    journal = tmp_path / "journal"
    _, client = started("--journal", str(journal))
    journal.write_text("")
    chat(client)
    client.post("/flush_cache")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [(line["method"], line["path"]) for line in lines] == [
        ("POST", "/v1/chat/completions"),
        ("POST", "/flush_cache"),
    ]


def test_a_port_in_use_ends_it_with_nothing_left(free_port: int, started: Started) -> None:
    """The second server exits with uvicorn's message, and its children end, too."""
    started()
    second = launch(free_port)
    assert second.wait(30) not in (None, 0)
    assert "address already in use" in "\n".join(second.log_tail())
    assert wait_until_gone(second.pid) == []


def test_a_wrong_option_of_the_plugin_says_what_is_allowed() -> None:
    """Examples are an unknown fault and a negative time."""
    with pytest.raises(ConfigurationError, match=r"StandIn.fault is 'explode'; there are: slow_start, .*exit_at_wake"):
        StandIn(fault="explode")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(ConfigurationError, match=r"token_s -1 s.*none of them may be below 0"):
        StandIn(token_s=-1)


def test_the_plugins_options_reach_the_process(standin_deployment: StandInDeployment) -> None:
    """The command line has all of them; other plugins' arguments come last."""
    from torpor import ImagePatch, Recipe

    deployment = standin_deployment(engine=StandIn(token_s=0.5, journal="/tmp/j", extra_args=("--x", "1")))
    argv = deployment.engine.engine_argv(deployment, Recipe(image=ImagePatch(engine_args=("--y", "2"))))
    assert argv[:3] == (sys.executable, "-m", "torpor.testing.standin")
    joined = " ".join(argv)
    assert f"--port {deployment.port} --served-model-name stand-in --token-s 0.5 --journal /tmp/j --x 1 --y 2" in joined


def test_the_pytest_plugin_imports_nothing_early(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a fixture of the kit, a session imports neither httpx nor modal nor Torpor's modules."""
    pytester.makepyfile(
        test_mine="""
        import sys

        def test_what_is_imported():
            ours = {name for name in sys.modules if name.startswith("torpor")}
            assert ours == {"torpor", "torpor._lazy", "torpor._version", "torpor.testing", "torpor.testing.pytest_plugin"}
            assert not {"httpx", "modal", "structlog", "uvicorn", "psutil"} & set(sys.modules)
        """
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.runpytest_subprocess("-p", "torpor.testing.pytest_plugin").assert_outcomes(passed=1)
