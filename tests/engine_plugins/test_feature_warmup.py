"""The warm-up by feature: what it asks, and what it does with an engine that refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import pytest

from torpor import ConfigurationError, Deployment, Model
from torpor.engine_plugins.feature_warmup import feature_requests, warm_up_features
from torpor.engine_plugins.features import FEATURES
from torpor.testing import StandIn
from torpor_sglang import SGLang
from torpor_vllm import VLLM

REGEX = {"regex": "[a-z]{3,8}"}
CHAT = Deployment(name="d", model=Model(path="/m", served_name="m"), plugins=(StandIn(),))


def test_each_feature_is_asked_and_those_with_a_grammar_or_a_kernel_in_batches_of_two() -> None:
    """One request's fields are those of its feature, at the task's own route."""
    requests = list(feature_requests(CHAT, FEATURES, regex=REGEX))
    assert tuple(dict.fromkeys(request.feature for request in requests)) == FEATURES
    assert {request.path for request in requests} == {"/v1/chat/completions"}
    assert all("messages" in request.body and request.body["model"] == "m" for request in requests)
    several = {request.feature for request in requests if request.body.get("n") == 2}
    assert several == {"json_schema", "logprobs", "n", "seed", "repetition"}
    (regex,) = (request for request in requests if request.feature == "regex")
    assert regex.body["regex"] == REGEX["regex"]


def test_a_task_without_a_prompt_is_asked_nothing_and_completions_in_their_own_words() -> None:
    """Numbers of log probabilities in place of a switch; no tools."""
    assert list(feature_requests(replace(CHAT, task="embed"), FEATURES, regex=REGEX)) == []
    asked = list(feature_requests(replace(CHAT, task="generate"), FEATURES, regex={}))
    assert {request.path for request in asked} == {"/v1/completions"}
    assert {request.feature for request in asked} == set(FEATURES) - {"tools", "regex"}
    assert all(request.body["prompt"] for request in asked)
    assert {request.body["logprobs"] for request in asked if request.feature == "logprobs"} == {5}


def test_a_feature_that_the_engine_refuses_is_named_and_the_others_are_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The log has the engine's answer; a refused feature is asked once."""
    seen: list[dict[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        seen.append(body)
        if "tools" in body:
            return httpx.Response(400, text="no parser for tools")
        return httpx.Response(500 if "response_format" in body else 200, text="no grammar")

    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://engine") as client:
        refused = warm_up_features(client, CHAT, ("json_schema", "tools", "n"), regex={}, timeout_s=5)
    assert refused == ("json_schema", "tools")
    assert len(seen) == 3
    log = capsys.readouterr()
    told = log.out + log.err
    for words in ("warmup_feature_failed", "warmup_feature_refused", "no parser for tools"):
        assert words in told, told


@pytest.mark.parametrize("plugin", [StandIn, SGLang, VLLM])
def test_an_unknown_feature_is_refused_when_the_plugin_is_made(plugin: type[StandIn]) -> None:
    """With those there are."""
    with pytest.raises(ConfigurationError, match=r"warmup_features .*'dreams'.*json_schema"):
        plugin(warmup_features=("dreams",))  # type: ignore[arg-type] # that is the test


@pytest.mark.parametrize(("plugin", "field"), [(SGLang(), "regex"), (VLLM(), "structured_outputs")])
def test_each_engine_has_its_own_field_for_a_regular_expression(plugin: SGLang | VLLM, field: str) -> None:
    """A field that the launcher's check of public requests lets pass."""
    assert list(plugin.regex_fields()) == [field]
    assert field in plugin.request_fields.bounded
