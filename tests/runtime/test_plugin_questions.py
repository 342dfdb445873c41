"""`torpor.runtime.plugin_questions`: what plugins ask, how it is learnt, and how it is compared after a wake."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import httpx
import pytest
from typing_extensions import override

from torpor import CanaryAnswer, CanaryError, CanaryQuestion, ConfigurationError, EngineRequestError, Plugin
from torpor.runtime.canary import canary_problem, canary_summary, check_canary, record_canary
from torpor.runtime.plugin_questions import check_questions, questions_problem, record_questions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torpor import Deployment
    from torpor.testing.pytest_plugin import StandInDeployment

ANSWERS: list[object] = []
"""What the engine answers next; the last one for ever."""


@dataclass(frozen=True, kw_only=True)
class Asking(Plugin):
    """A plugin with questions."""

    plugin_name = "asking"
    names: tuple[str, ...] = ("side model",)
    least: float = 1e-3

    @override
    def canary_questions(self, deployment: Deployment) -> Iterable[CanaryQuestion]:
        def ask(client: httpx.Client) -> CanaryAnswer:
            return ANSWERS.pop(0) if len(ANSWERS) > 1 else ANSWERS[0]  # type: ignore[return-value] # tests give others

        return tuple(CanaryQuestion(name, ask, self.least) for name in self.names)


@dataclass(frozen=True, kw_only=True)
class Wrong(Plugin):
    """A plugin whose questions are none."""

    plugin_name = "wrong"

    @override
    def canary_questions(self, deployment: Deployment) -> Iterable[CanaryQuestion]:
        return ("side model",)  # type: ignore[return-value] # that is the case


@pytest.fixture
def client() -> httpx.Client:
    """A client that answers chats."""
    answer = {"choices": [{"message": {"content": "hello"}}], "usage": {"completion_tokens": 1}}
    return httpx.Client(
        base_url="http://engine", transport=httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    )


@pytest.fixture
def with_plugin(standin_deployment: StandInDeployment) -> Callable[[Plugin], Deployment]:
    """Makes a deployment with the plugin beside the stand-in."""
    deployment = standin_deployment()
    return lambda plugin: replace(deployment, plugins=(*deployment.plugins, plugin))


def learnt(*answers: object) -> None:
    """Set the engine's next answers."""
    ANSWERS[:] = answers


def test_a_plugins_question_is_part_of_the_canary(
    client: httpx.Client, with_plugin: Callable[[Plugin], Deployment]
) -> None:
    """It is recorded beside core's own canary, survives a manifest, and a different answer after a wake is the canary's error."""
    learnt(CanaryAnswer(("cat",), (0.5,)))
    deployment = with_plugin(Asking())
    recorded = record_canary(deployment, client)
    recorded = recorded._replace(questions=json.loads(json.dumps(recorded.questions)))
    assert canary_problem(recorded) == ""
    assert canary_summary(recorded).endswith("; asking: side model")
    check_canary(recorded, deployment, client)
    learnt(CanaryAnswer(("dog",), (0.5,)))
    with pytest.raises(CanaryError, match=r"'asking: side model' is answered differently: .*'cat'.*'dog'"):
        check_canary(recorded, deployment, client)


@pytest.mark.parametrize(("seen", "differs"), [(1.29, False), (1.31, True), (float("nan"), True)])
def test_numbers_may_differ_as_much_as_equal_questions_did(
    client: httpx.Client, with_plugin: Callable[[Plugin], Deployment], seen: float, differs: bool
) -> None:
    """Three times what equal questions showed, at least the question's own least difference."""
    learnt(CanaryAnswer(numbers=(1.0,)), CanaryAnswer(numbers=(1.1,)), CanaryAnswer(numbers=(1.0,)))
    deployment = with_plugin(Asking())
    recorded = record_questions(deployment, client)
    learnt(CanaryAnswer(numbers=(seen,)))
    if differs:
        with pytest.raises(CanaryError):
            check_questions(recorded, deployment, client)
    else:
        check_questions(recorded, deployment, client)


@pytest.mark.parametrize(
    "answers",
    [
        (CanaryAnswer(("cat",)), CanaryAnswer(("dog",))),
        (CanaryAnswer(),),
        (CanaryAnswer(numbers=(float("nan"),)),),
        (CanaryAnswer(numbers=(10**400,)),),
        (CanaryAnswer(numbers=(1.0,)), CanaryAnswer(numbers=(1.0, 2.0))),
    ],
)
def test_answers_that_cannot_be_compared_fail_the_start(
    client: httpx.Client, with_plugin: Callable[[Plugin], Deployment], answers: tuple[CanaryAnswer, ...]
) -> None:
    """A question that equal questions answer differently would raise a false alarm at some wake."""
    learnt(*answers)
    with pytest.raises(EngineRequestError, match="'asking: side model' was asked 3 times before the sleep"):
        record_questions(with_plugin(Asking()), client)


def test_what_is_no_question_or_no_answer_names_the_plugin(
    client: httpx.Client, with_plugin: Callable[[Plugin], Deployment]
) -> None:
    """An author's mistake is told as such."""
    with pytest.raises(ConfigurationError, match="Plugin 'wrong': canary_questions gave 'side model'"):
        record_questions(with_plugin(Wrong()), client)
    learnt("cat")
    with pytest.raises(ConfigurationError, match="'asking: side model' gave 'cat'"):
        record_questions(with_plugin(Asking()), client)
    learnt(CanaryAnswer(numbers=(True,)))  # a manifest with it would be taken for damaged
    with pytest.raises(ConfigurationError, match="'asking: side model' gave CanaryAnswer"):
        record_questions(with_plugin(Asking()), client)
    learnt(CanaryAnswer(("cat",)))
    with pytest.raises(ConfigurationError, match="Two canary questions have the name 'asking: x'"):
        record_questions(with_plugin(Asking(names=("x", "x"))), client)


def test_an_answer_that_nobody_asks_for_is_an_error(
    client: httpx.Client, with_plugin: Callable[[Plugin], Deployment]
) -> None:
    """A snapshot whose plugin lost its question is not taken for checked."""
    learnt(CanaryAnswer(("cat",)))
    recorded = record_questions(with_plugin(Asking()), client)
    with pytest.raises(CanaryError, match="no plugin asks that"):
        check_questions(recorded, with_plugin(Asking(names=("other",))), client)


@pytest.mark.parametrize(
    "one",
    [None, [], {}, {"exact": [1], "numbers": [], "tolerance": 0}, {"exact": [], "numbers": [True], "tolerance": 0}],
)
def test_a_damaged_record_is_told(one: object) -> None:
    """A manifest whose answers have other types is damaged."""
    assert questions_problem({"asking: x": one}).startswith("asking: x: ")
