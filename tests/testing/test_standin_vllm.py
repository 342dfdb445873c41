"""The stand-in engine in vLLM's dialect, without the guard: harmless calls, waiting chats, and its end."""

from __future__ import annotations

import copy
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.conftest import living_members, wait_until_gone
from tests.testing.unguarded import chat, text_of
from torpor.testing.standin.sglang import SGLangScheduler
from torpor.testing.standin.vllm import RENEW, VLLMEngineCore

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.testing.unguarded import Started
    from torpor.testing.standin.commands import Command
    from torpor.testing.standin.scheduler import Scheduler

VLLM = ("--dialect", "vllm")


def is_sleeping(client: httpx.Client) -> bool:
    """What the engine answers at /is_sleeping."""
    return bool(client.get("/is_sleeping").json()["is_sleeping"])


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_answers_like_vllm(started: Started) -> None:
    """It has the routes, methods and errors of vLLM's HTTP server, and no route of SGLang's."""
    engine, client = started(*VLLM, "--served-model-name", "tiny")
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert chat(client, model="tiny").json()["model"] == "tiny"
    other = chat(client, model="llm")
    assert (other.status_code, other.json()["error"]["type"]) == (404, "NotFoundError")
    assert other.json()["error"]["message"] == "The model `llm` does not exist."
    assert chat(client, messages=[]).json()["error"]["code"] == 400
    assert client.get("/health").status_code == 200
    assert client.get("/metrics").text == "vllm:num_requests_running 0\n"
    assert client.get("/server_info").json()["vllm_config"] == "model='tiny'"
    assert client.get("/sleep").status_code == 405
    assert client.post("/sleep", params={"level": 3}).status_code == 400
    assert client.post("/sleep", params={"mode": "now"}).status_code == 400
    assert client.post("/collective_rpc", json={}).status_code == 400
    unknown = client.post("/collective_rpc", json={"method": "dance"})
    assert unknown.status_code == 500
    assert "Method 'dance' is not implemented" in unknown.json()["error"]["message"]
    assert client.post("/collective_rpc", json={"method": RENEW, "args": ["7"]}).json() == {"results": ["7"]}
    for path in ("/release_memory_occupation", "/resume_memory_occupation", "/flush_cache", "/health_generate"):
        assert client.post(path, json={}).status_code == 404
    assert not is_sleeping(client)
    assert engine.poll() is None


def test_a_second_sleep_and_a_second_wake_do_no_harm(started: Started) -> None:
    """They only log warnings. While it sleeps, health answers and a chat waits for the wake."""
    engine, client = started(*VLLM)
    before = text_of(chat(client))
    with ThreadPoolExecutor() as pool:
        for _ in range(2):
            slept = client.post("/sleep", params={"level": 1, "mode": "wait"})
            assert (slept.status_code, slept.json()) == (200, {"status": "sleeping", "level": 1})
        assert is_sleeping(client)
        waiting = pool.submit(chat, client)
        assert client.get("/health").status_code == 200
        time.sleep(0.05)
        assert not waiting.done()
        for _ in range(2):
            assert client.post("/wake_up").json() == {"status": "awake", "tags": None}
        assert text_of(waiting.result()) == before
    assert not is_sleeping(client)
    assert engine.poll() is None

    def warned() -> list[str]:
        return [line for line in engine.log_tail() if "Executor is" in line]

    wait_for(lambda: len(warned()) >= 2)
    assert warned() == ["standin: Executor is already sleeping.", "standin: Executor is not sleeping."]


@pytest.mark.slow
def test_a_sleep_of_level_2_leaves_garbage_until_the_weights_are_loaded_again(started: Started) -> None:
    """The order is: wake the weights, load them, wake the KV cache; a chat waits until the end."""
    _, client = started(*VLLM)
    before = text_of(chat(client))

    def sleep_and_wake(*, reload: bool) -> str:
        assert client.post("/sleep", params={"level": 2}).json() == {"status": "sleeping", "level": 2}
        assert client.post("/collective_rpc", json={"method": "reload_weights"}).status_code == 500  # not mapped yet
        woken = client.post("/wake_up", params={"tags": ["weights"]})
        assert woken.json() == {"status": "sleeping", "tags": ["weights"]}
        assert is_sleeping(client)
        if reload:
            loaded = client.post("/collective_rpc", json={"method": "reload_weights"})
            assert (loaded.status_code, loaded.json()) == (200, {"results": [None]})
        woken = client.post("/wake_up", params={"tags": ["kv_cache"]})
        assert woken.json() == {"status": "awake", "tags": ["kv_cache"]}
        return text_of(chat(client))

    garbage = sleep_and_wake(reload=False)
    assert garbage != before
    assert client.post("/sleep", params={"level": 1}).status_code == 200
    assert client.post("/wake_up").status_code == 200
    assert text_of(chat(client)) == garbage  # level 1 keeps the garbage
    assert sleep_and_wake(reload=True) == before


