"""The canaries of all tasks but `chat`: a few fixed questions, asked three times before the sleep and once after each wake.

The three answers before the sleep show how much equal questions differ on this engine (batching, other kernels). After a wake
they may differ by `SPREADS` times as much, or by the least tolerance of the task, whichever is more. Text and labels have none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from torpor.errors import CanaryError, EngineRequestError
from torpor.runtime.canary_tolerance import warn_of_wide
from torpor.runtime.recorded_adapters import adapters_problem, adapters_summary, recorded_names
from torpor.tasks.answers import read_answer
from torpor.tasks.comparison import difference
from torpor.tasks.questions import question
from torpor.tasks.sound import generated_sound
from torpor.values.field_types import shown
from torpor.values.finite import is_finite

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from torpor.deployment import Deployment
    from torpor.tasks.routes import Task

__all__ = ["KINDS", "LEAST_TOLERANCE", "QUERY", "SPREADS", "TEXTS", "TaskCanary"]

_ROUNDING = 2.0**-7
LEAST_TOLERANCE: dict[Task, float] = {
    "embed": 2.0**-12,
    "rerank": _ROUNDING,
    "score": _ROUNDING,
    "classify": _ROUNDING,
}
"""By `torpor.tasks.comparison`: for vectors 1 minus the cosine and length, for the others the relative difference of a score.

SGLang gives scores in bfloat16: one step of that is up to 2**-7 of a score. The length of a vector of 64 such numbers, each rounded
by at most 2**-9, changes by about 2**-12, that of a longer one by less. Seen on a CPU in ten asks: no difference with SGLang, and
1e-4 of a score with vLLM, whose batches vary. docs/lab-notes.md has what these tolerances notice.
"""

SPREADS = 4.0
WIDE = 0.2
"""A tolerance of which the log warns: a fifth of the largest score, or of a vector's angle or length."""
_ASKED = 3
_OK = 200
_MOST_TOKENS = 16
_SOUND_S = 2.0
QUERY = "Which animal sleeps in winter and wakes in spring?"
TEXTS = (
    "The bear sleeps through the winter in its den.",
    "Paris is the capital of France.",
    "A river, a lake and the sea are connected; their water rises, falls, freezes and flows again. " * 4,
    "42",
)
_PROMPT = "January, February, March,"


