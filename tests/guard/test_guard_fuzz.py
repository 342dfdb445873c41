"""A short fuzz of the guard; `python -m tests.fuzz_guard` is the long one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import BOTH_DIALECTS
from tests.fuzz_guard import PUBLIC, fuzz

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.testing import StandIn


@BOTH_DIALECTS
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_no_bytes_reach_more_than_the_public_paths(tmp_path: Path, standin: type[StandIn], http: str) -> None:
    """Fifteen hundred requests, the same ones every time, with either parser."""
    report = fuzz(1500, seed=7, folder=tmp_path, standin=standin, http=http)
    assert report.broken == []
    assert set(report.reached) == set(PUBLIC), "the fuzz is no use if nothing ever passes"
    assert {200, 400, 403, 404, 405, 413, 503} <= set(report.statuses)
    assert report.requests >= 1500


@pytest.mark.slow
@pytest.mark.fault("thousands of malformed, ambiguous and oversized requests", area="heads", outcome="held")
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_many_bytes_leave_memory_and_descriptors_where_they_were(tmp_path: Path, http: str) -> None:
    """Five thousand requests, with either parser."""
    report = fuzz(5_000, seed=8, folder=tmp_path, http=http)
    assert report.broken == []
    assert report.memory_growth_mib < 32
    assert report.descriptor_growth <= 8
