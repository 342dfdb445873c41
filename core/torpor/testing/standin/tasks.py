"""The stand-in's routes of every task but `chat`: answers in the shapes of both dialects, made of the scheduler's words.

A text always has the same answer as long as the scheduler's "memory" is whole, and another one when it is garbled, so canaries
of every task see the faults that those of chats see.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from torpor.testing.standin.logprobs import as_completion, prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from torpor.tasks.routes import Task
    from torpor.testing.standin.exchange import Exchange

__all__ = ["NUMBERS", "TaskAnswers"]

NUMBERS = 8
"""Length of a vector."""

_LABELS = ("calm", "rough", "frozen")
_OK, _BAD_REQUEST, _NOT_FOUND = 200, 400, 404
_DEFAULT_TOKENS = 16


class TaskAnswers:
    """Answers the requests of one task.

    Args:
        task: any but `chat`.
        words: asks the scheduler: a prompt, a number of tokens, whether it is greedy, and the model's name.
        refuse: answers with an error, as the dialect does.
        knows: whether the engine answers to a model's name.
        bare_list: whether a ranking is a list (SGLang), or an object with one (vLLM).
    """

    def __init__(
        self,
        task: Task,
        *,
        words: Callable[[str, int, bool, object], Awaitable[list[str]]],
        refuse: Callable[[Exchange, int, str], Awaitable[None]],
        knows: Callable[[object], bool],
        bare_list: bool,
    ) -> None:
        self._task = task
        self._words = words
        self._refuse = refuse
        self._knows = knows
        self._bare_list = bare_list

    async def answer(self, exchange: Exchange) -> None:
        """Answer one request."""
        if self._task == "transcribe":
            await self._transcribe(exchange)
            return
        body = await exchange.json()
        if not isinstance(body, dict):
            await self._refuse(exchange, _BAD_REQUEST, "a JSON object is required")
        elif not self._knows(body.get("model")):
            await self._refuse(exchange, _NOT_FOUND, f"The model `{body.get('model')}` does not exist.")
        elif (texts := _texts(self._task, body)) is None:
            await self._refuse(exchange, _BAD_REQUEST, f"this is no request of the task {self._task}")
        else:
            await self._answered(exchange, body, texts)

    async def _answered(self, exchange: Exchange, body: Mapping[str, object], texts: Sequence[str]) -> None:
        if self._task == "generate":
            await self._generate(exchange, body, texts[0])
            return
        found = [_numbers(await self._words(text, NUMBERS, True, body.get("model"))) for text in texts]
        match self._task:
            case "embed":
                items = [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(found)]
                await exchange.answer(_OK, {"object": "list", "model": body.get("model"), "data": items})
            case "classify":
                items = [_labelled(at, one[: len(_LABELS)]) for at, one in enumerate(found)]
                await exchange.answer(_OK, {"object": "list", "model": body.get("model"), "data": items})
            case "score" if self._bare_list:
                await exchange.answer(_OK, {"object": "scoring", "scores": [one[:2] for one in found]})
            case "score":
                items = [{"object": "score", "index": at, "score": one[0]} for at, one in enumerate(found)]
                await exchange.answer(_OK, {"object": "list", "data": items})
            case _:
                await self._rerank(exchange, texts, [one[0] for one in found])

    async def _rerank(self, exchange: Exchange, texts: Sequence[str], scores: Sequence[float]) -> None:
        order = sorted(range(len(scores)), key=lambda at: -scores[at])
        name = "score" if self._bare_list else "relevance_score"
        items = [{"index": at, name: scores[at], "document": texts[at].partition("\n")[2]} for at in order]
        await exchange.answer(_OK, items if self._bare_list else {"results": items})

    async def _generate(self, exchange: Exchange, body: Mapping[str, object], prompt: str) -> None:
        asked = body.get("max_tokens")
        tokens = asked if isinstance(asked, int) and asked > 0 else _DEFAULT_TOKENS
        if body.get("echo") is True:
            length = prompt_tokens(prompt)
            both = await self._words(prompt, length + tokens, True, body.get("model"))
            await exchange.answer(_OK, as_completion(both, length, str(body.get("model"))))
            return
        words = await self._words(prompt, tokens, body.get("temperature") == 0, body.get("model"))
        if body.get("stream") is not True:
            await exchange.answer(_OK, _completion(" ".join(words), "length", len(words)))
            return
        await exchange.begin(_OK, "text/event-stream")
        for at, word in enumerate(words):
            await exchange.chunk(_event(_completion(word if at == 0 else f" {word}", None, at + 1)), more=True)
        await exchange.chunk(_event(_completion("", "length", len(words))) + b"data: [DONE]\n\n", more=False)

    async def _transcribe(self, exchange: Exchange) -> None:
        form = await exchange.body()
        if b'name="file"' not in form:
            await self._refuse(exchange, _BAD_REQUEST, "file: a form with a file is required")
            return
        sound = form.partition(b'name="file"')[2].partition(b"\r\n\r\n")[2].partition(b"\r\n--")[0]
        words = await self._words(hashlib.sha256(sound).hexdigest(), NUMBERS, True, None)
        await exchange.answer(_OK, {"text": " ".join(words)})


def _texts(task: Task, body: Mapping[str, object]) -> list[str] | None:
    """What is computed for a request, one text for each number or label; None if it is no request of the task."""
    query = body.get("query", body.get("text_1", ""))
    given = next((body[name] for name in ("input", "documents", "items", "text_2", "prompt") if name in body), None)
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not listed or not all(isinstance(item, str) for item in listed):
        return None
    if task in ("rerank", "score"):
        return [f"{query}\n{item}" for item in listed] if isinstance(query, str) and query else None
    return listed


def _numbers(words: Sequence[str]) -> list[float]:
    """A number from -1 to 1 for each word."""
    return [hashlib.sha256(word.encode()).digest()[0] / 127.5 - 1.0 for word in words]


def _labelled(at: int, scores: list[float]) -> dict[str, object]:
    label = _LABELS[scores.index(max(scores))]
    return {"index": at, "label": label, "probs": scores, "num_classes": len(scores)}


def _completion(text: str, finish: str | None, tokens: int) -> dict[str, object]:
    choice = {"index": 0, "text": text, "finish_reason": finish}
    return {"object": "text_completion", "choices": [choice], "usage": {"completion_tokens": tokens}}


def _event(value: object) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()
