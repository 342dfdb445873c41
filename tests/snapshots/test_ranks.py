"""Real engines whose model is shared by several processes (tensor parallelism) on a CPU: captured, restored, asked.

The ranks reduce over gloo (SGLang) or over memory in /dev/shm (vLLM). So this shows everything about several ranks but GPUs
and NCCL.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.snapshots.conftest import MODES, exists, refuse, wait_for
from tests.snapshots.test_real_engines import SGLANG, VLLM, Kind, ask, command_line
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.snapshots import create_snapshot, restore_snapshot
from torpor.snapshots.criu.program import PREFIX_VARIABLE
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from pathlib import Path

    from torpor.platforms.local.replicas import Replicas
    from torpor.snapshots.criu.program import Criu

pytestmark = [pytest.mark.criu, pytest.mark.slow]

_RANKED = """
from dataclasses import replace

from torpor.app_file import load_app

one = load_app({app!r}).deployment
model, engine = one.plugins
engine = replace(engine, tensor_parallel={ranks}, warmup_prompt_words=(8,), warmup_burst=0)
deployment = replace(one, name="ranks", port={port}, plugins=(model, engine))
"""
"""A tiny app whose model several processes share."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """An engine with several ranks.

    Attributes:
        kind: the engine.
        rank: matches the command line of a rank's process.
        ranks: how many there are.
    """

    kind: Kind
    rank: re.Pattern[bytes]
    ranks: int = 2


VLLM_VARIABLE, FOUR_VARIABLE = "TORPOR_TEST_VLLM_RANKS", "TORPOR_TEST_FOUR_RANKS"
_SCHEDULER = re.compile(rb"^sglang::scheduler_TP\d")
ENGINES = [
    pytest.param(Ranked(kind=SGLANG, rank=_SCHEDULER), id="sglang", marks=pytest.mark.sglang),
    pytest.param(
        Ranked(kind=SGLANG, rank=_SCHEDULER, ranks=4),
        id="sglang-four",
        marks=[
            pytest.mark.sglang,
            pytest.mark.skipif(
                FOUR_VARIABLE not in os.environ,
                reason=f"two replicas of six processes each, minutes on two cores: set {FOUR_VARIABLE}=1",
            ),
        ],
    ),
    pytest.param(
        Ranked(kind=VLLM, rank=re.compile(rb"^VLLM::Worker")),
        id="vllm",
        marks=[
            pytest.mark.vllm,
            pytest.mark.skipif(
                VLLM_VARIABLE not in os.environ,
                reason=f"four processes import vLLM, a minute or more: set {VLLM_VARIABLE}=1",
            ),
        ],
    ),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("ranked", ENGINES)
def test_ranks_answer_as_before_sample_anew_and_end_together(ranked: Ranked, criu: Criu, tmp_path: Path) -> None:
    """Twice restored, two replicas each: greedy answers are equal, samples differ. When a rank dies, so does its engine."""
    ranked.kind.needed()
    app = tmp_path / "ranked.py"
    app.write_text(_RANKED.format(app=str(ranked.kind.app), ranks=ranked.ranks, port=unused_port()))
    with pytest.MonkeyPatch.context() as patch:
        if "root" in criu.program.parts:
            patch.setenv(PREFIX_VARIABLE, str(criu.program.parents[3]))
        if reasons := CriuBackend(mode=MODES[0]).available():
            refuse("; ".join(reasons))
        create_snapshot(app, tmp_path / "kept", mode=MODES[0])
        greedy = {answer for _ in range(2) for answer in _asked_of_two(tmp_path / "kept", ranked)}
    assert len(greedy) == 1


def _asked_of_two(folder: Path, ranked: Ranked) -> set[str]:
    """Restore two replicas and ask both; then kill a rank of one. Returns the greedy answers."""
    port = unused_port()
    replicas = restore_snapshot(folder, replicas=2, port=port)
    try:
        greedy = {ask(port, temperature=0.0) for _ in range(4)}
        assert len({ask(port, temperature=1.0) for _ in range(2)}) == 2
        _kill_one_rank(replicas, ranked)
    finally:
        replicas.stop()
    return greedy


def _kill_one_rank(replicas: Replicas, ranked: Ranked) -> None:
    first = replicas.serving[0]
    pids = list(first.replica.sandbox.host_pids().values())
    ranks = [pid for pid in pids if ranked.rank.search(command_line(pid))]
    assert len(ranks) == ranked.ranks
    os.kill(ranks[-1], signal.SIGKILL)
    assert first.boot.running_engine.wait(20.0) is not None
    assert wait_for(lambda: not any(exists(pid) for pid in ranks), 20.0)
