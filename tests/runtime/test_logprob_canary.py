"""`torpor.runtime.logprob_canary`: what it records, what it takes for a difference, and what it reads from a manifest."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import httpx
import pytest
from typing_extensions import override

from torpor import Adapter, CanaryError, EngineRequestError, Model
from torpor.engine_plugins import GeneratedToken, TokenLogprobs
from torpor.runtime.canary import canary_problem, canary_summary, check_canary, record_canary
from torpor.runtime.logprob_canary import ASKS, DRAFT_TOKENS, TOKENS
from torpor.testing import StandIn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torpor import Deployment
    from torpor.testing.pytest_plugin import StandInDeployment

ANSWER = TokenLogprobs(
    prompt=(-1.0, -2.0, -3.0),
    generated=(GeneratedToken("a", (-0.5, -1.5)), GeneratedToken("b", (-0.25, -2.5))),
)


@dataclass(frozen=True, kw_only=True)
class Scripted(StandIn):
    """An engine whose answers the test gives, one after the other; the last one for ever."""

    plugin_name = "scripted"
    gives_logprobs: ClassVar[bool] = True
    names: tuple[str, ...] = ("m",)
    answers: tuple[TokenLogprobs | Exception, ...] = (ANSWER,)
    log: list[str] = field(default_factory=list, hash=False, compare=False)

    @override
    def __post_init__(self) -> None:
        """Check nothing: `log` is no option."""

    @override
    def served_names(self, deployment: Deployment, client: httpx.Client) -> tuple[str, ...]:
        return self.names

    @override
    def ask_logprobs(
        self, deployment: Deployment, client: httpx.Client, *, model: str, prompt: str, tokens: int
    ) -> TokenLogprobs:
        asked = sum(line.startswith("ask") for line in self.log)
        self.log.append(f"ask {model} {tokens}")
        answer = self.answers[min(asked, len(self.answers) - 1)]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @override
    def forget_prompts(self, client: httpx.Client) -> None:
        self.log.append("forget")


@pytest.fixture
def client() -> httpx.Client:
    """A client that answers chats, for the canary by text."""
    answer = {"choices": [{"message": {"content": "hello"}}], "usage": {"completion_tokens": 1}}
    return httpx.Client(
        base_url="http://engine", transport=httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    )


@pytest.fixture
def served(standin_deployment: StandInDeployment) -> Callable[[Scripted], Deployment]:
    """Makes a deployment of a scripted engine."""
    return lambda engine: replace(standin_deployment(), plugins=(engine,))


def changed(answer: TokenLogprobs, by: float, place: str) -> TokenLogprobs:
    """The answer with one number changed."""
    if place == "prompt":
        return answer._replace(prompt=(*answer.prompt[:-1], answer.prompt[-1] + by))
    first, second = answer.generated
    return answer._replace(generated=(first, second._replace(top=(second.top[0], second.top[1] + by))))


def test_each_name_is_asked_several_times_with_an_empty_prefix_cache(
    client: httpx.Client, served: Callable[[Scripted], Deployment]
) -> None:
    """Before the sleep: every served name, `ASKS` times, each after the cache was emptied. After the wake: once each."""
    engine = Scripted(names=("m", "adapter"))
    deployment = served(engine)
    recorded = record_canary(deployment, client)
    assert recorded.kind == "logprobs"
    assert engine.log == [line for name in ("m", "adapter") for line in ("forget", f"ask {name} {TOKENS}") * ASKS]
    engine.log.clear()
    check_canary(recorded, deployment, client)
    assert engine.log == [f"ask m {TOKENS}", f"ask adapter {TOKENS}"]


@pytest.mark.parametrize("place", ["prompt", "answer"])
@pytest.mark.parametrize("case", [(0.0, 2e-5, True), (0.0, 5e-6, False), (0.01, 0.029, False), (0.01, 0.032, True)])
def test_a_difference_is_what_equal_questions_never_showed(
    client: httpx.Client, served: Callable[[Scripted], Deployment], place: str, case: tuple[float, float, bool]
) -> None:
    """The tolerance is three times the spread before the sleep, and at least 1e-5."""
    spread, by, differs = case
    engine = Scripted(answers=(ANSWER, changed(ANSWER, spread, "prompt")))
    recorded = record_canary(served(engine), client)
    woken = served(Scripted(answers=(changed(ANSWER, by, place),)))
    if not differs:
        check_canary(recorded, woken, client)
        return
    with pytest.raises(CanaryError, match="other log probabilities than before its sleep") as caught:
        check_canary(recorded, woken, client)
    assert ("token 4 of the prompt" if place == "prompt" else "choice 2 for token 2 of the answer") in str(caught.value)


@pytest.mark.parametrize(
    "seen",
    [
        ANSWER._replace(prompt=(-1.0, math.nan, -3.0)),
        ANSWER._replace(prompt=(-1.0, -math.inf, -3.0)),
        ANSWER._replace(prompt=(-1.0, -2.0)),
        ANSWER._replace(generated=ANSWER.generated[:1]),
    ],
)
def test_no_number_and_no_token_are_differences(
    client: httpx.Client, served: Callable[[Scripted], Deployment], seen: TokenLogprobs
) -> None:
    """What is no number, infinite or missing after the wake is never taken for equal."""
    recorded = record_canary(served(Scripted()), client)
    with pytest.raises(CanaryError):
        check_canary(recorded, served(Scripted(answers=(seen,))), client)


def test_two_equally_likely_tokens_may_change_places(
    client: httpx.Client, served: Callable[[Scripted], Deployment]
) -> None:
    """Near-ties resolve differently without a damage; what follows another token is not compared."""
    first, second = ANSWER.generated
    other = ANSWER._replace(generated=(first._replace(token="x"), second._replace(token="y", top=(-9.0, -9.5))))
    check_canary(record_canary(served(Scripted()), client), served(Scripted(answers=(other,))), client)


def test_a_draft_model_that_guesses_worse_is_an_error(
    client: httpx.Client, served: Callable[[Scripted], Deployment]
) -> None:
    """With a draft model the answer is longer, and its acceptance may fall to 70 % of the recorded one."""
    with_draft = ANSWER._replace(acceptance=3.0)
    engine = Scripted(answers=(with_draft,))
    recorded = record_canary(served(engine), client)
    assert engine.log[-1] == f"ask m {DRAFT_TOKENS}"
    check_canary(recorded, served(Scripted(answers=(ANSWER._replace(acceptance=2.2),))), client)
    with pytest.raises(CanaryError, match=r"guesses worse: 1\.00 tokens for each step, 3\.00 before"):
        check_canary(recorded, served(Scripted(answers=(ANSWER._replace(acceptance=1.0),))), client)
    with pytest.raises(CanaryError, match="without its draft model"):
        check_canary(recorded, served(Scripted()), client)


def test_a_model_that_is_broken_before_its_sleep_is_an_error(
    client: httpx.Client, served: Callable[[Scripted], Deployment]
) -> None:
    """What is no number before the sleep could not be compared after it."""
    broken = ANSWER._replace(prompt=(math.nan,))
    with pytest.raises(EngineRequestError, match="broken before its sleep"):
        record_canary(served(Scripted(answers=(broken,))), client)


def test_an_engine_that_refuses_log_probabilities_is_asked_for_text(
    client: httpx.Client, served: Callable[[Scripted], Deployment], capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration without log probabilities still has a canary; the log says so."""
    recorded = record_canary(served(Scripted(answers=(NotImplementedError("not with this parallelism"),))), client)
    assert recorded.kind == "text"
    assert "canary_by_text" in capsys.readouterr().out


