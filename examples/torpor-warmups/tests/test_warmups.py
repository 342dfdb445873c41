"""Both plugins: the contract, with the stand-in engine, and what the requests hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import pytest
from torpor import ConfigurationError, Deployment, EngineRequestError, Lifecycle, Model, override
from torpor.platforms.local import LocalServer, Standby
from torpor.testing import PluginContract, StandIn, StandInVLLM

from torpor_warmups import GrammarWarmup, LoraPreload

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.testing import StandInDeployment

SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
ADAPTERS = (("sql", "/models/sql"), ("law", "/models/law"))


class TestLoraPreload(PluginContract):
    """Every rule of the contract."""

    @override
    @pytest.fixture
    def plugin(self) -> LoraPreload:
        return LoraPreload(adapters=ADAPTERS)


class TestGrammarWarmup(PluginContract):
    """Every rule of the contract."""

    @override
    @pytest.fixture
    def plugin(self) -> GrammarWarmup:
        return GrammarWarmup(schemas=(SCHEMA,))


@pytest.mark.parametrize("engine", [StandIn(), StandInVLLM()], ids=["sglang", "vllm"])
def test_the_standin_starts_sleeps_and_wakes_with_both(
    standin_deployment: StandInDeployment, engine: StandIn, tmp_path: Path
) -> None:
    """The hooks of both run, the adapters' before the schemas'; the engine gets the flags."""
    plugins = GrammarWarmup(schemas=(SCHEMA,)), LoraPreload(adapters=ADAPTERS, must_differ=False)
    deployment = standin_deployment(*plugins, engine=engine)
    server = LocalServer(deployment, backend=Standby(), root=tmp_path)
    try:
        server.start()
    finally:
        server.stop()
    ran = {record.stage: list(record.plugins) for record in server.boot.report.records}
    assert ran["warmup"] == ["lora_preload", "grammar_warmup", engine.plugin_name]
    assert ran["post_restore"] == [engine.plugin_name, "lora_preload"]


def deployment(plugin: LoraPreload, engine: StandIn) -> Deployment:
    """With a served name of its own."""
    return Deployment(name="x", model=Model(path="/models/x", served_name="base"), plugins=(plugin, engine))


def test_each_engine_gets_its_own_flags() -> None:
    """With a reason for each."""
    for engine, flag in ((StandIn(), "--lora-paths"), (StandInVLLM(), "--lora-modules")):
        recipe = Lifecycle(deployment(LoraPreload(adapters=ADAPTERS), engine)).recipe()
        assert recipe.engine_args == (
            *("--enable-lora", "--max-lora-rank", "16"),
            *(flag, "sql=/models/sql", "law=/models/law"),
        )
        assert set(recipe.image.flag_reasons) == {"--enable-lora", "--max-lora-rank", flag}


def asked(plugin: LoraPreload, logprobs: dict[str, float]) -> None:
    """Wake an engine whose models give the first token these log probabilities."""

    def answer(request: httpx.Request) -> httpx.Response:
        model = json.loads(request.content)["model"]
        token = {"token": "a", "logprob": logprobs[model]}
        return httpx.Response(200, json={"choices": [{"logprobs": {"content": [token]}}]})

    made = deployment(plugin, StandIn())
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://engine") as client:
        plugin.post_restore(made, None, client)  # type: ignore[arg-type] # it does not touch the engine


def test_an_adapter_that_is_not_applied_fails_the_wake() -> None:
    """It is named, with what was seen; `must_differ` lets it pass."""
    asked(LoraPreload(adapters=ADAPTERS), {"base": -1.0, "sql": -1.1, "law": -0.5})
    lost = {"base": -1.0, "sql": -1.1, "law": -1.0}
    with pytest.raises(EngineRequestError, match="'law' answers like the base model"):
        asked(LoraPreload(adapters=ADAPTERS), lost)
    asked(LoraPreload(adapters=ADAPTERS, must_differ=False), lost)


def test_wrong_options_are_configuration_errors() -> None:
    """With what is allowed."""
    for adapters in ((), (("a", "/a"), ("a", "/b")), (("a b", "/a"),), (("a", "relative"),)):
        with pytest.raises(ConfigurationError, match=r"LoraPreload\.adapters"):
            LoraPreload(adapters=adapters)
    for schemas in ((), ("{",), ("[]",)):
        with pytest.raises(ConfigurationError, match="GrammarWarmup"):
            GrammarWarmup(schemas=schemas)


def test_an_adapter_with_the_models_name_is_an_error_before_the_start() -> None:
    """Requests could not tell the two apart."""
    made = deployment(LoraPreload(adapters=(("base", "/a"),)), StandIn())
    assert [finding.what for finding in made.plugins[0].check(made)] == ["adapters"]
