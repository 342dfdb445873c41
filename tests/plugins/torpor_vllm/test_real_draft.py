"""Speculative decoding with a draft model on the real vLLM on the CPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.plugins.engine_rules.tasks import START_S, app_of, bare, public, whole
from tests.plugins.torpor_vllm.conftest import LOCAL, cpu_plugin
from tests.snapshots.conftest import MODES, refuse
from torpor import Deployment, Draft, Model
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.snapshots import create_snapshot, restore_snapshot
from torpor.runtime.canary import canary_summary
from torpor.testing.ports import unused_port

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.criu]

QUESTION: dict[str, object] = {
    "messages": [{"role": "user", "content": "the quick brown fox"}],
    "max_tokens": 16,
    "temperature": 0,
    "ignore_eos": True,
}


@pytest.mark.timeout(900)
def test_a_draft_model_is_captured_restored_and_guesses_as_before(tmp_path: Path, tiny_model: Path) -> None:
    """The model is its own draft, so that every guess is right: four tokens for each step, before the sleep and after the restore.

    The answer is the bare engine's with the same draft.
    """
    if reasons := CriuBackend(mode=MODES[0]).available():
        refuse("; ".join(reasons))
    engine = LOCAL.find(LOCAL.version)
    deployment = Deployment(
        name="drafts",
        model=Model(path=str(tiny_model), served_name="tiny", draft=Draft(path=str(tiny_model), tokens=3)),
        plugins=(cpu_plugin(engine, warmup_prompt_words=(8,)),),
        port=unused_port(),
        startup_timeout_s=START_S,
    )
    with bare(deployment) as client:
        wanted = text_of(whole(client, "/v1/chat/completions", QUESTION))
    manifest = create_snapshot(app_of(deployment, tmp_path), tmp_path / "kept", mode=MODES[0])
    assert "acceptance 4.00" in canary_summary(manifest.canary)
    assert "draft_model" in " ".join(manifest.deployment.argv)
    replicas = restore_snapshot(tmp_path / "kept", replicas=1, port=unused_port())  # asks the canary again
    try:
        with public(replicas.port) as client:
            assert text_of(whole(client, "/v1/chat/completions", QUESTION)) == wanted
    finally:
        replicas.stop()


def text_of(answer: bytes) -> object:
    return json.loads(answer)["choices"][0]["message"]["content"]
