"""Both plugins: the contract, with the stand-in engine, and what the requests hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest
from torpor import Adapter, CanaryAnswer, ConfigurationError, Deployment, Model, Plugin, override
from torpor.platforms.local import LocalServer, Standby
from torpor.testing import PluginContract, StandIn, StandInVLLM

from torpor_warmups import AdapterPrompts, GrammarWarmup

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.testing import StandInDeployment

SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
PROMPTS = (("sql", "List the customers by revenue."), ("law", "What is a lease?"))


class TestAdapterPrompts(PluginContract):
    """Every rule of the contract."""

    @override
    @pytest.fixture
    def plugin(self) -> AdapterPrompts:
        return AdapterPrompts(prompts=PROMPTS)

    @override
    @pytest.fixture
    def deployment(self, plugin: AdapterPrompts, tmp_path: Path) -> Deployment:
        return deployed(tmp_path, plugin, StandIn())


class TestGrammarWarmup(PluginContract):
    """Every rule of the contract."""

    @override
    @pytest.fixture
    def plugin(self) -> GrammarWarmup:
        return GrammarWarmup(schemas=(SCHEMA,))


def deployed(folder: Path, *plugins: Plugin) -> Deployment:
    """A model with two adapters."""
    for name, _ in PROMPTS:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
        (folder / name / "adapter_model.bin").write_bytes(name.encode())
    adapters = {name: Adapter(path=str(folder / name)) for name, _ in PROMPTS}
    model = Model(path=str(folder), served_name="base", adapters=adapters)
    return Deployment(name="x", model=model, plugins=plugins)


def started(deployment: Deployment, folder: Path) -> LocalServer:
    """Start it, with a sleep and a wake; stopped again."""
    server = LocalServer(deployment, backend=Standby(), root=folder / "root")
    try:
        server.start()
    finally:
        server.stop()
    return server


@pytest.mark.parametrize("engine", [StandIn(), StandInVLLM()], ids=["sglang", "vllm"])
def test_the_standin_starts_sleeps_and_wakes_with_both(
    standin_deployment: StandInDeployment, engine: StandIn, tmp_path: Path
) -> None:
    """The hooks of both run, the adapters' before the schemas'; each adapter's answer is recorded."""
    plugins = GrammarWarmup(schemas=(SCHEMA,)), AdapterPrompts(prompts=PROMPTS)
    made = deployed(tmp_path, *plugins, engine)
    server = started(replace(made, port=standin_deployment(engine=engine).port), tmp_path)
    ran = {record.stage: list(record.plugins) for record in server.boot.report.records}
    assert ran["warmup"] == ["adapter_prompts", "grammar_warmup", engine.plugin_name]
    assert server.boot.canary is not None
    assert set(server.boot.canary.questions) == {"adapter_prompts: adapter sql", "adapter_prompts: adapter law"}


def test_what_is_compared_are_tokens_and_their_log_probabilities(tmp_path: Path) -> None:
    """Of the adapter, for its own prompt."""
    asked: list[dict[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        token = {"token": "a", "logprob": -0.5}
        return httpx.Response(200, json={"choices": [{"logprobs": {"content": [token]}}]})

    plugin = AdapterPrompts(prompts=PROMPTS)
    questions = list(plugin.canary_questions(deployed(tmp_path, plugin, StandIn())))
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://engine") as client:
        answers = [question.ask(client) for question in questions]
    assert answers == [CanaryAnswer(exact=("a",), numbers=(-0.5,))] * 2
    assert [(body["model"], body["messages"]) for body in asked] == [
        (name, [{"role": "user", "content": prompt}]) for name, prompt in PROMPTS
    ]


def test_wrong_options_are_configuration_errors() -> None:
    """With what is allowed."""
    for prompts in ((), (("a", "x"), ("a", "y")), (("a", " "),)):
        with pytest.raises(ConfigurationError, match=r"AdapterPrompts\.prompts"):
            AdapterPrompts(prompts=prompts)
    with pytest.raises(ConfigurationError, match=r"AdapterPrompts\.tokens is 0"):
        AdapterPrompts(prompts=PROMPTS, tokens=0)
    for schemas in ((), ("{",), ("[]",)):
        with pytest.raises(ConfigurationError, match="GrammarWarmup"):
            GrammarWarmup(schemas=schemas)


def test_a_prompt_for_an_adapter_that_is_not_there_is_an_error_before_the_start(tmp_path: Path) -> None:
    """With those that are."""
    made = deployed(tmp_path, AdapterPrompts(prompts=(("tax", "x"),)), StandIn())
    (found,) = made.plugins[0].check(made)
    assert found.seen == "AdapterPrompts has a prompt for tax, and Model.adapters has sql, law"
