"""A chat completion of the stand-in, whole or streamed; the same in both dialects."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from torpor.testing.standin.exchange import Exchange

__all__ = ["Chat"]

_OK = 200


class Chat:
    """One chat completion.

    Args:
        answer_id: unique for each answer.
        model: the model's name in the answer.
        words: the answer, one word per token.
        prompt_tokens: number of prompt tokens, for the usage.
        next_token: waits for the time of one token; returns False if the request is aborted.
    """

    def __init__(
        self,
        *,
        answer_id: str,
        model: str,
        words: list[str],
        prompt_tokens: int,
        next_token: Callable[[], Awaitable[bool]],
    ) -> None:
        self._id = answer_id
        self._model = model
        self._words = words
        self._prompt_tokens = prompt_tokens
        self._next_token = next_token
        self._tokens = 0
        self._finish = "length"

    async def whole(self, exchange: Exchange) -> None:
        """Answer in one piece, after the last token."""
        message = {"role": "assistant", "content": " ".join([word async for word in self._generated(exchange)])}
        choice = {"index": 0, "message": message, "finish_reason": self._finish}
        await exchange.answer(_OK, {**self._head("chat.completion"), "choices": [choice], "usage": self._usage()})

    async def stream(self, exchange: Exchange) -> None:
        """Answer with one event per token."""
        await exchange.begin(_OK, "text/event-stream")
        await self._event(exchange, {"role": "assistant", "content": ""}, None)
        async for word in self._generated(exchange):
            await self._event(exchange, {"content": word if self._tokens == 1 else f" {word}"}, None)
        await self._event(exchange, {}, self._finish, usage=self._usage())
        await exchange.chunk(b"data: [DONE]\n\n", more=False)

    async def _generated(self, exchange: Exchange) -> AsyncIterator[str]:
        """Yield tokens until the client hangs up: engines then abort the request."""
        for word in self._words:
            if exchange.gone or not await self._next_token():
                self._finish = "abort"
                return
            self._tokens += 1
            yield word

    async def _event(self, exchange: Exchange, delta: object, finish: str | None, **extra: object) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        value = {**self._head("chat.completion.chunk"), "choices": [choice], **extra}
        await exchange.chunk(f"data: {json.dumps(value)}\n\n".encode(), more=True)

    def _head(self, kind: str) -> dict[str, object]:
        return {"id": self._id, "object": kind, "created": int(time.time()), "model": self._model}

    def _usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._tokens,
            "total_tokens": self._prompt_tokens + self._tokens,
        }
