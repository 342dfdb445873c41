"""Access to vLLM's routes, checked with the real applications of all supported versions and the real guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.plugins.engine_rules.routes import RealRouteRules, RouteRules
from tests.shown import ROWS
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from collections.abc import Mapping


class TestRoutes(RouteRules):
    """vLLM's."""

    engine = VLLM


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.shows(ROWS[0], engine="vllm", version="{questions}")
class TestTheRealRoutes(RealRouteRules):
    """vLLM's, in development mode."""

    engine = VLLM
    question: ClassVar[Mapping[str, object]] = {"dev_mode": True, "argv": ["some/model"]}
    probe = "/reset_prefix_cache"
    late: ClassVar[frozenset[str]] = frozenset(
        {
            "/fault_tolerance/apply",  # --enable-fault-tolerance, refused
            "/fault_tolerance/status",
            "/start_profile",  # --profiler-config
            "/stop_profile",
            "/tokenizer_info",  # --enable-tokenizer-info-endpoint
            "/v1/load_lora_adapter",  # VLLM_ALLOW_RUNTIME_LORA_UPDATING, refused
            "/v1/realtime",  # speech
            "/v1/unload_lora_adapter",
        }
    )
