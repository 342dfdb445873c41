"""Faults of a lifecycle that the real vLLM can show on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plugins.engine_rules.faults import RealFaultRules
from tests.plugins.torpor_vllm.conftest import LOCAL, cpu_plugin
from tests.shown import ROWS
from torpor import Deployment, Model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.plugins.local_engines import RealEngine


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.shows(ROWS[2], engine="vllm", version=LOCAL.version)
class TestFaults(RealFaultRules):
    """vLLM's worker is the process that computes."""

    computing = "VLLM::Worker"
    noticed_s = 15.0
    said = "died"

    @pytest.fixture
    def deployment(self, real_engine: Callable[[str], RealEngine], tiny_model: Path, free_port: int) -> Deployment:
        return Deployment(
            name="faults",
            model=Model(path=str(tiny_model), served_name="tiny-qwen3"),
            port=free_port,
            startup_timeout_s=240,
            plugins=(cpu_plugin(real_engine(LOCAL.version), warmup_prompt_words=(8,)),),
        )