class TaskCanary:
    """One task's canary. It records `answer` (of `read_answer`) and `tolerance`, and under `adapters` the same of each adapter.

    Args:
        task: any but `chat`.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def record(self, deployment: Deployment, client: httpx.Client) -> Mapping[str, object]:
        """Ask each served name three times, and learn how much the answers differ."""
        first, *others = deployment.engine.served_names(deployment, client)
        adapters = {name: self._learnt(deployment, client, name) for name in others}
        return {**self._learnt(deployment, client, first), **({"adapters": adapters} if adapters else {})}

    def _learnt(self, deployment: Deployment, client: httpx.Client, model: str) -> Mapping[str, object]:
        answer, *others = (self._asked(deployment, client, model) for _ in range(_ASKED))
        apart = [difference(answer, other) for other in others]
        spread = max(one.size for one in apart)
        if math.isinf(spread):
            where = next(one.where for one in apart if math.isinf(one.size))
            raise EngineRequestError(
                f"The engine answered the same question of the task {self._task!r} in two ways before its sleep ({where}), so no "
                "wake could be checked. Look for an option that makes it sample, or choose canary_mismatch='warn' and a model "
                "that answers greedily."
            )
        tolerance = max(LEAST_TOLERANCE.get(self._task, 0.0), SPREADS * spread)
        question_of = self._task if model == deployment.model.served_name else f"{self._task} by {model}"
        warn_of_wide(tolerance, WIDE, deployment=deployment.name, question=question_of)
        return {"answer": dict(answer), "tolerance": tolerance}

    def check(self, recorded: Mapping[str, object], deployment: Deployment, client: httpx.Client) -> None:
        """Ask each recorded name once, and demand an answer within the tolerance."""
        for name, one in recorded_names(recorded, deployment).items():
            self._compare(name, one, self._asked(deployment, client, name))

    def _compare(self, name: str, recorded: Mapping[str, object], seen: Mapping[str, object]) -> None:
        apart = difference(cast("Mapping[str, object]", recorded["answer"]), seen)
        if apart.size > cast("float", recorded["tolerance"]):
            raise CanaryError(
                f"After the wake {name!r} answers the task {self._task!r} differently: {apart.where}; the tolerance is "
                f"{recorded['tolerance']:.3g}, learnt before the sleep. The memory did not come back as it was; check that the "
                "engine keeps its weights while it sleeps, or loads them again, and that it wakes all that it put to sleep. "
                "canary_mismatch='warn' would let it serve all the same."
            )

    def problem(self, recorded: Mapping[str, object]) -> str:
        """It has an answer of this task, and a tolerance; and so has each adapter."""
        return self._problem(recorded) or adapters_problem(recorded, self._problem)

    def _problem(self, recorded: Mapping[str, object]) -> str:
        tolerance = recorded.get("tolerance")
        if not is_finite(tolerance) or tolerance < 0:
            return f"tolerance is {shown(tolerance)}, not a number from 0 on"
        answer = recorded.get("answer")
        wanted = _FIELDS[self._task]
        if not isinstance(answer, dict) or set(answer) != set(wanted):
            return f"answer is {shown(answer)}, not an object with {' and '.join(wanted)}"
        for name, fits in wanted.items():
            if not fits(answer[name]):
                return f"answer.{name} is {shown(answer[name])}, not what the task {self._task!r} answers"
        return ""

    def summary(self, recorded: Mapping[str, object]) -> str:
        """The beginning of the answer."""
        return self._summary(recorded) + adapters_summary(recorded)

    def _summary(self, recorded: Mapping[str, object]) -> str:
        answer = cast("Mapping[str, object]", recorded["answer"])
        match self._task:
            case "embed":
                vectors = cast("list[list[float]]", answer["vectors"])
                return f"{len(vectors)} vectors of {len(vectors[0])} numbers, tolerance {recorded['tolerance']:.2g}"
            case "rerank":
                return f"order {answer['order']}, tolerance {recorded['tolerance']:.2g}"
            case "classify":
                return f"labels {', '.join(cast('list[str]', answer['labels']))}, tolerance {recorded['tolerance']:.2g}"
            case "score":
                return f"{len(cast('list[object]', answer['scores']))} scores, tolerance {recorded['tolerance']:.2g}"
        return f"{answer['text']!r:.80}"

    def _asked(self, deployment: Deployment, client: httpx.Client, model: str) -> Mapping[str, object]:
        """One name's answer to this task's questions.

        Raises:
            EngineRequestError: the engine answered with an error, or not as this task does.
        """
        request = question(
            self._task,
            deployment.engine.task_route(self._task),
            model=model,
            texts=(_PROMPT,) if self._task == "generate" else TEXTS,
            query=QUERY,
            sound=generated_sound(_SOUND_S) if self._task == "transcribe" else b"",
            **({"max_tokens": _MOST_TOKENS, "temperature": 0} if self._task == "generate" else {}),
            **({"temperature": 0} if self._task == "transcribe" else {}),
        )
        response = client.post(request.path, content=request.content, headers={"content-type": request.content_type})
        if response.status_code != _OK:
            raise EngineRequestError(
                f"The canary request of the task {self._task!r} to {model!r} got {response.status_code} from "
                f"{response.request.url}: {response.text[:500]!r}. Does the model serve this task?"
            )
        try:
            return read_answer(self._task, response.json())
        except (ValueError, RecursionError) as error:
            raise EngineRequestError(
                f"The canary request of the task {self._task!r} got 200 from {response.request.url}, but no answer of that task "
                f"({error}): {response.text[:500]!r}."
            ) from error


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_finite, value))


def _are_lists(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_are_numbers(item) for item in value)


def _are_scores(value: object) -> bool:
    return _are_numbers(value) or _are_lists(value)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_order(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(type(item) is int for item in value)
        and sorted(value) == list(range(len(value)))
    )


_FIELDS = {
    "generate": {"text": _is_text},
    "embed": {"vectors": _are_lists},
    "rerank": {"order": _is_order, "scores": _are_numbers},
    "score": {"scores": _are_scores},
    "classify": {"labels": _are_texts, "scores": _are_lists},
    "transcribe": {"text": _is_text},
}
"""What each task records, and what it has to be."""

KINDS = {task: TaskCanary(cast("Task", task)) for task in _FIELDS}