def test_an_engine_that_refuses_log_probabilities_after_a_wake_answers_differently(
    client: httpx.Client, served: Callable[[Scripted], Deployment]
) -> None:
    """It gave them before its sleep, so this is a difference like others: `canary_mismatch='warn'` holds for it, too."""
    recorded = record_canary(served(Scripted()), client)
    refusing = served(Scripted(answers=(NotImplementedError("no adapter m"),)))
    with pytest.raises(
        CanaryError, match="'m' gives no log probabilities, which it gave before its sleep: no adapter m"
    ):
        check_canary(recorded, refusing, client)


def with_adapters(deployment: Deployment, **changes: object) -> Deployment:
    """The deployment with the adapters `one` and `two`."""
    adapters = {name: Adapter(path=f"/{name}") for name in ("one", "two")}
    model = Model(path="/m", served_name="m", adapters=adapters)
    return replace(deployment, model=model, **changes)  # type: ignore[arg-type]


def of_adapters(*answers: TokenLogprobs | Exception) -> Scripted:
    """An engine with two adapters; the same answer to each question of a name before the sleep, then further answers."""
    first, others = answers[:3], answers[3:]
    return Scripted(names=("m", "one", "two"), answers=(*(answer for answer in first for _ in range(ASKS)), *others))


ONE, TWO = changed(ANSWER, 0.2, "prompt"), changed(ANSWER, 0.4, "prompt")


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ((ANSWER, ANSWER, TWO), "The adapter 'one' answers like 'm'"),
        ((ANSWER, ONE, ONE), "The adapter 'two' answers like 'one'"),
    ],
)
def test_an_adapter_without_effect_is_an_error_before_the_sleep(
    client: httpx.Client,
    served: Callable[[Scripted], Deployment],
    capsys: pytest.CaptureFixture[str],
    answers: tuple[TokenLogprobs, ...],
    told: str,
) -> None:
    """The engine may answer an adapter's name by the model. With `canary_mismatch='warn'` it is only told."""
    with pytest.raises(EngineRequestError, match=told):
        record_canary(with_adapters(served(of_adapters(*answers))), client)
    record_canary(with_adapters(served(of_adapters(*answers)), canary_mismatch="warn"), client)
    assert "adapter_without_effect" in capsys.readouterr().out
    record_canary(with_adapters(served(of_adapters(ANSWER, ONE, TWO))), client)


