"""What requests ask for beside text, on the real SGLang on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest
from typing_extensions import override

from tests.plugins.engine_rules.features import RealFeatureRules, compiled
from tests.plugins.torpor_sglang.conftest import LOCAL, cpu_plugin
from torpor.engine_plugins.feature_warmup import feature_requests
from torpor.runtime.compilations import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.plugins.local_engines import RealEngine
    from torpor.engine_plugins import Feature
    from torpor_sglang import SGLang

pytestmark = [pytest.mark.sglang, pytest.mark.slow]


class TestTheFeatures(RealFeatureRules):
    """SGLang's."""

    local = LOCAL

    @override
    def plugin(self, engine: RealEngine, features: Sequence[Feature]) -> SGLang:
        return replace(cpu_plugin(engine, warmup_prompt_words=(8,)), warmup_features=tuple(features))

    @pytest.mark.timeout(900)
    def test_without_its_warm_up_a_feature_compiles_at_the_first_request_that_asks_for_it(
        self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """SGLang's repetition penalty; so the count sees a compilation, and the warm-up is not needless."""
        server = self.server(tmp_path_factory, tmp_path, ())
        deployment = server.deployment
        (first, *_) = feature_requests(deployment, ("repetition",), regex={})
        try:
            server.cold_start()
            server.boot.serve()
            with httpx.Client(base_url=f"http://127.0.0.1:{deployment.port}", timeout=300, trust_env=False) as client:
                for _ in range(REQUESTS):
                    answer = client.post(first.path, json=first.body)
                    assert answer.status_code == 200, answer.text
            assert compiled(server, "cold")["cache_files"] > 0
        finally:
            server.stop()
