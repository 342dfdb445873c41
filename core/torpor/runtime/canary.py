"""The canary: questions whose answers are recorded before the sleep and compared after every wake.

A wake can fail without an error: with lost weights, stale CUDA graphs or a corrupt KV pool the engine answers fluent nonsense.
What is asked, and how two answers are compared, depends on what the engine serves: each kind of canary is a module of its own.

    logprobs         log probabilities of a prompt and of an answer's first tokens: `torpor.runtime.logprob_canary`
    text, generate   a greedy answer, where the engine gives no log probabilities: `torpor.runtime.text_canary`, `task_canary`
    embed, rerank    and each other task by its name: `torpor.runtime.task_canary`

Beside it the questions of plugins are asked (`torpor.runtime.plugin_questions`).

This module stays light, because a restore imports it before anything else: it imports a kind when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from torpor.deployment import Deployment

__all__ = ["KINDS", "Canary", "CanaryKind", "canary_problem", "canary_summary", "check_canary", "record_canary"]

_TASK_CANARY = "torpor.runtime.task_canary"
_GENERATING = ("chat", "generate")
_MODULES = {
    "logprobs": "torpor.runtime.logprob_canary",
    "text": "torpor.runtime.text_canary",
    "generate": _TASK_CANARY,
    "embed": _TASK_CANARY,
    "rerank": _TASK_CANARY,
    "score": _TASK_CANARY,
    "classify": _TASK_CANARY,
    "transcribe": _TASK_CANARY,
}
"""The module of each kind; its `KINDS` has who asks and compares, by the kind's name. Imported when it is used."""

_QUESTIONS, _EVENTS = "torpor.runtime.plugin_questions", "torpor.telemetry.events"

KINDS = tuple(_MODULES)
"""Every kind of canary, by its name in a snapshot's manifest."""


class Canary(NamedTuple):
    """A recorded canary, as it stands in a snapshot's manifest.

    Attributes:
        kind: one of `KINDS`.
        answer: what this kind recorded: JSON values. It holds no secret.
        questions: the answers to the questions of plugins, by `PLUGIN: QUESTION`.
    """

    kind: str
    answer: Mapping[str, object]
    questions: Mapping[str, object]


class CanaryKind(Protocol):
    """How one kind of canary asks, and how it compares."""

    def record(self, deployment: Deployment, client: httpx.Client) -> Mapping[str, object]:
        """Ask before the sleep; may ask several times, to learn how much equal questions differ.

        Raises:
            EngineRequestError: the engine answered with an error, or not as this kind expects.
        """

    def check(self, recorded: Mapping[str, object], deployment: Deployment, client: httpx.Client) -> None:
        """Ask after the wake, and compare with what was recorded.

        Raises:
            EngineRequestError: as for `record`.
            CanaryError: the answers differ; the message shows both, and where they begin to differ.
        """

    def problem(self, recorded: Mapping[str, object]) -> str:
        """What is wrong with a recorded answer that was read from a file, as `FIELD is VALUE, not ...`; empty if nothing."""

    def summary(self, recorded: Mapping[str, object]) -> str:
        """The recorded answer in one short line, for people."""


def record_canary(deployment: Deployment, client: httpx.Client) -> Canary:
    """Ask the canary of the deployment and its plugins' questions, before the sleep.

    Raises:
        EngineRequestError: the engine answered with an error, or not as expected.
        ConfigurationError: a plugin gave no question, or no answer.
    """
    name, answer = _recorded(deployment, client)
    questions: dict[str, object] = import_module(_QUESTIONS).record_questions(deployment, client)
    return Canary(kind=name, answer=answer, questions=questions)


def check_canary(recorded: Canary, deployment: Deployment, client: httpx.Client) -> None:
    """Ask the canary again, after a wake, and compare.

    Raises:
        EngineRequestError: the engine answered with an error, or not as expected.
        CanaryError: it answers differently than before its sleep.
    """
    _kind(recorded.kind).check(recorded.answer, deployment, client)
    if recorded.questions:
        import_module(_QUESTIONS).check_questions(recorded.questions, deployment, client)


def canary_problem(recorded: Canary) -> str:
    """What is wrong with a canary that was read from a file, as `FIELD is VALUE, not ...`; empty if nothing."""
    if problem := _kind(recorded.kind).problem(recorded.answer):
        return f"answer.{problem}"
    if recorded.questions:
        problem = import_module(_QUESTIONS).questions_problem(recorded.questions)
        if problem:
            return f"questions.{problem}"
    return ""


def canary_summary(recorded: Canary) -> str:
    """The recorded answer in one short line, for people."""
    return "; ".join((_kind(recorded.kind).summary(recorded.answer), *recorded.questions))


def _recorded(deployment: Deployment, client: httpx.Client) -> tuple[str, Mapping[str, object]]:
    """The kind that fits the deployment, and its answer."""
    plain = "text" if deployment.task == "chat" else deployment.task
    if not (deployment.engine.gives_logprobs and deployment.task in _GENERATING):
        return plain, _kind(plain).record(deployment, client)
    try:
        return "logprobs", _kind("logprobs").record(deployment, client)
    except NotImplementedError as error:
        import_module(_EVENTS).log("warning", "canary_by_text", deployment=deployment.name, detail=str(error))
        return plain, _kind(plain).record(deployment, client)


def _kind(name: str) -> CanaryKind:
    """The kind of this name, one of `KINDS`."""
    return cast("CanaryKind", import_module(_MODULES[name]).KINDS[name])
