"""Access to SGLang's routes, checked with the real applications of all supported versions and the real guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.plugins.engine_rules.routes import RealRouteRules, RouteRules
from tests.shown import ROWS
from torpor_sglang import SGLang, routes

if TYPE_CHECKING:
    from tests.plugins.local_engines import Questions


class TestRoutes(RouteRules):
    """SGLang's."""

    engine = SGLang


@pytest.mark.sglang
@pytest.mark.slow
@pytest.mark.shows(ROWS[0], engine="sglang", version="{questions}")
class TestTheRealRoutes(RealRouteRules):
    """SGLang's."""

    engine = SGLang
    late: ClassVar[frozenset[str]] = frozenset({"/metrics"})  # mounted by --enable-metrics (add_prometheus_middleware)
    probe = "/flush_cache"


@pytest.mark.sglang
@pytest.mark.slow
def test_the_guard_is_outside_every_layer_that_the_engine_adds_later(questions: Questions) -> None:
    """SGLang adds layers at launch, after the guard; they only see requests that the guard allows."""
    rules = {"public": routes.PUBLIC, "keyed": routes.KEYED, "sleep": routes.SLEEP, "wake": routes.WAKE}
    requests = [
        ("/server_info", ""),
        ("/release_memory_occupation", ""),
        ("/health_generate", "k" * 32),
        ("/health", ""),
        ("/v1/models", ""),
        ("/server_info", "k" * 32),
    ]
    answers = questions.ask("guarded", rules=rules, key="k" * 32, requests=requests)
    from_the_guard, from_the_late_layer = answers[:5], answers[5]
    assert from_the_guard == [404, 404, 404, 503, 503]
    assert from_the_late_layer == 401
    # SGLang's own CORSMiddleware lets every page read its answers, so every page can read the guard's.
    assert questions.ask("page", path="/v1/models", origin="https://page.example") == [503, "https://page.example"]
    assert questions.ask("page", path="/server_info", origin="https://page.example") == [404, ""]