@pytest.mark.slow
def test_a_sleep_of_level_0_only_pauses(started: Started) -> None:
    """It releases no memory; chats wait until the scheduling is woken."""
    _, client = started(*VLLM)
    assert client.post("/sleep", params={"level": 0}).json() == {"status": "sleeping", "level": 0}
    assert is_sleeping(client)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(chat, client)
        woken = client.post("/wake_up", params={"tags": ["scheduling"]})
        assert woken.json() == {"status": "awake", "tags": ["scheduling"]}
        assert waiting.result().status_code == 200
    assert not is_sleeping(client)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["wait", "abort", "keep"])
def test_the_mode_of_a_sleep_sets_the_fate_of_requests_in_flight(started: Started, mode: str) -> None:
    """The client gets the whole answer before the sleep, a part of it, or the rest after the wake."""
    _, client = started(*VLLM, "--token-s", "0.05")
    with ThreadPoolExecutor() as pool:
        running = pool.submit(chat, client, max_tokens=40)
        wait_for(lambda: client.get("/metrics").text.endswith(" 1\n"))
        assert client.post("/sleep", params={"mode": mode}).status_code == 200
        if mode == "keep":
            assert not running.done()
        assert client.get("/metrics").text.endswith(" 1\n" if mode == "keep" else " 0\n")
        assert client.post("/wake_up").status_code == 200
        answer = running.result().json()
    tokens, finish = answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]
    assert (tokens < 40, finish) == ((True, "abort") if mode == "abort" else (False, "length"))


@pytest.mark.slow
def test_management_routes_need_the_development_mode(started: Started) -> None:
    """Without VLLM_SERVER_DEV_MODE=1 the server has no route for a sleep."""
    _, client = started(*VLLM, dev_mode="0")
    for path in ("/sleep", "/wake_up", "/collective_rpc"):
        assert client.post(path, json={}).status_code == 404
    assert client.get("/is_sleeping").status_code == 404
    assert client.get("/health").status_code == 200


def test_an_engine_core_that_dies_ends_the_server(started: Started) -> None:
    """A chat that waits for the wake gets 500; the server exits with code 0 and leaves no process."""
    engine, client = started(*VLLM)
    core = min(pid for pid in living_members(engine.pid) if pid != engine.pid)
    assert client.post("/sleep").status_code == 200
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(chat, client)
        os.kill(core, signal.SIGKILL)
        answer = waiting.result()
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "InternalServerError")
    assert engine.wait(30) == 0
    assert "EngineDeadError" in engine.log_tail()[-1]
    assert wait_until_gone(engine.pid) == []


@pytest.mark.slow
def test_a_server_without_requests_ends_soon_after_its_engine_core(started: Started) -> None:
    """Health reports the failure without ending the server; the watchdog ends it within 5 s."""
    engine, client = started(*VLLM)
    os.kill(min(pid for pid in living_members(engine.pid) if pid != engine.pid), signal.SIGKILL)
    wait_for(lambda: client.get("/health").status_code == 503)
    assert engine.poll() is None
    assert engine.wait(20) == 0


def test_a_forward_pass_on_sleeping_memory_ends_the_engine_core() -> None:
    """Over HTTP this cannot happen, because the server holds requests back."""
    core = VLLMEngineCore(None)
    core.answer({"op": "sleep", "level": 1})
    with pytest.raises(RuntimeError, match="illegal memory access"):
        core.answer({"op": "generate", "prompt": "a", "tokens": 1, "greedy": True})


@pytest.mark.parametrize(
    ("scheduler", "wakes", "seeds"),
    [
        (SGLangScheduler, {"op": "resume", "tags": []}, {"op": "resume", "tags": []}),
        (VLLMEngineCore, {"op": "wake", "tags": []}, {"op": "rpc", "method": RENEW}),
    ],
    ids=["sglang", "vllm"],
)
def test_replicas_sample_the_same_text_until_they_seed_again(
    scheduler: type[Scheduler], wakes: Command, seeds: Command
) -> None:
    """SGLang's dialect seeds at the resume by itself; vLLM's seeds on a separate call, not at the wake."""
    one = scheduler(None)
    two, three = copy.deepcopy(one), copy.deepcopy(one)

    def sampled(copied: Scheduler) -> list[str]:
        return copied.answer({"op": "generate", "prompt": "a", "tokens": 50, "greedy": False})["words"]

    assert sampled(one) == sampled(two)
    if wakes != seeds:
        two.answer({"op": "sleep", "level": 1})
        two.answer(wakes)
        assert sampled(one) == sampled(two)
    two.answer({**seeds, "args": ["7"]})
    three.answer({**seeds, "args": ["8"]})
    assert sampled(two) != sampled(three)
