"""Faults of a lifecycle that the real SGLang can show on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plugins.engine_rules.faults import RealFaultRules
from tests.plugins.torpor_sglang.conftest import LOCAL, cpu_plugin
from tests.shown import ROWS
from torpor import Deployment, Model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.plugins.local_engines import RealEngine


@pytest.mark.sglang
@pytest.mark.slow
@pytest.mark.shows(ROWS[2], engine="sglang", version=LOCAL.version)
class TestFaults(RealFaultRules):
    """SGLang's scheduler is the process that computes."""

    computing = "scheduler"  # setproctitle
    noticed_s = 20.0  # the patch `watched-children` ends the tree within a second; the rest is for a busy machine
    said = "scheduler"

    @pytest.fixture
    def deployment(self, real_engine: Callable[[str], RealEngine], tiny_model: Path, free_port: int) -> Deployment:
        return Deployment(
            name="faults",
            model=Model(path=str(tiny_model), served_name="tiny-qwen3"),
            port=free_port,
            startup_timeout_s=240,
            plugins=(cpu_plugin(real_engine(LOCAL.version), warmup_prompt_words=(8,)),),
        )
