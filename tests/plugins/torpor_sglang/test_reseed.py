"""A new random state at every resume, with the real modules of all supported versions (the same on a GPU)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.plugins.local_engines import Questions

pytestmark = [pytest.mark.sglang, pytest.mark.slow]

RESUMED = {
    "0.5.6.post2": ("SchedulerUpdateWeightsMixin", "self"),
    "0.5.16": ("SchedulerWeightUpdaterManager", "self.weight_updater"),
    "0.5.18": ("SchedulerWeightUpdaterManager", "self.weight_updater"),
    "0.5.23": ("SchedulerWeightUpdaterManager", "self.weight_updater"),
}
"""The class with the handler of a resume, and how the scheduler holds it."""


def test_the_patched_handler_is_the_schedulers_own(questions: Questions) -> None:
    """In each version the patch changes the class whose `resume_memory_occupation` the scheduler gives to its dispatcher.

    The class comes from the real module, the handler from the source of the real scheduler.
    """
    found = questions.ask("reseed")
    changed, owner = RESUMED[questions.version]
    assert found == {
        "changed": changed,
        "handlers": [f"{owner}.resume_memory_occupation"],
        "scheduler_uses_it": True,
    }


def test_two_replicas_of_one_random_state_differ_after_a_resume(questions: Questions) -> None:
    """After the real handler of each version, run on a CPU, the draws of torch, numpy and Python differ.

    Without the patch, both replicas draw the same in the same process.
    """
    drawn = questions.ask("draws", replicas=2)
    unpatched, patched = drawn["unpatched"], drawn["patched"]
    assert unpatched[0] == unpatched[1]
    for source in ("torch", "numpy", "random"):
        assert patched[0][source] != patched[1][source], source
        assert patched[0][source] != unpatched[0][source], source


def test_the_ranks_of_one_model_get_the_same_seed(asked: Callable[[str], Questions]) -> None:
    """Two real processes with a real gloo group: tensor-parallel ranks sample for themselves and must agree."""
    seeds = asked("0.5.23").ask("seeds_of_ranks", ranks=2)
    assert len(seeds) == 2
    assert seeds[0] == seeds[1]
    assert seeds[0] < 1 << 32  # what torch begins with is larger, so each was seeded
