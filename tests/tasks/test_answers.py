"""Reading the answers of both engines, and refusing what is none."""

from __future__ import annotations

import pytest

from torpor.tasks.answers import read_answer
from torpor.tasks.routes import TASKS, Task

READ: list[tuple[Task, object, dict[str, object]]] = [
    ("generate", {"choices": [{"text": "April"}]}, {"text": "April"}),
    ("transcribe", {"text": "hello", "usage": None}, {"text": "hello"}),
    (
        "embed",
        {"data": [{"index": 1, "embedding": [2, 3.0]}, {"index": 0, "embedding": [0.5, 1.0]}]},
        {"vectors": [[0.5, 1.0], [2.0, 3.0]]},
    ),
    (
        "rerank",
        [{"score": 0.9, "document": "b", "index": 1}, {"score": -0.2, "document": "a", "index": 0}],
        {"order": [1, 0], "scores": [-0.2, 0.9]},
    ),
    (
        "rerank",
        {"results": [{"index": 0, "relevance_score": 0.1}, {"index": 1, "relevance_score": 0.7}]},
        {"order": [1, 0], "scores": [0.1, 0.7]},
    ),
    ("score", {"scores": [[0.1, 0.2], [0.3, 0.4]]}, {"scores": [[0.1, 0.2], [0.3, 0.4]]}),
    ("score", {"data": [{"index": 0, "score": 0.5}]}, {"scores": [0.5]}),
    (
        "classify",
        {"data": [{"index": 0, "label": "calm", "probs": [0.7, 0.3]}]},
        {"labels": ["calm"], "scores": [[0.7, 0.3]]},
    ),
    (
        "classify",
        {"data": [{"index": 0, "label": None, "probs": [0.3, 0.7]}]},
        {"labels": ["1"], "scores": [[0.3, 0.7]]},
    ),
]


@pytest.mark.parametrize(("task", "payload", "read"), READ)
def test_the_answers_of_both_engines_are_read(task: Task, payload: object, read: dict[str, object]) -> None:
    """Items are put in the order of the inputs."""
    assert read_answer(task, payload) == read


@pytest.mark.fault("an engine answers a task with something else", area="answers", outcome="refused")
@pytest.mark.parametrize("task", [task for task in TASKS if task != "chat"])
@pytest.mark.parametrize(
    "payload",
    [
        None,
        [[]],
        {},
        "text",
        7,
        {"error": {"message": "no"}},
        {"data": []},
        {"data": [{"index": 0}]},
        {"data": [{"index": 1, "embedding": [1.0], "score": 1.0, "label": "a", "probs": [1.0]}]},
        {"data": [{"index": 0, "embedding": [float("nan")], "score": float("inf"), "label": 7, "probs": ["x"]}]},
        {"data": [{"index": 0, "embedding": [10**400], "score": 10**400, "label": "a", "probs": [-(10**400)]}]},
        {"scores": []},
        {"scores": [[0.1], "x"]},
        {"results": [{"index": 0, "relevance_score": 0.1}, {"index": 0, "relevance_score": 0.2}]},
        {"choices": [{"text": 7}]},
        {"text": None},
    ],
    ids=lambda payload: ascii(payload)[:40],
)
def test_what_is_no_answer_is_an_error(task: Task, payload: object) -> None:
    """It is a ValueError, whatever is wrong with it."""
    with pytest.raises(ValueError, match=r"."):
        read_answer(task, payload)
