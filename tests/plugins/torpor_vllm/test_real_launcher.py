"""The real vLLM's launcher is ended from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from tests.plugins.engine_rules.launcher import RealLauncherRules
from tests.plugins.torpor_vllm.conftest import LOCAL, cpu_plugin

if TYPE_CHECKING:
    from tests.plugins.local_engines import RealEngine
    from torpor_vllm import VLLM


@pytest.mark.vllm
@pytest.mark.slow
class TestTheLauncher(RealLauncherRules):
    """vLLM's."""

    local = LOCAL

    @override
    def plugin(self, engine: RealEngine) -> VLLM:
        return cpu_plugin(engine, warmup_prompt_words=(8,))
