"""`FastLoad` with both engines: the loader that it chooses, its package, and its errors."""

from __future__ import annotations

import pytest
from typing_extensions import override

from torpor import ConfigurationError, Deployment, Model, Plugin
from torpor.lifecycle import Lifecycle
from torpor.testing import PluginContract, StandIn
from torpor_fast_load import FastLoad
from torpor_sglang import SGLang
from torpor_vllm import VLLM

MODEL = Model(repo_id="Qwen/Qwen3-8B-FP8", revision="220b46e3b2180893580a4454f21f22d3ebb187d3")


def deployment(plugin: Plugin, engine: Plugin) -> Deployment:
    return Deployment(name="fast", model=MODEL, gpu="H100!", plugins=(plugin, engine))


def sglang(version: str) -> SGLang:
    return SGLang(version=version, image=f"registry/sglang:{version}")


class TestFastLoad(PluginContract):
    """The plugin in a deployment with vLLM."""

    @override
    @pytest.fixture
    def plugin(self) -> FastLoad:
        return FastLoad()

    @override
    @pytest.fixture
    def deployment(self, plugin: Plugin) -> Deployment:
        return deployment(plugin, VLLM())


@pytest.mark.parametrize(
    ("engine", "prefer", "chosen", "package"),
    [
        (VLLM(), ("runai_streamer", "fastsafetensors"), "runai_streamer", "runai-model-streamer"),
        (VLLM(version="0.32.0"), ("instanttensor",), "instanttensor", "instanttensor"),
        (sglang("0.5.23"), ("instanttensor", "runai_streamer"), "instanttensor", "instanttensor"),
        (sglang("0.5.16"), ("instanttensor", "fastsafetensors"), "fastsafetensors", "fastsafetensors"),
    ],
)
def test_the_first_preferred_loader_that_the_version_has_is_chosen(
    engine: Plugin, prefer: tuple[str, ...], chosen: str, package: str
) -> None:
    """Its flag is the last of the engine's command, and its package is in the image. The plugin's code names no engine."""
    made = deployment(FastLoad(prefer=prefer), engine)
    recipe = Lifecycle(made).recipe()
    assert made.engine.engine_argv(made, recipe)[-2:] == ("--load-format", chosen)
    assert [requirement.partition(">=")[0] for requirement in recipe.image.pip] == [package]


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (SGLang(), "the engine 'sglang' 0.5.6.post2 has none of the fast ones"),
        (SGLang(device="cpu"), "the engine 'sglang' 0.5.6.post2 has none"),
        (VLLM(device="cpu"), "the engine 'vllm' 0.33.0 has none of the fast ones"),
        (StandIn(), "the engine 'standin' .* has none of the fast ones"),
    ],
)
def test_an_engine_without_a_fast_loader_is_an_error(engine: Plugin, said: str) -> None:
    """The plugin never chooses a loader that the engine's parser refuses."""
    with pytest.raises(ConfigurationError, match=said):
        Lifecycle(deployment(FastLoad(), engine)).recipe()


@pytest.mark.parametrize(
    "engine",
    [VLLM(load_format="safetensors"), VLLM(dummy_weights=True), SGLang(version="0.5.23", image="i", load_format="pt")],
)
def test_a_load_format_of_the_engine_excludes_another(engine: Plugin) -> None:
    """The error about two values for one flag names both plugins."""
    made = deployment(FastLoad(), engine)
    with pytest.raises(ConfigurationError, match=r"'--load-format' is refused: the plugin sets it"):
        made.engine.engine_argv(made, Lifecycle(made).recipe())


@pytest.mark.parametrize("prefer", [(), ("tensorizer",)])
def test_an_invalid_preference_is_refused(prefer: tuple[str, ...]) -> None:
    """The message lists the known loaders."""
    with pytest.raises(ConfigurationError, match="give one or more of runai_streamer, fastsafetensors, instanttensor"):
        FastLoad(prefer=prefer)
