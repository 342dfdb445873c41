"""Adapters on the real vLLM on the CPU: cold, slept, woken and restored, compared with the bare engine; and damaged ones."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from tests.plugins.engine_rules.tasks import app_of, bare, public
from tests.plugins.torpor_vllm.conftest import LOCAL, cpu_plugin
from tests.shown import ROWS
from tests.snapshots.conftest import MODES, refuse
from tests.tiny_adapter import write_adapter
from torpor import (
    Adapter,
    Deployment,
    EngineRequestError,
    ImagePatch,
    Model,
    Plugin,
    SnapshotMisfitError,
    TorporError,
    hookimpl,
)
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.snapshots import create_snapshot, restore_snapshot
from torpor.runtime.boot import Boot
from torpor.testing.ports import unused_port
from torpor_vllm import plugin

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

NAMES = ("tiny", "one", "two")
PROMPTS = ("the quick brown fox", "hello world, what is the capital of France?")


def deployed(tiny_model: Path, folder: Path, *, size: float = 0.5) -> Deployment:
    """The tiny model with two adapters, whose files are below a folder."""
    adapters = {}
    for seed, name in enumerate(NAMES[1:]):
        adapters[name] = Adapter(path=str(write_adapter(folder / name, seed, size=size)))
    return Deployment(
        name="adapters",
        model=Model(path=str(tiny_model), served_name="tiny", adapters=adapters),
        plugins=(replace(cpu_plugin(LOCAL.find(LOCAL.version), warmup_prompt_words=(8,)), max_adapter_rank=8),),
        port=unused_port(),
        startup_timeout_s=300.0,
    )


def answers(client: httpx.Client) -> dict[str, list[tuple[str, float]]]:
    """Of each name: the tokens of greedy answers, with their log probabilities."""
    found = {}
    for name in NAMES:
        found[name] = [token for prompt in PROMPTS for token in _answer(client, name, prompt)]
    return found


def _answer(client: httpx.Client, name: str, prompt: str) -> list[tuple[str, float]]:
    body = {
        "model": name,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": True,
    }
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == name
    told = answer.json()["choices"][0]["logprobs"]["content"]
    return [(token["token"], round(token["logprob"], 4)) for token in told]


def assert_others_are_refused(client: httpx.Client) -> None:
    """A name that is not served is a 404 with those that are; the list has them."""
    listed = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in listed] == list(NAMES)
    refused = client.post(
        "/v1/chat/completions", json={"model": "three", "messages": [{"role": "user", "content": "a"}]}
    )
    assert (refused.status_code, "there are: tiny, one, two." in refused.text) == (404, True), refused.text


@pytest.mark.criu
@pytest.mark.shows(ROWS[3], engine="vllm", version=LOCAL.version)
def test_adapters_answer_like_the_bare_engine_cold_woken_and_restored(tiny_model: Path, tmp_path: Path) -> None:
    """Each otherwise than the model and than the other one. With other files the snapshot does not fit."""
    if reasons := CriuBackend(mode=MODES[0]).available():
        refuse("; ".join(reasons))
    deployment = deployed(tiny_model, tmp_path)
    with bare(deployment) as client:
        wanted = answers(client)
    assert len({str(answer) for answer in wanted.values()}) == len(NAMES), wanted
    boot = Boot(deployment)
    try:
        boot.cold_start()
        boot.serve()
        with public(deployment.port) as client:
            assert answers(client) == wanted
            assert_others_are_refused(client)
            boot.sleep(for_snapshot=False)
            boot.wake()
            assert answers(client) == wanted
    finally:
        boot.stop()
    manifest = create_snapshot(app_of(deployment, tmp_path), tmp_path / "kept", mode=MODES[0])
    models = manifest.canary.answer["models"]
    assert [model["model"] for model in models] == list(NAMES)  # type: ignore[attr-defined] # it is a list
    replicas = restore_snapshot(tmp_path / "kept", replicas=1, port=unused_port())
    try:
        with public(replicas.port) as client:
            assert answers(client) == wanted
            assert_others_are_refused(client)
    finally:
        replicas.stop()
    shutil.copy(tmp_path / "one" / "adapter_model.safetensors", tmp_path / "two" / "adapter_model.safetensors")
    with pytest.raises(SnapshotMisfitError, match=r"two/adapter_model\.safetensors"):
        restore_snapshot(tmp_path / "kept", replicas=1, port=unused_port())


def test_an_adapter_that_changes_nothing_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    """As one that the engine does not apply."""
    boot = Boot(deployed(tiny_model, tmp_path, size=0.0))
    try:
        with pytest.raises(EngineRequestError, match="The adapter 'one' answers like 'tiny'"):
            boot.cold_start()
    finally:
        boot.stop()


DAMAGING = """
from torpor_vllm.worker import Renewal


class Damaging(Renewal):
    def damage(self):
        manager = self.model_runner.lora_manager._adapter_manager
        if {damage!r} == "swapped":
            manager.lora_index_to_id.reverse()
        else:
            for module in manager.modules.values():
                module.reset_lora(manager.lora_index_to_id.index(2))

    def torpor_after_wake(self, seed):
        if {damage!r} == "summed":
            self.damage()
            return super().torpor_after_wake(seed)
        report = super().torpor_after_wake(seed)
        self.damage()
        return report
"""
"""A worker whose adapters come back from a sleep as each other, or the second one as zeros: before or after the checksum."""


@dataclass(frozen=True, kw_only=True)
class OnThePath(Plugin):
    """Puts a folder onto the engine's path."""

    plugin_name = "on_the_path"
    folder: str

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch(env={"PYTHONPATH": self.folder})


@pytest.mark.fault("an adapter comes back from a sleep as another one", area="wake", outcome="refused")
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("swapped", r"After the wake 'one' has other log probabilities .*It answers as 'two' did"),
        ("zeroed", r"After the wake 'two' has other log probabilities .*It answers as 'tiny' did"),
        ("summed", r"vLLM woke with other weights than it fell asleep with"),
    ],
)
def test_an_adapter_that_came_back_as_another_one_is_never_served(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, told: str
) -> None:
    """The model itself answers as before. The checksum covers the adapters, too; what it does not see, the canary does."""
    (tmp_path / "damaging_worker.py").write_text(DAMAGING.format(damage=damage))
    monkeypatch.setattr(plugin, "_EXTENSION", "damaging_worker.Damaging")
    made = deployed(tiny_model, tmp_path)
    boot = Boot(replace(made, plugins=(OnThePath(folder=str(tmp_path)), *made.plugins)))
    try:
        boot.cold_start()
        boot.sleep(for_snapshot=False)
        with pytest.raises(TorporError, match=told):
            boot.wake()
        assert boot.running_engine.poll() is not None
    finally:
        boot.stop()
