"""The real vLLM on the CPU: allowed fields of a public request, and the limit of its head."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.plugins.torpor_vllm.conftest import LOCAL, cpu_plugin
from torpor import Deployment, Model
from torpor.lifecycle import Lifecycle
from torpor.runtime.guard_client import GuardControl, open_client
from torpor.runtime.readiness import wait_ready

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.plugins.local_engines import RealEngine

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CHAT: dict[str, object] = {
    "model": "tiny-qwen3",
    "messages": [{"role": "user", "content": "the quick brown fox"}],
    "max_tokens": 4,
}
LOOP = "{% for a in range(10 ** 9) %}{% endfor %}"


def media(url: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


REFUSED: tuple[tuple[str, dict[str, object]], ...] = (
    ("chat_template_kwargs.chat_template is refused", {"chat_template_kwargs": {"chat_template": LOOP}}),
    ("The field chat_template is refused", {"chat_template": LOOP}),
    ("this server opens no files", media("file:///etc/passwd")),
    ("Media is not fetched from 169.254.169.254", media("http://169.254.169.254/a.png")),
    ("may ask for 128 answers", {"n": 129}),
    ("top_k may be", {"top_k": 10**12}),
    ("The field priority is refused", {"priority": 9}),
    ("The field request_id is refused", {"request_id": "a"}),
    ("The field kv_transfer_params is refused", {"kv_transfer_params": {"remote_host": "127.0.0.1"}}),
    ("The field mm_processor_kwargs is refused", {"mm_processor_kwargs": {"max_pixels": 10**9}}),
    ("top_logprobs may be 0 to 20", {"logprobs": True, "top_logprobs": 100_000}),
    ("allowed_token_ids holds the token id", {"allowed_token_ids": [10**8]}),
)


@pytest.mark.timeout(400)
@pytest.mark.fault("a request to a real engine contains operator-only fields", area="request", outcome="refused")
def test_the_real_server_checks_requests_before_it_acts_on_them(
    real_engine: Callable[[str], RealEngine], tiny_model: Path, free_port: int
) -> None:
    """Each refused request gets 400 at once, its parser limits heads, and it keeps serving."""
    real = real_engine(LOCAL.version)
    plugin = replace(cpu_plugin(real, warmup_prompt_words=(8,)), open_completions=True)
    model = Model(path=str(tiny_model), served_name="tiny-qwen3")
    deployment = Deployment(name="requests", model=model, port=free_port, plugins=(plugin,))
    engine = plugin.launch(deployment, Lifecycle(deployment).recipe())
    try:
        with (
            open_client(engine, port=free_port, timeout_s=60.0) as keyed,
            httpx.Client(base_url=f"http://127.0.0.1:{free_port}", timeout=60.0, trust_env=False) as public,
        ):
            wait_ready(engine, keyed, port=free_port, ready_path="/v1/models", timeout_s=240.0)
            GuardControl(engine, keyed).serve()
            for said, body in REFUSED:
                answer = public.post("/v1/chat/completions", json=CHAT | body, timeout=30)
                assert (answer.status_code, said in answer.text) == (400, True), answer.text
            for prompt in ([-1], [10**6], [[1], [-7]]):
                body = {"model": "tiny-qwen3", "prompt": prompt, "max_tokens": 2}
                answer = public.post("/v1/completions", json=body, timeout=30)
                assert answer.status_code == 400, answer.text  # vLLM's own models refuse values below 0
            with socket.create_connection(("127.0.0.1", free_port), timeout=30) as connection:
                connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: t\r\na: " + b"x" * 50_000 + b"\r\n\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 431 ")
            whole = public.post("/v1/chat/completions", json=CHAT | {"n": 2, "seed": 1})
            assert len(whole.json()["choices"]) == 2
            parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
            assert public.post("/v1/chat/completions", json=CHAT | {"messages": parts}).status_code == 200
    finally:
        engine.terminate(20.0)
