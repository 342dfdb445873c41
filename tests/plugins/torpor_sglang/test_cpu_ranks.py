"""How ranks on a CPU share its cores."""

from __future__ import annotations

import os

import pytest

from torpor_sglang import cpu_ranks
from torpor_sglang.cpu_ranks import BIND_VARIABLE, THREADS_VARIABLE, cpu_shares, share_cpus


@pytest.mark.parametrize(
    ("ranks", "cpus", "shares"),
    [
        (2, (0, 1), [[0], [1]]),
        (2, (0, 1, 2, 3, 4), [[0, 1], [2, 3, 4]]),
        (3, (4, 5, 6, 7, 8, 9), [[4, 5], [6, 7], [8, 9]]),
        (4, (2, 3), [[2], [3], [2], [3]]),
    ],
)
def test_each_rank_gets_neighbours_of_its_own(ranks: int, cpus: tuple[int, ...], shares: list[list[int]]) -> None:
    """Every CPU is somebody's. Only with fewer CPUs than ranks do two ranks have the same one."""
    assert cpu_shares(ranks, cpus) == shares


@pytest.mark.parametrize(
    ("argv", "bound"),
    [
        (("--tp-size", "2"), "3|5"),
        (("--tp=2",), "3|5"),
        (("--tp-size", "2", "--pp-size", "2"), "3|5|3|5"),
        (("--tp-size", "1"), None),
        ((), None),
    ],
)
def test_ranks_beyond_the_numa_nodes_get_their_cpus_by_name(
    monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], bound: str | None
) -> None:
    """SGLang gives each rank a NUMA node and ends where they are too few; the launcher names CPUs instead."""
    monkeypatch.setattr(cpu_ranks, "_numa_nodes", lambda: 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 3})
    environ: dict[str, str] = {}
    share_cpus(argv, environ)
    assert environ.get(BIND_VARIABLE) == bound
    assert environ.get(THREADS_VARIABLE) == (None if bound is None else "1")


def test_enough_numa_nodes_and_a_choice_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's own choice is the better one where each rank can have a node; a variable that is set wins."""
    monkeypatch.setattr(cpu_ranks, "_numa_nodes", lambda: 2)
    environ: dict[str, str] = {}
    share_cpus(("--tp-size", "2"), environ)
    assert environ == {}
    chosen = {BIND_VARIABLE: "0-1|0-1", THREADS_VARIABLE: "2"}
    share_cpus(("--tp-size", "4"), chosen)
    assert chosen == {BIND_VARIABLE: "0-1|0-1", THREADS_VARIABLE: "2"}
