"""The request that a question becomes, for each task but `chat`, whose requests are richer."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.tasks.routes import Task, TaskRoute

__all__ = ["TaskRequest", "question"]

_JSON = "application/json"
_PAIRS = ("rerank", "score")


class TaskRequest(NamedTuple):
    """A request, ready to be sent by POST.

    Attributes:
        path: the engine's route.
        content: the body.
        content_type: of the body.
    """

    path: str
    content: bytes
    content_type: str


def question(
    task: Task,
    route: TaskRoute,
    *,
    model: str,
    texts: Sequence[str] = (),
    query: str = "",
    sound: bytes = b"",
    **more: object,
) -> TaskRequest:
    """The request of a task.

    Args:
        task: any but `chat`.
        route: the engine's, for that task.
        model: served model name.
        texts: prompts (`generate`), inputs (`embed`, `classify`) or documents (`rerank`, `score`).
        query: what `rerank` and `score` compare the texts with.
        sound: a sound file, for `transcribe`.
        more: further fields, e.g. `max_tokens`.
    """
    fields = {"model": model, **dict(route.further), **more}
    if task == "transcribe":
        return _form(route, fields, sound)
    if task in _PAIRS:
        fields |= dict.fromkeys(route.names[::2], query) | {name: list(texts) for name in route.names[1::2]}
    else:
        fields[route.names[0]] = texts[0] if task == "generate" else list(texts)
    return TaskRequest(route.path, json.dumps(fields).encode(), _JSON)


def _form(route: TaskRoute, fields: dict[str, object], sound: bytes) -> TaskRequest:
    """A form with a file (RFC 7578)."""
    boundary = f"torpor-{secrets.token_hex(16)}"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{route.names[0]}"; filename="sound.wav"\r\n'
    parts += [head.encode(), b"Content-Type: audio/wav\r\n\r\n", sound, f"\r\n--{boundary}--\r\n".encode()]
    return TaskRequest(route.path, b"".join(parts), f"multipart/form-data; boundary={boundary}")
