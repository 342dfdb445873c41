"""`torpor.engine_plugins.logprobs`: log probabilities by the completions route, and what is refused as an answer."""

from __future__ import annotations

import json
import math

import httpx
import pytest

from torpor import EngineRequestError
from torpor.engine_plugins import GeneratedToken, TokenLogprobs, ask_completion
from torpor.engine_plugins.logprobs import listed_names

ANSWER = {
    "choices": [
        {
            "logprobs": {
                "tokens": ["Hel", "lo", " you", "!"],
                "token_logprobs": [None, -1.5, -0.25, None],
                "top_logprobs": [None, {"lo": -1.5}, {" me": -0.5, " you": -0.25}, {"!": None, "?": -(10**400)}],
            }
        }
    ],
    "usage": {"prompt_tokens": 2},
}


def asking(status: int, answer: object) -> tuple[httpx.Client, list[dict[str, object]]]:
    """A client of an engine that gives one answer, and the bodies that it was sent."""
    bodies = []

    def respond(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(status, json=answer)

    return httpx.Client(base_url="http://engine", transport=httpx.MockTransport(respond)), bodies


def test_one_request_gives_prompt_and_answer() -> None:
    """`echo` puts the prompt's tokens before the answer's; `usage` tells how many. Null is no number."""
    client, bodies = asking(200, ANSWER)
    seen = ask_completion(client, model="m", prompt="Hello", tokens=2, engine="E")
    assert seen.prompt == (-1.5,)
    assert seen.generated[0] == GeneratedToken(" you", (-0.25, -0.5))
    assert seen.generated[1].token == "!"
    assert all(map(math.isnan, seen.generated[1].top))
    assert seen.acceptance is None
    assert bodies == [
        {
            "model": "m",
            "prompt": "Hello",
            "max_tokens": 2,
            "temperature": 0.0,
            "ignore_eos": True,
            "echo": True,
            "logprobs": 5,
        }
    ]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        None,
        {"choices": [{"logprobs": None}], "usage": {"prompt_tokens": 2}},
        {**ANSWER, "usage": {}},
        {**ANSWER, "usage": {"prompt_tokens": "2"}},
    ],
)
def test_an_answer_without_log_probabilities_is_an_error_that_shows_it(answer: object) -> None:
    """Never taken for an answer of no tokens."""
    client, _ = asking(200, answer)
    with pytest.raises(EngineRequestError, match="got 200 from E's /v1/completions, but no log probabilities"):
        ask_completion(client, model="m", prompt="Hello", tokens=2, engine="E")


def test_a_refusal_is_told_apart_from_a_failure() -> None:
    """400: the engine gives no log probabilities as it is configured, and the text is asked instead. Anything else is a failure."""
    client, _ = asking(400, {"error": "no logprobs with this parallelism"})
    with pytest.raises(NotImplementedError, match="no logprobs with this parallelism"):
        ask_completion(client, model="m", prompt="Hello", tokens=2, engine="E")
    client, _ = asking(500, {"error": "CUDA error"})
    with pytest.raises(EngineRequestError, match="got 500 from E's /v1/completions"):
        ask_completion(client, model="m", prompt="Hello", tokens=2, engine="E")


def test_every_listed_name_is_known_with_the_deployments_own_first() -> None:
    """Adapters stand in /v1/models beside the model; a list without the model is an error."""
    answer = httpx.Response(200, json={"data": [{"id": "adapter"}, {"id": "m"}, {"id": "adapter"}]})
    assert listed_names(answer, ("m",)) == ("m", "adapter")
    for wrong in (
        httpx.Response(200, json={"data": [{"id": "other"}]}),
        httpx.Response(500, text="no"),
        httpx.Response(200, json=[]),
    ):
        with pytest.raises(EngineRequestError, match="it has to list 'm'"):
            listed_names(wrong, ("m",))


def test_the_values_are_comparable() -> None:
    """Equal answers are equal values."""
    client, _ = asking(200, {**ANSWER, "usage": {"prompt_tokens": 3}})
    seen = ask_completion(client, model="m", prompt="Hello", tokens=2, engine="E")
    assert seen == TokenLogprobs((-1.5, -0.25), seen.generated)
