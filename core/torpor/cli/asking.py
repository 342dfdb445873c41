"""Asks a server of any task but `chat` one text, and shows its answer as lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torpor.client import ask
from torpor.tasks.sound import generated_sound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torpor.cli.waiting import WaitingLimits
    from torpor.client import TaskResult
    from torpor.tasks.routes import Task

__all__ = ["DOCUMENTS", "PAIRS", "Asked", "answer_lines", "ask_task"]

DOCUMENTS = ("A lake is water that stands.", "Paris is the capital of France.")
"""What is ranked or scored unless the user says otherwise."""

PAIRS = ("rerank", "score")
"""Tasks that compare a query with documents."""

_SOUND_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a server is asked.

    Attributes:
        text: the prompt, the text, or the query of a ranking or of scores; `transcribe` needs none.
        documents: what the query is compared with; two of Torpor's own by default.
        sound: for `transcribe`; a generated one by default.
        model: the served name; empty for the first that the server lists.
        max_tokens: longest answer of `generate`, tokens; None leaves it to the server.
    """

    text: str
    documents: Sequence[str] = ()
    sound: bytes = b""
    model: str = ""
    max_tokens: int | None = None


def ask_task(
    url: str,
    task: Task,
    asked: Asked,
    *,
    limits: WaitingLimits,
    key: str | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> TaskResult:
    """Ask once.

    Args:
        url: where the server answers, without a path.
        task: any but `chat`.
        asked: the question.
        limits: deadlines.
        key: bearer key; None for `TORPOR_API_KEY`, if it is set.
        on_wait: told, in one line, why it waits, whenever the reason changes.

    Raises:
        TorporError: see `torpor.client.ask`.
    """
    pair, heard = task in PAIRS, task == "transcribe"
    return ask(
        url,
        task=task,
        texts=(tuple(asked.documents) or DOCUMENTS) if pair else () if heard else (asked.text,),
        query=asked.text if pair else "",
        sound=(asked.sound or generated_sound(_SOUND_S)) if heard else b"",
        model=asked.model or None,
        timeout_s=limits.timeout_s,
        connect_s=limits.connect_s,
        api_key=key,
        on_wait=on_wait,
        fields={"max_tokens": asked.max_tokens} if task == "generate" and asked.max_tokens is not None else None,
    )


def answer_lines(result: TaskResult) -> list[str]:
    """What the answer says, a line for each text, vector, document or label."""
    answer = result.answer
    if "text" in answer:
        return [str(answer["text"])]
    if "vectors" in answer:
        vectors = cast("list[list[float]]", answer["vectors"])
        return [f"{len(one)} numbers: {', '.join(f'{part:.4f}' for part in one[:4])}, ..." for one in vectors]
    scores = cast("list[object]", answer["scores"])
    if "order" in answer:
        return [f"document {at}: {scores[at]}" for at in cast("list[int]", answer["order"])]
    names = cast("list[str]", answer.get("labels", [f"text {at}" for at in range(len(scores))]))
    return [f"{name}: {score}" for name, score in zip(names, scores, strict=True)]
