"""Tasks on the real vLLM on the CPU, with tiny models that are made on the spot."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from tests.plugins.engine_rules.tasks import RealTaskRules
from tests.plugins.torpor_vllm.conftest import LOCAL, cpu_plugin

if TYPE_CHECKING:
    from tests.plugins.local_engines import RealEngine
    from torpor_vllm import VLLM

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


class TestTheTasks(RealTaskRules):
    """vLLM's."""

    local = LOCAL

    @override
    def plugin(self, engine: RealEngine, **options: bool) -> VLLM:
        return replace(cpu_plugin(engine, warmup_prompt_words=(8,)), **options)  # type: ignore[arg-type] # flags
