"""Short soak tests; `make soak` runs the long one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.platforms.local.serve.conftest import cache, criu, with_criu
from tests.soak import GROWTH_BYTES, Size, SoakResult, soak
from tests.soak_gateway import GatewayResult, soak_gateway
from tests.soak_serve import BUDGET_BYTES, ServeResult, soak_serve
from torpor.testing import StandIn, StandInVLLM

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["cache", "criu", "with_criu"]


@pytest.mark.slow
@pytest.mark.parametrize(("standin", "http"), [(StandIn, "httptools"), (StandInVLLM, "h11")], ids=["sglang", "vllm"])
def test_ten_seconds_of_mixed_load_with_sleeps_and_wakes_lose_and_leak_nothing(
    free_port: int, standin: type[StandIn], http: str
) -> None:
    """Every request is answered, with answers of every kind. Descriptors, threads and memory do not grow."""
    result = soak(seconds=10, port=free_port, standin=standin, http=http)
    assert result.complaints() == []
    assert result.cycles >= 4
    for kind in ("chat 200", "chat 503", "stream 200", "stream 503", "models 200", "closed 404", "health 503"):
        assert result.answers[kind] > 0
    assert result.answers.get("bad", 0) == 0


def test_a_soak_that_lost_or_leaked_complains() -> None:
    """Separately for a lost request, a descriptor, a thread, and memory."""
    small = Size(descriptors=9, threads=3, rss_bytes=10_000_000)
    good = SoakResult(framework=(small, small), guard=(small, small))
    assert good.complaints() == []
    assert SoakResult().complaints() == ["framework: it was never measured", "guard: it was never measured"]
    for grown in (
        Size(descriptors=10, threads=3, rss_bytes=10_000_000),
        Size(descriptors=9, threads=4, rss_bytes=10_000_000),
        Size(descriptors=9, threads=3, rss_bytes=10_000_001 + GROWTH_BYTES),
    ):
        (complaint,) = SoakResult(framework=(small, small), guard=(small, grown)).complaints()
        assert complaint.startswith("guard: ")
    lost = SoakResult(framework=(small, small), guard=(small, small), bad=["chat: no answer"])
    assert lost.complaints() == ["chat: no answer"]


@pytest.mark.slow
@pytest.mark.fault("half of the public port's clients behave badly", area="public port", outcome="held")
def test_clients_that_come_and_go_leave_nothing_with_a_gateway_of_few_descriptors() -> None:
    """Every request of a well-behaved client is answered, descriptors are freed, memory does not grow."""
    result = soak_gateway(seconds=6, connections=400, hold_s=3.0)
    assert result.complaints() == []
    assert result.answers["200"] >= 200
    assert result.busiest < 300


def test_a_soak_of_the_gateway_that_lost_or_kept_complains() -> None:
    """About a lost request, descriptors, memory, or a gateway that answered nobody."""
    good = GatewayResult(answers={"200": 5}, descriptors=(40, 41), rss_bytes=(10, 20))
    assert good.complaints() == []
    assert GatewayResult().complaints() == ["no well-behaved client was answered"]
    for wrong, said in (
        (GatewayResult(answers={"200": 5}, descriptors=(40, 140)), "descriptors: 40 became 140"),
        (
            GatewayResult(answers={"200": 5}, rss_bytes=(0, GROWTH_BYTES + 1)),
            f"the gateway grew by {GROWTH_BYTES + 1} bytes",
        ),
        (GatewayResult(answers={"200": 5}, bad=["no answer: X"]), "no answer: X"),
    ):
        assert wrong.complaints() == [said]


@pytest.mark.slow
@pytest.mark.criu
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("with_criu")
def test_twenty_seconds_of_five_models_with_room_for_two_lose_nothing(tmp_path: Path) -> None:
    """Clients ask, stream and leave; somebody steers. Cold starts, captures, restores and falls happen under that load."""
    result = soak_serve(tmp_path, seconds=20, restores=5)
    assert result.complaints() == [], result
    assert result.starts["cold"] >= 1, result
    assert result.starts["restored"] >= 5, result
    assert result.left > 0, result


def test_a_soak_of_several_models_that_lost_or_kept_complains() -> None:
    """About a lost request, a third model awake, memory beyond the budget, growth, an engine that was left, and no load."""
    good = ServeResult(answers=Counter(serving=5), most_awake=2, most_given_bytes=BUDGET_BYTES, exit_code=0)
    assert good.complaints() == []
    for wrong, said in (
        (replace(good, lost=["m1: 503"]), "m1: 503"),
        (replace(good, most_awake=3), "3 models were awake at once"),
        (replace(good, most_given_bytes=BUDGET_BYTES + 1), f"{BUDGET_BYTES + 1} bytes were given, and the budget has"),
        (replace(good, memory_bytes=(0, GROWTH_BYTES + 1)), "the gateway grew by"),
        (replace(good, engines_left=1), "1 engines were left"),
        (replace(good, exit_code=3), "exit code was 3"),
        (replace(good, answers=Counter()), "only 0 requests were answered"),
    ):
        (complaint,) = wrong.complaints()
        assert said in complaint
