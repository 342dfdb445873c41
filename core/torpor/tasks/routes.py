"""The names of the tasks, and the route that each of them asks. Light: every deployment imports it."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

__all__ = ["DIALECTS", "ROUTES", "TASKS", "Task", "TaskRoute"]

Task = Literal["chat", "generate", "embed", "rerank", "score", "classify", "transcribe"]
"""What a deployment serves.

    chat        messages in, a message out
    generate    a prompt in, its continuation out; for models without a chat template
    embed       texts in, a vector for each out
    rerank      a query and documents in, their order and scores out
    score       a query and texts in, a score for each out
    classify    texts in, a label for each out
    transcribe  a sound in, its text out
"""

TASKS: tuple[Task, ...] = get_args(Task)


class TaskRoute(NamedTuple):
    """Where a task is asked at an engine, and what its body calls things.

    Attributes:
        path: e.g. `/v1/embeddings`.
        names: what the body calls the inputs: one name, or for `rerank` and `score` that of the query and that of the texts. More
            pairs are sent beside the first one.
        further: further fields of the body with their values.
    """

    path: str
    names: tuple[str, ...] = ()
    further: tuple[tuple[str, object], ...] = ()


ROUTES: dict[Task, TaskRoute] = {
    "chat": TaskRoute("/v1/chat/completions", ("messages",)),
    "generate": TaskRoute("/v1/completions", ("prompt",)),
    "embed": TaskRoute("/v1/embeddings", ("input",)),
    "rerank": TaskRoute("/v1/rerank", ("query", "documents")),
    "score": TaskRoute("/v1/score", ("text_1", "text_2")),
    "classify": TaskRoute("/v1/classify", ("input",)),
    "transcribe": TaskRoute("/v1/audio/transcriptions", ("file",)),
}
"""What most engines have; an engine that differs says so by `EnginePlugin.task_route`."""

DIALECTS: dict[Task, tuple[TaskRoute, ...]] = {
    **{task: (route,) for task, route in ROUTES.items()},
    # One body for both: SGLang reads `query`, `items` and `label_token_ids`, vLLM `text_1` and `text_2`.
    "score": (TaskRoute("/v1/score", ("text_1", "text_2", "query", "items"), (("label_token_ids", (1, 2)),)),),
    "classify": (ROUTES["classify"], TaskRoute("/classify", ("input",))),
}
"""What a client tries that does not know the engine, in this order, until one is there."""
