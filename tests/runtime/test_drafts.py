"""A draft through a start, a sleep and a wake: the canary compares how many of its guesses are right."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.ranked_standin import RankedSGLang, RankedVLLM
from torpor import CanaryError, Deployment, Draft, Model
from torpor.platforms.local import LocalServer, Standby
from torpor.runtime.canary import canary_summary
from torpor.testing import Fault
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def server(kind: type[RankedSGLang | RankedVLLM], root: Path, draft: Draft | None, fault: Fault | None) -> LocalServer:
    """A real engine's plugin in front of the stand-in, on the GPU's terms of drafts."""
    dialect = "vllm" if kind is RankedVLLM else "sglang"
    words = ("--dialect", dialect, *(("--fault", str(fault)) if fault else ()))
    engine = kind(
        version=kind.supported_versions[-1],
        python=sys.executable,
        device="cpu",
        warmup_prompt_words=(4,),
        warmup_burst=0,
        warmup_features=(),
        extra_args=words,
    )
    deployment = Deployment(
        name="drafts",
        model=Model(path="/m", served_name="standin", draft=draft),
        plugins=(engine,),
        port=unused_port(),
        startup_timeout_s=30,
        stop_timeout_s=2.0,
    )
    return LocalServer(deployment, backend=Standby(), root=root)


@pytest.fixture(params=[RankedSGLang, RankedVLLM])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[RankedSGLang | RankedVLLM]:
    """Each engine's plugin; SGLang's with the methods that it has on a GPU."""
    monkeypatch.setattr("torpor_sglang.plugin.methods_of", lambda _: ("model", "ngram"))
    chosen: type[RankedSGLang | RankedVLLM] = request.param
    return chosen


@pytest.mark.parametrize("draft", [Draft(path="/draft", tokens=3), Draft(method="ngram", tokens=3)])
def test_a_draft_that_guesses_as_before_serves_after_a_wake(
    kind: type[RankedSGLang | RankedVLLM], draft: Draft, tmp_path: Path
) -> None:
    """The canary has its acceptance: 32 tokens in 10 steps."""
    started = server(kind, tmp_path, draft, None)
    try:
        started.cold_start()
        assert started.boot.canary is not None
        assert "acceptance 3.20" in canary_summary(started.boot.canary)
        started.boot.sleep(for_snapshot=False)
        started.boot.wake()
        assert started.boot.serving
    finally:
        started.stop()


@pytest.mark.fault("a draft's weights are lost in a sleep", area="canary", outcome="refused")
def test_a_draft_whose_guesses_are_wrong_after_a_wake_does_not_serve(
    kind: type[RankedSGLang | RankedVLLM], tmp_path: Path
) -> None:
    """Its answers are as they were, and come one token a step; the error says what was seen before and after."""
    started = server(kind, tmp_path, Draft(path="/draft", tokens=3), Fault.DRAFT_LOST_AFTER_WAKE)
    try:
        started.cold_start()
        started.boot.sleep(for_snapshot=False)
        with pytest.raises(CanaryError, match=r"guesses worse: 1\.00 tokens for each step, 3\.20 before the sleep"):
            started.boot.wake()
        assert started.boot.running_engine.poll() is not None
    finally:
        started.stop()


def test_without_a_draft_no_acceptance_is_compared(kind: type[RankedSGLang | RankedVLLM], tmp_path: Path) -> None:
    """And the answer is short."""
    started = server(kind, tmp_path, None, None)
    try:
        started.cold_start()
        assert started.boot.canary is not None
        assert "acceptance" not in canary_summary(started.boot.canary)
    finally:
        started.stop()
