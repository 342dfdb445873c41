"""Engines with several ranks, one of which fails alone: the error names the rank, and nothing is left running.

The real plugins of SGLang and vLLM talk to the stand-in engine, whose ranks are processes.
"""

from __future__ import annotations

import re
import time

import pytest

from tests.conftest import wait_until_gone
from tests.ranked_standin import ranked_deployment
from torpor import TorporError
from torpor.engine.failure import stops_on_failure
from torpor.runtime.boot import Boot
from torpor.testing.standin.ranks import RankFault

DIALECTS = ("sglang", "vllm")
AT_SLEEP = {RankFault.FAILS_AT_SLEEP, RankFault.HANGS_AT_SLEEP, RankFault.FORGETS_SLEEP}


STEPS = ("released", "suspended", "taken back", "resumed")
LINE = re.compile(rf"standin: rank (\d+): ({'|'.join(STEPS)})$")


@pytest.mark.parametrize(("dialect", "ranks"), [("sglang", 2), ("vllm", 3)])
def test_ranks_sleep_and_wake_in_one_order(free_port: int, dialect: str, ranks: int) -> None:
    """Each rank releases before any suspends; each takes back before any resumes. The canary agrees afterwards."""
    boot = Boot(ranked_deployment(dialect, port=free_port, ranks=ranks))
    with stops_on_failure(boot.stop):
        boot.cold_start()
        boot.sleep()
        boot.wake()
    boot.stop()
    seen = [found.groups() for line in boot.running_engine.log_tail() if (found := LINE.search(line))]
    assert [step for _, step in seen] == [step for step in STEPS for _ in range(ranks)]
    assert sorted(seen) == sorted((str(rank), step) for rank in range(ranks) for step in STEPS)
    assert wait_until_gone(boot.running_engine.pid) == []


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (RankFault.FAILS_AT_SLEEP, "rank 1: CUDA error"),
        (RankFault.HANGS_AT_SLEEP, "rank 1 gave no answer to (release|sleep) within 0.5 s"),
        (RankFault.FORGETS_SLEEP, "rank 1 (says that it sleeps, and )?still holds"),
        (RankFault.FAILS_AT_WAKE, "rank 1: CUDA error"),
        (RankFault.HANGS_AT_WAKE, "rank 1 gave no answer to (resume|wake) within 0.5 s"),
        (RankFault.OTHER_WEIGHTS, "rank 1(: the weights have another| has the) sum"),
    ],
)
@pytest.mark.fault(
    "one of an engine's ranks fails, hangs or forgets at a sleep or a wake", area="ranks", outcome="refused"
)
def test_a_rank_that_fails_alone_is_named(free_port: int, dialect: str, fault: RankFault, said: str) -> None:
    """Within its deadline, and the whole engine has ended afterwards."""
    boot = Boot(ranked_deployment(dialect, port=free_port, fault=fault))
    with stops_on_failure(boot.stop):
        boot.cold_start()
        if fault not in AT_SLEEP:
            boot.sleep()
        began = time.monotonic()
        with pytest.raises(TorporError, match=said):
            boot.sleep() if fault in AT_SLEEP else boot.wake()
        assert time.monotonic() - began < 15.0
    assert wait_until_gone(boot.running_engine.pid) == []
