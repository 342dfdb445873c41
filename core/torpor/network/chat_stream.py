"""A streamed answer in OpenAI's chat format: from the lines of its server-sent events to text, times and tokens."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from torpor.errors import EngineRequestError

__all__ = ["ChatResult", "ChatStream"]

_QUOTED = 500


@dataclass(frozen=True, kw_only=True)
class ChatResult:
    """One answer.

    Attributes:
        text: the whole answer, reasoning included.
        ttft_s: seconds from the call to the first token, waiting for the server included.
        total_s: seconds from the call to the end of the answer.
        tokens: completion tokens as the server counted them; chunks of text where it did not.
        waited_s: seconds from the call until the request was sent that got the answer.
        model: the served name that was asked.
    """

    text: str
    ttft_s: float
    total_s: float
    tokens: int
    waited_s: float
    model: str


class ChatStream:
    """The part of an answer that has come so far.

    Args:
        url: of the server, for messages.

    Attributes:
        pieces: texts, in order.
        first_at: monotonic time of the first text; None before it.
        tokens: completion tokens as the server counted them; None where it did not.
        done: whether the final event has come.
        last_line: the last line that was not empty.
    """

    def __init__(self, url: str) -> None:
        self.pieces: list[str] = []
        self.first_at: float | None = None
        self.tokens: int | None = None
        self.done = False
        self.last_line = ""
        self._url = url

    def take(self, line: str) -> str:
        """Take a line of the stream and return the text in it.

        Raises:
            EngineRequestError: the line is an error, or no chat chunk.
        """
        self.last_line = line or self.last_line
        field, _, value = line.partition(":")
        if field != "data":
            return ""
        if value.strip() == "[DONE]":
            self.done = True
            return ""
        try:
            text = self._text(json.loads(value))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise EngineRequestError(
                f"{self._url} sent something that is no chat chunk ({type(error).__name__}: {error}): "
                f"{value.strip()[:_QUOTED]!r}."
            ) from error
        if text:
            self.first_at = self.first_at or time.monotonic()
            self.pieces.append(text)
        return text

    def result(self, began: float, sent: float, model: str) -> ChatResult:
        """The finished answer.

        Args:
            began: monotonic time from which times count.
            sent: monotonic time of the request that got the answer.
            model: the served name that was asked.
        """
        ended = time.monotonic()
        return ChatResult(
            waited_s=sent - began,
            model=model,
            text="".join(self.pieces),
            ttft_s=(self.first_at or ended) - began,
            total_s=ended - began,
            tokens=len(self.pieces) if self.tokens is None else self.tokens,
        )

    def _text(self, chunk: _Chunk) -> str:
        if "error" in chunk:
            raise EngineRequestError(f"{self._url} answered with an error: {json.dumps(chunk['error'])[:_QUOTED]}")
        deltas = [choice["delta"] for choice in chunk["choices"]]
        text = "".join(_reasoning(delta) + (delta.get("content") or "") for delta in deltas)
        if usage := chunk.get("usage"):
            self.tokens = int(usage["completion_tokens"])
        return text


class _Choice(TypedDict):
    delta: dict[str, str | None]


class _Chunk(TypedDict):
    """A chat chunk, as far as it is read."""

    choices: list[_Choice]
    usage: NotRequired[dict[str, int] | None]
    error: NotRequired[object]


def _reasoning(delta: dict[str, str | None]) -> str:
    return delta.get("reasoning_content") or delta.get("reasoning") or ""  # vLLM uses the second name, or both
