"""What requests ask for beside text, on the real vLLM on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from tests.plugins.engine_rules.features import RealFeatureRules
from tests.plugins.torpor_vllm.conftest import LOCAL, cpu_plugin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.plugins.local_engines import RealEngine
    from torpor.engine_plugins import Feature
    from torpor_vllm import VLLM

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


class TestTheFeatures(RealFeatureRules):
    """vLLM's."""

    local = LOCAL

    @override
    def plugin(self, engine: RealEngine, features: Sequence[Feature]) -> VLLM:
        tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")  # without a parser vLLM refuses tools
        plugin = cpu_plugin(engine, warmup_prompt_words=(8,))
        return replace(plugin, warmup_features=tuple(features), extra_args=tools)
