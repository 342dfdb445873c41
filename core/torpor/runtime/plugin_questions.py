"""The canary questions of plugins (`Plugin.canary_questions`): asked several times before the sleep, and once after a wake."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from torpor.deployment import plugin_name
from torpor.errors import CanaryError, ConfigurationError, EngineRequestError
from torpor.values.canary_answers import CanaryAnswer, CanaryQuestion
from torpor.values.finite import is_finite

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import httpx

    from torpor.deployment import Deployment

__all__ = ["check_questions", "questions_problem", "record_questions"]

ASKS = 3
"""How often each question is asked before the sleep."""
SPREADS = 3.0
"""How many times as far apart as equal questions before the sleep the numbers have to be, to be a difference."""


def record_questions(deployment: Deployment, client: httpx.Client) -> dict[str, object]:
    """Ask every plugin's questions before the sleep.

    Returns:
        The answers as JSON, by `PLUGIN: QUESTION`.

    Raises:
        ConfigurationError: what a plugin gave is no question, or no answer.
        EngineRequestError: equal questions got different texts.
    """
    return {name: _learnt(name, question, client) for name, question in _questions(deployment)}


def check_questions(recorded: Mapping[str, object], deployment: Deployment, client: httpx.Client) -> None:
    """Ask them after a wake.

    Raises:
        CanaryError: an answer differs, or nobody asks a question that was recorded.
    """
    asked = dict(_questions(deployment)) if recorded else {}
    for name, then in recorded.items():
        if name not in asked:
            raise CanaryError(
                f"The snapshot has an answer to {name!r}, and no plugin asks that now. Start with the plugins, the options and the "
                "HF_HUB_CACHE of the capture (an engine may read there what its model takes), or take a new snapshot."
            )
        before = cast("Mapping[str, object]", then)
        _compare(name, before, _answer(name, asked[name], client))


def questions_problem(recorded: Mapping[str, object]) -> str:
    """What is wrong with recorded answers that were read from a file; empty if nothing."""
    for name, one in recorded.items():
        fields = one if isinstance(one, dict) else {}
        exact, numbers, tolerance = fields.get("exact"), fields.get("numbers"), fields.get("tolerance")
        if not isinstance(exact, list) or not all(isinstance(text, str) for text in exact):
            return f"{name}: exact is no list of texts"
        if not isinstance(numbers, list) or not all(map(is_finite, (*numbers, tolerance))):
            return f"{name}: numbers and tolerance are not finite numbers"
    return ""


def _questions(deployment: Deployment) -> Iterator[tuple[str, CanaryQuestion]]:
    seen = set()
    for plugin in deployment.plugins:
        ask = getattr(plugin, "canary_questions", None)
        for question in ask(deployment) if callable(ask) else ():
            if not isinstance(question, CanaryQuestion) or not question.name or not callable(question.ask):
                raise ConfigurationError(
                    f"Plugin {plugin_name(plugin)!r}: canary_questions gave {question!r}; it gives torpor.CanaryQuestion values "
                    "with a name and something to call."
                )
            name = f"{plugin_name(plugin)}: {question.name}"
            if name in seen:
                raise ConfigurationError(f"Two canary questions have the name {name!r}; give each a name of its own.")
            seen.add(name)
            yield name, question


def _answer(name: str, question: CanaryQuestion, client: httpx.Client) -> CanaryAnswer:
    answer: object = question.ask(client)
    if (
        not isinstance(answer, CanaryAnswer)
        or not all(isinstance(text, str) for text in answer.exact)
        or not all(isinstance(number, int | float) and not isinstance(number, bool) for number in answer.numbers)
    ):
        raise ConfigurationError(
            f"The canary question {name!r} gave {answer!r}; it gives a torpor.CanaryAnswer of texts and numbers."
        )
    return answer


def _learnt(name: str, question: CanaryQuestion, client: httpx.Client) -> dict[str, object]:
    answers = [_answer(name, question, client) for _ in range(ASKS)]
    first = answers[0]
    spread = max(_apart(first, other) for other in answers[1:])
    if not is_finite(spread) or not all(map(is_finite, first.numbers)) or not (first.exact or first.numbers):
        raise EngineRequestError(
            f"The canary question {name!r} was asked {ASKS} times before the sleep, and its answers cannot be compared: "
            f"{'; '.join(map(str, answers))}. Its texts have to be equal each time, and its numbers finite and as many."
        )
    tolerance = max(question.least_difference, SPREADS * spread)
    return {"exact": list(first.exact), "numbers": list(map(float, first.numbers)), "tolerance": tolerance}


def _apart(one: CanaryAnswer, other: CanaryAnswer) -> float:
    if one.exact != other.exact or len(one.numbers) != len(other.numbers):
        return math.inf
    sizes = [abs(old - new) for old, new in zip(one.numbers, other.numbers, strict=True)]
    return max((size if size == size else math.inf for size in sizes), default=0.0)  # noqa: PLR0124 - not a number


def _compare(name: str, recorded: Mapping[str, object], seen: CanaryAnswer) -> None:
    then = CanaryAnswer(
        tuple(cast("list[str]", recorded["exact"])), tuple(map(float, cast("list[float]", recorded["numbers"])))
    )
    tolerance = float(cast("float", recorded["tolerance"]))
    if not _apart(then, seen) <= tolerance:
        raise CanaryError(
            f"After the wake the canary question {name!r} is answered differently: recorded {then}, now {seen}; numbers may "
            f"differ by {tolerance:.2g}. canary_mismatch='warn' would let it serve all the same."
        )
