"""Warm-up requests: they compile, import and allocate what a first real request would.

The engines' own warm-ups do not suffice. SGLang's sends one plain `/generate` of 8 tokens; a restored server with only that took
29 to 34 s for its first chat request, because the chat path imports and compiles more (ai-dynamo/dynamo#9435). vLLM's runs the
model without the HTTP server. So these requests are chats: short and long, streamed and not, greedy and sampled, alone and in
a small burst.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torpor.errors import EngineRequestError
from torpor.telemetry.progress import tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    import httpx

__all__ = ["WarmupRequest", "send", "send_burst", "warm_up", "warmup_requests"]

TOKENS = 16
_OK = 200


@dataclass(frozen=True, kw_only=True)
class WarmupRequest:
    """One chat request.

    Attributes:
        prompt_words: length of the user's message, words.
        stream: whether the answer is streamed.
        temperature: 0 is greedy.
    """

    prompt_words: int
    stream: bool
    temperature: float

    def body(self, model: str) -> dict[str, object]:
        """The request's JSON."""
        sampling = {"temperature": self.temperature} | ({"top_p": 0.9} if self.temperature else {})
        return {
            "model": model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {
                    "role": "user",
                    "content": " ".join(["Tell me about rivers."] + ["and lakes"] * (self.prompt_words // 2)),
                },
            ],
            "max_tokens": TOKENS,
            "stream": self.stream,
            **sampling,
        }


def warmup_requests(prompt_words: tuple[int, ...]) -> tuple[WarmupRequest, ...]:
    """The requests: each length greedy and not streamed, then each length sampled and streamed; at least four."""
    lengths = prompt_words if len(prompt_words) > 1 else (*prompt_words, *prompt_words)
    greedy = tuple(WarmupRequest(prompt_words=words, stream=False, temperature=0.0) for words in lengths)
    sampled = tuple(WarmupRequest(prompt_words=words, stream=True, temperature=0.8) for words in lengths)
    return greedy + sampled


def warm_up(client: httpx.Client, *, model: str, prompt_words: tuple[int, ...], burst: int, timeout_s: float) -> None:
    """Send all requests one after the other, then a burst.

    Args:
        client: bound to the engine.
        model: served model name.
        prompt_words: prompt lengths, words.
        burst: requests sent at once at the end.
        timeout_s: seconds without a byte for one request, which may compile kernels.

    Raises:
        EngineRequestError: the engine answered with an error or with nothing.
    """
    requests = warmup_requests(prompt_words)
    for number, request in enumerate(requests, start=1):
        tell(f"request {number} of {len(requests)}")
        send(client, request, model=model, timeout_s=timeout_s)
    if burst > 1:
        tell(f"{burst} requests at once")
    send_burst(client, burst, models=(model,), timeout_s=timeout_s)


def send(client: httpx.Client, request: WarmupRequest, *, model: str, timeout_s: float) -> int:
    """Send one request and read its answer to the end.

    Args:
        client: bound to the engine.
        request: what to send.
        model: served model name.
        timeout_s: seconds without a byte; the first request may compile for minutes.

    Returns:
        How many bytes came back.

    Raises:
        EngineRequestError: the engine answered with an error or with nothing.
    """
    with client.stream("POST", "/v1/chat/completions", json=request.body(model), timeout=timeout_s) as response:
        size = sum(len(chunk) for chunk in response.iter_bytes())
        if response.status_code != _OK or size == 0:
            raise EngineRequestError(
                f"Warm-up request {request} to {model!r} got {response.status_code} and {size} bytes; the engine does not answer "
                "chats."
            )
    return size


def send_burst(client: httpx.Client, count: int, *, models: Sequence[str], timeout_s: float) -> None:
    """Send `count` short requests at once, to each model in turn, so that the engine has run batches larger than one.

    Raises:
        EngineRequestError: one of them failed.
    """
    if count < 2:  # noqa: PLR2004 - one at a time is what the other requests were
        return
    request = WarmupRequest(prompt_words=8, stream=False, temperature=0.8)
    with ThreadPoolExecutor(count, thread_name_prefix="warmup") as pool:
        turns = [models[turn % len(models)] for turn in range(count)]
        for future in [pool.submit(send, client, request, model=model, timeout_s=timeout_s) for model in turns]:
            future.result()
