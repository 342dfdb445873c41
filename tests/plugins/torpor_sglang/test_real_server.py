"""The real SGLang on the CPU, started by the launcher: guard, sleep, wake and end."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import httpx
import pytest
from typing_extensions import override

from tests.conftest import is_running, wait_until_gone
from tests.plugins.engine_rules.launcher import RealLauncherRules
from tests.plugins.torpor_sglang.conftest import LOCAL, cpu_plugin
from torpor.engine.process import session_members
from torpor.engine.start import start_engine
from torpor.guard import GuardRules
from torpor.runtime.guard_client import GuardControl, open_client
from torpor.runtime.readiness import wait_ready
from torpor.testing.ports import unused_port
from torpor_sglang import SGLang, routes
from torpor_sglang.flags import FLAGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.plugins.local_engines import RealEngine
    from torpor.engine.handle import Engine
    from torpor.engine_plugins.flags import OptionValue

pytestmark = [pytest.mark.sglang, pytest.mark.slow]

TAGS = {"tags": ["kv_cache", "weights"]}
CHAT: dict[str, object] = {
    "model": "tiny-qwen3",
    "messages": [{"role": "user", "content": "the quick brown fox"}],
    "max_tokens": 16,
    "temperature": 0,
}
START_S = 240.0
SPAWNED = "-forked-scheduler"


@contextmanager
def launched(engine: RealEngine, model: Path, port: int) -> Iterator[Engine]:
    """Start the launcher with the CPU flags, and end it and its children at the end."""
    options: dict[str, OptionValue] = {
        "model_path": str(model),
        "served_model_name": "tiny-qwen3",
        "host": "127.0.0.1",
        "port": port,
        "device": "cpu",
        "max_running_requests": 8,
        "max_total_tokens": 4096,
        "mem_fraction_static": 0.1,
        "metrics": True,
        "skip_server_warmup": True,
        "attention_backend": "torch_native",
        "sleep_on_idle": True,
        "disable_overlap_schedule": True,
    }
    public = (*routes.TASKS["chat"], *routes.TASKS["generate"], *routes.PUBLIC)
    rules = GuardRules(public=public, keyed=routes.KEYED, sleep=routes.SLEEP, wake=routes.WAKE)
    started = start_engine(
        (str(engine.python), "-m", "torpor_sglang.serve", *FLAGS.argv(engine.version, options)),
        env={**engine.env, "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false"},
        guard=rules,
    )
    try:
        yield started
    finally:
        started.terminate(20.0)


def anybody(port: int) -> httpx.Client:
    """Return a client without the lifecycle key."""
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0, trust_env=False)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def streamed_text(client: httpx.Client) -> str:
    import json

    with client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        assert response.status_code == 200
        lines = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines)


def assert_guarded(public: httpx.Client, keyed: httpx.Client) -> None:
    """Check that management routes are closed or need the key, and that no path bypasses the guard."""
    for path in (
        *routes.SLEEP,
        *routes.WAKE,
        "/server_info",
        "/metrics",
        "/flush_cache",
        "/docs",
        "/health_generate",
        "/nowhere",
    ):
        assert public.get(path).status_code == 404, path
    assert keyed.get("/server_info").status_code == 200
    assert "sglang" in keyed.get("/metrics").text
    assert keyed.get("/update_weights_from_disk").status_code == 404
    assert keyed.post("/release_memory_occupation", json=TAGS).status_code == 409


JUDGED_BODIES: dict[str, dict[str, object]] = {
    "chat_template_kwargs.chat_template is refused": {
        "chat_template_kwargs": {"chat_template": "{% for a in range(10 ** 9) %}{% endfor %}"}
    },
    "this server opens no files": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]
    },
    "Media is not fetched from 169.254.169.254": {
        "messages": [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/a.png"}}]}
        ]
    },
    "may ask for 128 answers": {"n": 129},
    "top_k may be": {"top_k": 10**12},
    "The field priority is refused": {"priority": 9},
    "The field bootstrap_host is refused": {"bootstrap_host": "127.0.0.1"},
    "top_logprobs may be 0 to 20": {"logprobs": True, "top_logprobs": 100_000},
}
"""Refused chats, by a part of the answer."""


def assert_requests_are_judged(public: httpx.Client) -> None:
    """Check that each refused chat gets 400 at once, and that the engine keeps serving."""
    for said, body in JUDGED_BODIES.items():
        answer = public.post("/v1/chat/completions", json=CHAT | body, timeout=30)
        assert (answer.status_code, said in answer.text) == (400, True), answer.text
    for prompt in ([-1], [5, 10**6], [[1], [-7]]):
        answer = public.post(
            "/v1/completions", json={"model": "tiny-qwen3", "prompt": prompt, "max_tokens": 2}, timeout=5
        )
        assert (answer.status_code, "holds the token id" in answer.text) == (400, True), answer.text
    # Not with n=2: 0.5.16 keeps the state of such a request, and then waits for it for ever on SIGTERM.
    whole = public.post("/v1/completions", json={"model": "tiny-qwen3", "prompt": [1, 2, 3], "max_tokens": 2, "n": 1})
    assert len(whole.json()["choices"]) == 1


def assert_heads_are_limited(port: int) -> None:
    """Check the limit of request heads with the engine's own parser."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: t\r\na: " + b"x" * 50_000 + b"\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")


