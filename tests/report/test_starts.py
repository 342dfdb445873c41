"""Starts as values: stage records grouped into starts, and the spread of several."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.report.recorded import RECORDS, record
from torpor.report import Spread, starts_of


def test_records_become_starts_sleeps_and_wakes() -> None:
    """Each start has a zero of its own, so an hour of serving is in none of them."""
    starts = starts_of(RECORDS)
    assert [(start.boot, start.number, len(start.spans)) for start in starts] == [
        ("cold", 1, 5),
        ("sleep", 1, 2),
        ("woken", 1, 3),
        ("sleep", 2, 2),
        ("woken", 2, 1),
    ]
    assert [(span.stage, span.start_s, span.seconds) for span in starts[0].spans] == [
        ("preflight", 0.0, 0.25),
        ("launch", 0.25, 0.5),
        ("ready", 0.75, 9.5),
        ("warmup", 10.25, 2.0),
        ("canary", 12.25, 0.125),
    ]
    assert starts[0].total_s == 12.375
    assert starts[4].spans[0].error.startswith("EngineTimeoutError")


def test_a_second_start_in_one_file_is_a_start_of_its_own() -> None:
    """Also after a failed start, whatever its last stage was."""
    failed = record("launch", 1.0, 0.5, error="EngineExitedError: gone")
    again = [record("preflight", 5.0, 0.1), record("launch", 5.1, 0.5), record("serve", 6.0, 0.1)]
    starts = starts_of([record("preflight", 0.0, 1.0), failed, *again, record("preflight", 9.0, 0.1)])
    assert [(start.boot, start.number, len(start.spans)) for start in starts] == [
        ("cold", 1, 2),
        ("cold", 2, 3),
        ("cold", 3, 1),
    ]


def test_replicas_that_wake_side_by_side_are_starts_of_their_own() -> None:
    """Their stages are mixed in one file. Each replica's start begins with its sandbox."""
    stages = ("sandbox", "side_files", "criu", "post_restore", "canary_check", "serve")
    mixed = [
        replace(record(stage, number, 0.5, boot="restored", count=1), replica=name)
        for number, stage in enumerate(stages)
        for name in ("kept-1", "kept-2")
    ]
    failed = replace(record("restore", 20.0, 0.5, boot="restored", count=1, error="SnapshotError: x"), replica="kept-3")
    again = [replace(one, replica="kept-1") for one in mixed[::2]]
    starts = starts_of([*mixed, failed, *again])
    assert [(start.boot, start.number, len(start.spans)) for start in starts] == [
        ("restored", 1, 6),
        ("restored", 2, 6),
        ("restored", 3, 1),
        ("restored", 4, 6),
    ]


def test_no_records_are_no_starts() -> None:
    """An empty list gives no start."""
    assert starts_of([]) == ()


@pytest.mark.parametrize(
    ("count", "median", "p95"), [(1, 1.0, None), (2, 1.5, None), (19, 10.0, None), (20, 10.5, 19.0), (100, 50.5, 95.0)]
)
def test_the_spread_is_by_nearest_rank(count: int, median: float, p95: float | None) -> None:
    """Of 1..n in any order: the median lies between the middle two; p95 is one of the values, and needs 20 of them."""
    values = [float(value) for value in range(1, count + 1)]
    random.Random(count).shuffle(values)
    assert Spread.of(values) == Spread(median=median, min=1.0, p95=p95, max=float(count))
