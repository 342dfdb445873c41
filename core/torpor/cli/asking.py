"""Asks a server of any task but `chat` one text, and shows its answer as lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torpor.client import ask
from torpor.tasks.sound import generated_sound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torpor.cli.waiting import WaitingLimits
    from torpor.client import TaskResult
    from torpor.tasks.routes import Task

__all__ = ["DOCUMENTS", "PAIRS", "answer_lines", "ask_task"]

DOCUMENTS = ("A lake is water that stands.", "Paris is the capital of France.")
"""What is ranked or scored unless the user says otherwise."""

PAIRS = ("rerank", "score")
"""Tasks that compare a query with documents."""

_SOUND_S = 2.0


def ask_task(
    url: str,
    task: Task,
    text: str,
    *,
    limits: WaitingLimits,
    documents: Sequence[str] = (),
    sound: bytes = b"",
    model: str = "",
    max_tokens: int | None = None,
    key: str | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> TaskResult:
    """Ask once.

    Args:
        url: where the server answers, without a path.
        task: any but `chat`.
        text: the prompt, the text, or the query of a ranking or of scores; `transcribe` needs none.
        limits: deadlines.
        documents: what the query is compared with; two of Torpor's own by default.
        sound: for `transcribe`; a generated one by default.
        model: the served name; empty for the first that the server lists.
        max_tokens: longest answer of `generate`, tokens; None leaves it to the server.
        key: bearer key; None for `TORPOR_API_KEY`, if it is set.
        on_wait: told, in one line, why it waits, whenever the reason changes.

    Raises:
        TorporError: see `torpor.client.ask`.
    """
    pair, heard = task in PAIRS, task == "transcribe"
    return ask(
        url,
        task=task,
        texts=(tuple(documents) or DOCUMENTS) if pair else () if heard else (text,),
        query=text if pair else "",
        sound=(sound or generated_sound(_SOUND_S)) if heard else b"",
        model=model or None,
        timeout_s=limits.timeout_s,
        connect_s=limits.connect_s,
        api_key=key,
        on_wait=on_wait,
        fields={"max_tokens": max_tokens} if task == "generate" and max_tokens is not None else None,
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
