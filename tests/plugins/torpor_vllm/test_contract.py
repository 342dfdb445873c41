"""The vLLM plugin keeps the contract: its declarations, and its life with the real engine on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from tests.plugins.torpor_vllm.conftest import LOCAL, cpu_plugin
from tests.shown import ROWS
from torpor import Deployment, Model, Scaling
from torpor.testing import EngineContract, PluginContract
from torpor.testing.engine_contract import EngineRules
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.plugins.local_engines import RealEngine
    from torpor import Plugin

MODEL = Model(repo_id="Qwen/Qwen3-8B-FP8", revision="220b46e3b2180893580a4454f21f22d3ebb187d3")


class TestVLLM(PluginContract, EngineRules):
    """The plugin as in the flagship app; the next class has the live rules."""

    @override
    @pytest.fixture
    def plugin(self) -> VLLM:
        return VLLM()

    @override
    @pytest.fixture
    def deployment(self, plugin: Plugin) -> Deployment:
        return Deployment(name="contract", model=MODEL, gpu="H100!", plugins=(plugin,))


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.shows(ROWS[1], engine="vllm", version=LOCAL.version)
class TestVLLMOnTheCpu(EngineContract):
    """The real server starts, sleeps and wakes, twice."""

    @override
    @pytest.fixture
    def plugin(self, real_engine: Callable[[str], RealEngine]) -> VLLM:
        return cpu_plugin(real_engine(LOCAL.version), warmup_prompt_words=(8, 60))

    @override
    @pytest.fixture
    def live_deployment(self, plugin: VLLM, tiny_model: Path, free_port: int) -> Deployment:
        return Deployment(
            name="contract-live",
            model=Model(path=str(tiny_model), served_name="tiny-qwen3"),
            plugins=(plugin,),
            port=free_port,
            scaling=Scaling(target_concurrency=4, max_concurrency=8),
            startup_timeout_s=240,
        )
