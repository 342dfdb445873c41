"""Start the stand-in without a guard and send chats to it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Protocol

from torpor import Engine, start_engine

if TYPE_CHECKING:
    import httpx

__all__ = ["Started", "chat", "launch", "text_of"]


class Started(Protocol):
    """Starts the stand-in without a guard."""

    def __call__(self, *flags: str, dev_mode: str = "1") -> tuple[Engine, httpx.Client]:
        """Return the ready engine and a client."""


def launch(port: int, *flags: str, unguarded: str = "1", dev_mode: str = "1") -> Engine:
    """Start the stand-in's module."""
    argv = (sys.executable, "-m", "torpor.testing.standin", "--port", str(port), *flags)
    return start_engine(argv, env={"TORPOR_UNGUARDED": unguarded, "VLLM_SERVER_DEV_MODE": dev_mode})


def chat(client: httpx.Client, prompt: str = "Hello.", **options: object) -> httpx.Response:
    """Send one chat, greedy by default."""
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 8, "temperature": 0, **options}
    return client.post("/v1/chat/completions", json=body)


def text_of(response: httpx.Response) -> str:
    """Return the text of an answer, streamed or not."""
    if "text/event-stream" not in response.headers["content-type"]:
        return str(response.json()["choices"][0]["message"]["content"])
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])
