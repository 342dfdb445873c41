"""What an engine's answer says, for each task but `chat`: plain JSON values, so that a manifest can hold them.

    generate, transcribe    {"text": "..."}
    embed                   {"vectors": [[...], ...]}, in the order of the inputs
    rerank                  {"order": [...], "scores": [...]}: numbers of the documents from the best on, and their scores by number
    score                   {"scores": [...]}, or a list of scores for each text
    classify                {"labels": ["...", ...], "scores": [[...], ...]}

The engines' own shapes are read from their code: SGLang 0.5.6.post2 to 0.5.23 `entrypoints/openai/protocol.py`, vLLM 0.32.0 and
0.33.0 `entrypoints/pooling/*/protocol.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torpor.values.finite import is_finite

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.tasks.routes import Task

__all__ = ["read_answer"]


def read_answer(task: Task, payload: object) -> Mapping[str, object]:
    """Read an answer.

    Args:
        task: any but `chat`.
        payload: the decoded JSON.

    Raises:
        ValueError: it is no answer of that task; the message says what is missing.
    """
    try:
        return _read(task, payload)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _read(task: Task, payload: object) -> Mapping[str, object]:
    if task == "rerank":
        return _ranking(payload)
    answer = cast("Mapping[str, object]", payload)
    match task:
        case "generate":
            return {"text": _text(_first(answer["choices"])["text"])}
        case "transcribe":
            return {"text": _text(answer["text"])}
        case "embed":
            return {"vectors": [_numbers(item["embedding"]) for item in _in_order(answer["data"])]}
        case "classify":
            items = _in_order(answer["data"])
            return {"labels": [_label(item) for item in items], "scores": [_numbers(item["probs"]) for item in items]}
        case "score":
            scores = answer.get("scores")  # SGLang's shape; vLLM's has `data`
            if scores is None:
                scores = [item["score"] for item in _in_order(answer["data"])]
            return {"scores": _nested(scores)}
    raise ValueError(f"a task {task!r} has no such answers")


def _ranking(payload: object) -> Mapping[str, object]:
    """SGLang sends a list, vLLM an object that holds one."""
    items = (
        payload if isinstance(payload, list) else cast("Mapping[str, list[Mapping[str, object]]]", payload)["results"]
    )
    found = {_whole(item["index"]): _number(item.get("relevance_score", item.get("score"))) for item in items}
    if sorted(found) != list(range(len(items))):
        raise ValueError(f"it ranks the documents {sorted(found)}, not each of {len(items)} once")
    order = sorted(found, key=lambda index: (-found[index], index))
    return {"order": order, "scores": [found[index] for index in range(len(found))]}


def _in_order(data: object) -> list[Mapping[str, object]]:
    """The items by their `index`, each number once."""
    items = sorted(cast("list[Mapping[str, object]]", data), key=lambda item: _whole(item["index"]))
    if not items or [item["index"] for item in items] != list(range(len(items))):
        raise ValueError(f"its items have the numbers {[item['index'] for item in items]}")
    return items


def _first(choices: object) -> Mapping[str, object]:
    return cast("list[Mapping[str, object]]", choices)[0]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"its text is {value!r:.60}")
    return value


def _label(item: Mapping[str, object]) -> str:
    """A model without names for its classes has the number of the likeliest one."""
    label = item.get("label")
    if label is not None:
        return _text(label)
    scores = _numbers(item["probs"])
    return str(scores.index(max(scores)))


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"a number of an item is {value!r:.60}")
    return value


def _number(value: object) -> float:
    if not is_finite(value):
        raise TypeError(f"a score or a part of a vector is {value!r:.60}")
    return float(value)


def _numbers(value: object) -> list[float]:
    if not isinstance(value, list) or not value:
        raise TypeError(f"a vector or a list of scores is {value!r:.60}")
    return [_number(item) for item in value]


def _nested(value: object) -> list[float] | list[list[float]]:
    """Scores: one for each text, or a list for each."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return [_numbers(item) for item in value]
    return _numbers(value)