def put_to_sleep(control: GuardControl, keyed: httpx.Client) -> None:
    control.drain(20.0)
    deadline = time.monotonic() + 10.0
    while keyed.post("/flush_cache").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert keyed.post("/pause_generation", json={}).status_code == 200
    assert keyed.post("/release_memory_occupation", json=TAGS).status_code == 200
    control.asleep()


def assert_asleep(public: httpx.Client, keyed: httpx.Client) -> None:
    for path in ("/health", "/ready"):
        answer = public.get(path)
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert public.post("/v1/chat/completions", json=CHAT).status_code == 503
    assert keyed.post("/v1/chat/completions", json=CHAT).status_code == 409
    assert keyed.post("/resume_memory_occupation", json=TAGS).status_code == 409


@pytest.mark.timeout(400)
@pytest.mark.fault("a request to a real engine contains operator-only fields", area="request", outcome="refused")
@pytest.mark.parametrize("version", ["0.5.23", "0.5.18", "0.5.16"])
def test_the_real_server_sleeps_and_wakes_behind_the_guard(
    real_engine: Callable[[str], RealEngine], tiny_model: Path, version: str
) -> None:
    """Chats work while serving and management routes are closed. Asleep it answers 503; after the wake the answer is the same."""
    port = unused_port()
    with (
        launched(real_engine(version), tiny_model, port) as engine,
        anybody(port) as public,
        open_client(engine, port=port, timeout_s=60.0) as keyed,
    ):
        control = GuardControl(engine, keyed)
        wait_ready(engine, keyed, port=port, ready_path="/v1/models", timeout_s=START_S)
        assert public.get("/health").status_code == 503
        assert public.post("/v1/chat/completions", json=CHAT).status_code == 503
        control.serve()
        assert public.get("/health").status_code == 200
        before = text_of(public.post("/v1/chat/completions", json=CHAT))
        assert before
        assert streamed_text(public) == before
        assert_guarded(public, keyed)
        assert_requests_are_judged(public)
        assert_heads_are_limited(port)
        put_to_sleep(control, keyed)
        assert_asleep(public, keyed)
        assert_heads_are_limited(port)
        control.wake()
        assert keyed.post("/resume_memory_occupation", json=TAGS).status_code == 200
        assert keyed.post("/continue_generation", json={}).status_code == 200
        assert text_of(keyed.post("/v1/chat/completions", json=CHAT)) == before
        control.serve()
        assert text_of(public.post("/v1/chat/completions", json=CHAT)) == before
        members = session_members(engine.pid)
        assert len(members) >= 2  # the HTTP server, in which the detokenizer is, and the scheduler
        os.kill(engine.pid, signal.SIGTERM)  # the launcher alone: it ends its own tree
        assert engine.wait(30.0) is not None
        assert [member for member in members if is_running(member)] == []


class TestTheLauncher(RealLauncherRules):
    """SGLang's launcher, which forks its scheduler on a CPU."""

    local = LOCAL
    children: ClassVar[int] = 1

    @override
    def plugin(self, engine: RealEngine) -> SGLang:
        return cpu_plugin(engine, warmup_prompt_words=(8,))


class TestTheLauncherThatSpawns(TestTheLauncher):
    """SGLang's launcher with the fork switched off: it starts the scheduler and multiprocessing's resource tracker."""

    patches: ClassVar[str] = SPAWNED
    children: ClassVar[int] = 2


@pytest.mark.timeout(200)
def test_the_oldest_version_starts_as_far_as_a_cpu_allows(
    real_engine: Callable[[str], RealEngine], tiny_model: Path
) -> None:
    """0.5.6.post2 needs vllm in its scheduler on a CPU. Launcher, guard, arguments and spawned processes work up to there."""
    with launched(real_engine("0.5.6.post2"), tiny_model, unused_port()) as engine:
        assert engine.wait(START_S) not in (None, 0, 2)
        log = "\n".join(engine.log_tail())
        left = wait_until_gone(engine.pid)  # killed a moment ago by the launcher's end
    assert (
        "SGLang 0.5.6.post2; guarded; patches: orphans, process-identity, tqdm-lock, published-files, http-limits, "
        "public-requests, finished-streams, cpu-kernels, torchvision-schemas"
    ) in log
    assert "run_scheduler_process" in log
    assert "ModuleNotFoundError: No module named 'vllm'" in log
    assert left == []
