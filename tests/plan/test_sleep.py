"""`torpor plan`: what each rank frees in a sleep, where weights are kept, and what a snapshot of N GPUs takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from torpor import ConfigurationError, Deployment, Model
from torpor.doctor.capture_size import expected
from torpor.engine_plugins import RankSleep
from torpor.lifecycle import Lifecycle
from torpor.plan.collect import plan_of
from torpor.plan.diff import plan_changes
from torpor.plan.text import write_plan
from torpor.testing import StandIn
from torpor_sglang import SGLang
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor import EnginePlugin, Finding
    from torpor.plan.values import Plan, SleepPlan

IMAGE = "engine/image:v1-cu130"


class Lines:
    """A page that keeps its paragraphs."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}

    def heading(self, text: str) -> None: ...
    def row(self, text: str) -> None: ...
    def blank(self) -> None: ...
    def finding(self, finding: Finding) -> None: ...
    def command(self, indent: str, argv: Sequence[str]) -> None: ...

    def field(self, before: str, text: str, style: str = "") -> None:
        self.fields[before.strip()] = text


def deploy(engine: EnginePlugin, gpu: str | None = "H100", *, gpu_snapshot: bool | None = None) -> Deployment:
    model = Model(repo_id="a/b", revision="0" * 40)
    return Deployment(name="d", model=model, gpu=gpu, gpu_snapshot=gpu_snapshot, plugins=(engine,))


def plan(deployment: Deployment) -> Plan:
    return plan_of(Lifecycle(deployment))


def shown(deployment: Deployment) -> dict[str, str]:
    page = Lines()
    write_plan(plan(deployment), page)
    return page.fields


def sleep_of(engine: EnginePlugin, gpu: str = "H100") -> SleepPlan:
    found = plan(deploy(engine, gpu)).sleep
    assert found is not None
    return found


def sglang(**options: object) -> SGLang:
    return SGLang(version="0.5.23", image=IMAGE, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("engine", "released", "weights", "inside"),
    [
        (sglang(), ("KV cache", "weights"), "snapshot", True),
        (sglang(weights_store="file"), ("KV cache", "weights"), "file", False),
        (sglang(sleep_tags=("kv_cache",)), ("KV cache",), "gpu", True),
        (sglang(memory_saver=False), (), "gpu", True),
        (
            sglang(weights_store="memory", release_graphs=True, prefill_graphs=False),
            ("KV cache", "weights", "CUDA graphs"),
            "memory",
            False,
        ),
        (VLLM(), ("weights", "KV cache"), "snapshot", True),
        (VLLM(sleep_level=2, offload_graphs=True), ("weights", "KV cache", "CUDA graphs"), "model", False),
    ],
)
def test_a_plan_tells_what_a_sleep_frees_and_where_the_weights_are(
    engine: EnginePlugin, released: tuple[str, ...], weights: str, *, inside: bool
) -> None:
    """By the plugin's options."""
    found = sleep_of(engine)
    assert (found.ranks, found.released, found.weights, found.weights_inside) == (1, released, weights, inside)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_every_rank_counts(count: int) -> None:
    """N ranks free NCCL's communicators as well, and a snapshot of them takes N times as much."""
    one, several = sleep_of(sglang()), sleep_of(sglang(tensor_parallel=count), f"H100:{count}")
    assert several.ranks == count
    assert several.released == (*one.released, "NCCL communicators")
    assert several.on_gpus_bytes == count * one.on_gpus_bytes
    assert several.snapshot_bytes == count * one.snapshot_bytes > several.on_gpus_bytes


def test_the_text_names_ranks_weights_and_bytes() -> None:
    """Two lines at the top."""
    lines = shown(deploy(sglang(tensor_parallel=2, weights_store="file"), "H100:2"))
    assert lines["asleep"] == (
        "each of 2 ranks frees KV cache, weights, NCCL communicators; its weights stay in a file outside of the snapshot"
    )
    assert lines["size"] == (
        "about 15.0 GB of snapshot and as much host memory, without the weights; 8.4 GB of it from 2 GPUs "
        "(an estimate by Qwen3-8B-FP8)"
    )
    assert shown(deploy(StandIn()))["asleep"] == "the engine frees what its plugin does not say"
    assert "asleep" not in shown(deploy(sglang(), gpu_snapshot=False))
    assert "asleep" not in shown(deploy(StandIn(), None))


def test_what_follows_from_the_rest_is_no_change_of_a_plan() -> None:
    """The JSON has it; a comparison shows its causes alone."""
    saver, file = (plan(deploy(sglang(weights_store=store))).as_json() for store in ("saver", "file"))
    assert saver["sleep"] != file["sleep"]
    assert not any(change.path.startswith("sleep") for change in plan_changes(saver, file))


def test_on_a_cpu_nothing_moves_from_a_gpu() -> None:
    """One rank of processes."""
    wanted = expected(deploy(StandIn(), None))
    assert (wanted.ranks, wanted.on_gpus) == (1, 0)
    assert wanted.images == wanted.processes > 0


def test_an_unknown_place_of_weights_is_refused() -> None:
    """With the places there are."""
    with pytest.raises(ConfigurationError, match=r"RankSleep.weights is 'attic'; allowed: 'snapshot', 'file'"):
        RankSleep(released=(), weights="attic")  # type: ignore[arg-type]