@pytest.mark.parametrize(
    ("after", "error", "told"),
    [
        (
            (ANSWER, TWO),
            CanaryError,
            r"'one' has other log probabilities .*It answers as 'two' did: another adapter, or none",
        ),
        ((ANSWER, ANSWER), CanaryError, r"'one' has other log probabilities .*It answers as 'm' did"),
        (
            (ANSWER, ONE, changed(TWO, 0.1, "answer")),
            CanaryError,
            r"'two' has other .* is allowed\. The memory",
        ),
        (
            (ANSWER, EngineRequestError("The canary request got 500: KeyError")),
            EngineRequestError,
            r"After the wake 'one' gives no answer\. .*KeyError",
        ),
    ],
)
def test_each_adapter_has_to_come_back_as_itself(
    client: httpx.Client,
    served: Callable[[Scripted], Deployment],
    after: tuple[TokenLogprobs | Exception, ...],
    error: type[Exception],
    told: str,
) -> None:
    """The message says whose answer it is now, where it is one of the others."""
    deployment = with_adapters(served(of_adapters(ANSWER, ONE, TWO, *after)))
    recorded = record_canary(deployment, client)
    with pytest.raises(error, match=told):
        check_canary(recorded, deployment, client)


@pytest.mark.parametrize(("spread", "warns"), [(0.03, False), (0.04, True)])
def test_a_wide_tolerance_is_told(
    client: httpx.Client,
    served: Callable[[Scripted], Deployment],
    capsys: pytest.CaptureFixture[str],
    spread: float,
    warns: bool,
) -> None:
    """From 0.1 on the canary misses much; the operator hears of it before the sleep."""
    record_canary(served(Scripted(answers=(ANSWER, changed(ANSWER, spread, "prompt")))), client)
    assert ("canary_tolerance_wide" in capsys.readouterr().out) == warns


def test_what_is_recorded_survives_a_manifest(client: httpx.Client, served: Callable[[Scripted], Deployment]) -> None:
    """The record is JSON; what is read from a file means the same, and every damage of a field is told."""
    recorded = record_canary(served(Scripted(answers=(ANSWER._replace(acceptance=2.0),))), client)
    read = recorded._replace(answer=json.loads(json.dumps(recorded.answer)))
    assert read == recorded
    assert canary_problem(read) == ""
    assert canary_summary(read) == "m: log probabilities of 3 + 2 tokens, tolerance 1e-05, acceptance 2.00"
    check_canary(read, served(Scripted(answers=(ANSWER._replace(acceptance=2.0),))), client)
    model = read.answer["models"][0]  # type: ignore[index]
    values: tuple[object, ...] = (None, "x", [math.nan], [10**400], {}, True)
    for name in model:
        for value in values:
            if (name, value) not in (("model", "x"), ("acceptance", None)):
                assert canary_problem(read._replace(answer={**read.answer, "models": [{**model, name: value}]})), (
                    name,
                    value,
                )
    lists: tuple[object, ...] = ([], None, {}, [None])
    for models in lists:
        assert canary_problem(read._replace(answer={**read.answer, "models": models}))
