"""Checksums of weights: which changes show, which models are summed, and what happens if they differ."""

from __future__ import annotations

import json
import os
import subprocess
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from tests import ROOT
from torpor import Deployment, Model
from torpor.lifecycle import Lifecycle
from torpor_sglang import SGLang
from torpor_sglang.patches import weight_sums
from torpor_sglang.patches.weight_sums import WeightSums, models_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.plugins.local_engines import RealEngine


def model(name: str) -> SimpleNamespace:
    """What stands for a model."""
    return SimpleNamespace(name=name, named_parameters=lambda: [(name, name)], named_buffers=list)


def runner(name: str) -> SimpleNamespace:
    """What stands for a model runner."""
    return SimpleNamespace(model=model(name))


HANDLERS = {
    "0.5.6.post2": SimpleNamespace(
        tp_worker=SimpleNamespace(model_runner=runner("target")),
        draft_worker=SimpleNamespace(model_runner=runner("draft")),
    ),
    "0.5.16": SimpleNamespace(
        tp_worker=SimpleNamespace(model_runner=runner("target")),
        draft_worker=SimpleNamespace(_draft_worker=SimpleNamespace(draft_runner=runner("draft"))),
    ),
    "0.5.23": SimpleNamespace(
        tp_worker=SimpleNamespace(weight_update_runners=lambda: [("target", runner("target"))]),
        draft_worker=SimpleNamespace(weight_update_runners=lambda: [("draft", runner("draft"))]),
    ),
}
"""SGLang's object that releases memory, as far as it leads to the models."""


@pytest.mark.parametrize("version", HANDLERS)
def test_the_models_of_every_version_are_found(version: str) -> None:
    """The served one and the draft model's, each once."""
    found = [(name, one.name) for name, one in models_of(HANDLERS[version])]
    assert found == [("the model", "target"), ("the draft model 1", "draft")]


def test_an_engine_without_a_draft_model_has_one_sum() -> None:
    """`draft_worker` is None, or missing."""
    alone = SimpleNamespace(tp_worker=SimpleNamespace(model_runner=runner("target")), draft_worker=None)
    assert [name for name, _ in models_of(alone)] == ["the model"]


def test_other_weights_after_a_sleep_end_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the rank and the model; equal weights pass."""
    weights = {"target": "1", "draft": "1"}
    monkeypatch.setattr(weight_sums, "tensor_sums", lambda tensors: weights[next(iter(tensors))[0]])
    told: list[str] = []
    sums = WeightSums(rank=lambda: "rank 1 (GPU 1)", tell=told.append)
    sums.note(HANDLERS["0.5.23"])
    sums.compare(HANDLERS["0.5.23"])
    weights["draft"] = "2"
    with pytest.raises(RuntimeError, match=r"rank 1 \(GPU 1\): the weights of the draft model 1 came back different"):
        sums.compare(HANDLERS["0.5.23"])
    assert told[0].startswith("weights: checksum of the model 1, the draft model 1 1, ")


@pytest.mark.parametrize(
    ("options", "policy", "sums"),
    [
        ({}, "fail", True),
        ({}, "warn", False),
        ({"dummy_weights": True, "weights_backup": False}, "fail", False),
        ({"version": "0.5.16", "image": "x", "weights_store": "file"}, "fail", False),
    ],
)
def test_the_plugin_wants_sums_where_nothing_else_compares(options: dict[str, object], policy: str, sums: bool) -> None:
    """Not where what is kept is compared already, where the weights are not kept, or where a difference is only a warning."""
    plugin = SGLang(**options)  # type: ignore[arg-type] # options of several types
    made = Deployment(name="d", model=Model(path="/m"), gpu="H100!", plugins=(plugin,), canary_mismatch=policy)  # type: ignore[arg-type]
    assert ("TORPOR_WEIGHT_SUMS" in Lifecycle(made).recipe().env) is sums


@pytest.mark.sglang
def test_every_damage_changes_the_sum(real_engine: Callable[[str], RealEngine]) -> None:
    """All damages of `benchmarks/canary_damages.py` show, with the engine's own torch; equal weights have equal sums."""
    engine = real_engine("0.5.23")
    path = ":".join(str(ROOT / folder) for folder in ("core", "plugins", "."))
    ran = subprocess.run(
        (str(engine.python), str(ROOT / "tests" / "plugins" / "torpor_sglang" / "sum_damages.py")),
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout)
    assert told == {"missed": [], "again": True, "exchange": True, "order": True, "empty": True, "shared": True}
