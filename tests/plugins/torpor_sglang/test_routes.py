"""The guard's route lists, held against the real applications of all supported versions."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from torpor_sglang import routes
from torpor_sglang.versions import SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.plugins.local_engines import Questions

CLOSED = tuple(path for _, paths in routes.CLOSED for path in paths)
ALL = (*routes.PUBLIC, *routes.KEYED, *routes.SLEEP, *routes.WAKE, *routes.ANSWERED, *CLOSED)
LATE = {"/metrics"}  # mounted when the server starts with --enable-metrics (add_prometheus_middleware)


@pytest.mark.sglang
@pytest.mark.slow
def test_every_route_of_the_real_application_has_been_judged(questions: Questions) -> None:
    """A route that no list names is closed anyway; this says that it is new and has to be judged."""
    assert sorted(set(questions.ask("routes")) - set(ALL)) == []


@pytest.mark.sglang
@pytest.mark.slow
def test_every_listed_route_is_real(asked: Callable[[str], Questions]) -> None:
    """No path is misspelt: some supported version has it."""
    real = {path for version in SUPPORTED_VERSIONS for path in asked(version).ask("routes")}
    assert sorted(set(ALL) - real - LATE) == []


@pytest.mark.sglang
@pytest.mark.slow
def test_every_version_has_the_routes_that_serving_sleep_and_wake_call(questions: Questions) -> None:
    """Public paths, the sleep and wake sequences and the idle probe exist in each version."""
    assert {*routes.PUBLIC, *routes.SLEEP, *routes.WAKE, "/flush_cache"} <= set(questions.ask("routes"))


@pytest.mark.sglang
@pytest.mark.slow
def test_the_guard_is_outside_every_layer_that_the_engine_adds_later(questions: Questions) -> None:
    """A layer that is added after the guard, as SGLang adds its own at launch, sees only what the guard lets in."""
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


def test_no_path_is_in_two_classes() -> None:
    """A path has one class."""
    assert [path for path, count in Counter(ALL).items() if count > 1] == []


def test_no_management_route_is_public() -> None:
    """Only the three paths of the OpenAI API that clients of a chat model need are open."""
    assert routes.PUBLIC == ("/v1/chat/completions", "/v1/completions", "/v1/models")
