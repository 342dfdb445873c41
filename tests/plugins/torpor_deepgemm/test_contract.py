"""The DeepGEMM plugin keeps the contract, in a deployment with SGLang."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from torpor import Deployment, Model
from torpor.testing import PluginContract
from torpor_deepgemm import DeepGEMM
from torpor_sglang import SGLang

if TYPE_CHECKING:
    from torpor import Plugin

MODEL = Model(repo_id="Qwen/Qwen3-8B-FP8", revision="220b46e3b2180893580a4454f21f22d3ebb187d3")


class TestDeepGEMM(PluginContract):
    """The plugin as in the flagship app."""

    @override
    @pytest.fixture
    def plugin(self) -> DeepGEMM:
        return DeepGEMM()

    @override
    @pytest.fixture
    def deployment(self, plugin: Plugin) -> Deployment:
        return Deployment(name="contract", model=MODEL, gpu="H100!", plugins=(plugin, SGLang()))
