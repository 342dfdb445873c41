"""The soak, in short; the long one is `make soak`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import BOTH_DIALECTS
from tests.soak import GROWTH_BYTES, Size, SoakResult, soak

if TYPE_CHECKING:
    from torpor.testing import StandIn


@pytest.mark.slow
@BOTH_DIALECTS
def test_ten_seconds_of_mixed_load_with_sleeps_and_wakes_lose_and_leak_nothing(
    free_port: int, standin: type[StandIn]
) -> None:
    """Every request is answered, and answers of every kind were seen; descriptors, threads and memory stay."""
    result = soak(seconds=10, port=free_port, standin=standin)
    assert result.complaints() == []
    assert result.cycles >= 4
    for kind in ("chat 200", "chat 503", "stream 200", "stream 503", "models 200", "closed 404", "health 503"):
        assert result.answers[kind] > 0
    assert result.answers.get("bad", 0) == 0


def test_a_soak_that_lost_or_leaked_complains() -> None:
    """A lost request, a descriptor, a thread, memory: each by itself."""
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
