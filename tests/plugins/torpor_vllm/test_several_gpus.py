"""vLLM on several GPUs: its settings, the calls of its sleep and wake, and what its workers report."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.plugins.torpor_vllm.test_plugin import an_engine, like_vllm
from torpor import ConfigurationError, Deployment, EngineRequestError, GpuSnapshotError, Model
from torpor.engine_plugins import NCCL_SNAPSHOT_ENV
from torpor.lifecycle import Lifecycle
from torpor_vllm import VLLM
from torpor_vllm.several_gpus import ALL_REDUCE_SETTINGS, SNAPSHOT_ENV, refusals

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torpor import Engine

__all__ = ["an_engine"]

RANKS = 2
FUSED = ("--compilation-config.pass_config.fuse_allreduce_rms", "false")


def deployment(*, gpu_snapshot: bool | None = None, gpu: str | None = "H100!:2", **options: Any) -> Deployment:
    engine = VLLM(**{"tensor_parallel": RANKS, **options})
    return Deployment(name="d", model=Model(path="/model"), gpu=gpu, gpu_snapshot=gpu_snapshot, plugins=(engine,))


def argv_of(made: Deployment) -> tuple[str, ...]:
    return made.engine.engine_argv(made, Lifecycle(made).recipe())


def test_a_snapshot_of_several_gpus_sets_every_variable_and_flag() -> None:
    """NCCL's variables, those of vLLM's own all-reduces, no custom all-reduce, and no fused one."""
    made = deployment()
    env = Lifecycle(made).recipe().env
    assert {name: env.get(name) for name in SNAPSHOT_ENV} == SNAPSHOT_ENV
    assert set(SNAPSHOT_ENV) == {*NCCL_SNAPSHOT_ENV, *(setting.variable for setting in ALL_REDUCE_SETTINGS)}
    argv = argv_of(made)
    assert "--disable-custom-all-reduce" in argv
    assert argv[argv.index(FUSED[0]) :][:2] == FUSED
    assert {"--disable-custom-all-reduce", FUSED[0]} <= set(made.engine.flag_reasons())


@pytest.mark.parametrize(
    ("gpu", "gpu_snapshot", "options"),
    [("H100!", None, {"tensor_parallel": 1}), ("H100!:2", False, {}), (None, None, {"device": "cpu"})],
)
def test_nothing_is_switched_off_where_no_gpus_share_a_snapshot(
    gpu: str | None, gpu_snapshot: bool | None, options: dict[str, Any]
) -> None:
    """One GPU, no GPU memory in a snapshot, or a CPU: vLLM keeps its own choice."""
    made = deployment(gpu=gpu, gpu_snapshot=gpu_snapshot, **options)
    assert not set(Lifecycle(made).recipe().env) & set(SNAPSHOT_ENV)
    assert not {"--disable-custom-all-reduce", FUSED[0]} & set(argv_of(made))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--no-disable-custom-all-reduce",), "custom all-reduce shares buffers by CUDA IPC"),
        (("--enable_custom_all_reduce",), "custom all-reduce shares buffers by CUDA IPC"),
        ((FUSED[0], "true"), "fused all-reduce shares a workspace"),
        ((f"{FUSED[0]}=True",), "fused all-reduce shares a workspace"),
        (("--compilation-config", '{"mode": 3}'), "Write each of its values by its name"),
        (("--pipeline-parallel-size=2",), "stages of a pipeline"),
        (("--enable-nccl-comm-suspend",), "vLLM would suspend some of them before"),
    ],
)
def test_a_flag_that_contradicts_is_refused_by_its_name(words: tuple[str, ...], said: str) -> None:
    """Before anything starts; the error says why."""
    with pytest.raises(ConfigurationError, match=said) as refused:
        argv_of(deployment(gpu="H100!:4" if "pipeline" in words[0] else "H100!:2", extra_args=words))
    assert words[0] in str(refused.value)


@pytest.mark.parametrize(
    "words", [(FUSED[0], "false"), ("--disable-custom-all-reduce",), ("--compilation-config.mode", "3")]
)
def test_a_flag_that_agrees_may_be_given(words: tuple[str, ...]) -> None:
    """Other values of the compile configuration are written by their names, and vLLM's parser joins them."""
    assert argv_of(deployment(extra_args=words))[-len(words) :] == words


def resolved(**changed: dict[str, object]) -> Any:
    """A configuration as a snapshot needs it, but for some values."""
    parallel = {
        "disable_custom_all_reduce": True,
        "enable_expert_parallel": False,
        "all2all_backend": "allgather_reducescatter",
        "pipeline_parallel_size": 1,
    }
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**{**parallel, **changed.get("parallel", {})}),
        model_config=SimpleNamespace(**{"enable_nccl_comm_suspend": False, **changed.get("model", {})}),
        compilation_config=SimpleNamespace(
            pass_config=SimpleNamespace(**{"fuse_allreduce_rms": False, **changed.get("passes", {})})
        ),
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"parallel": {"disable_custom_all_reduce": False}}, "custom all-reduce is on"),
        ({"parallel": {"enable_expert_parallel": True, "all2all_backend": "deepep_low_latency"}}, "deepep_low_latency"),
        ({"parallel": {"pipeline_parallel_size": 2}}, "pipeline_parallel_size is not 1"),
        ({"model": {"enable_nccl_comm_suspend": True}}, "vLLM suspends NCCL by itself"),
        ({"passes": {"fuse_allreduce_rms": True}}, "all-reduce and norm are fused"),
    ],
)
def test_what_vllm_resolved_otherwise_is_named(changed: dict[str, dict[str, object]], said: str) -> None:
    """A worker reads it back from its own configuration, whatever the flags said."""
    assert list(refusals(resolved(), SNAPSHOT_ENV)) == []
    (found,) = refusals(resolved(**changed), SNAPSHOT_ENV)
    assert said in found


@pytest.mark.parametrize("variable", sorted(SNAPSHOT_ENV))
def test_a_variable_that_a_worker_has_otherwise_is_named(variable: str) -> None:
    """Somebody else may have set it: a platform, an image, the engine itself."""
    assert all(variable in found for found in refusals(resolved(), {**SNAPSHOT_ENV, variable: "other"}))
    (found,) = refusals(resolved(), {name: value for name, value in SNAPSHOT_ENV.items() if name != variable})
    assert variable in found


def good(method: str, rank: int) -> dict[str, object]:
    """The report of a worker that did everything."""
    sums = {"weights": f"sum {rank}", "weights_before": f"sum {rank}"} if method == "torpor_after_wake" else {}
    held = {"held_bytes": 0} if method == "torpor_let_go" else {}
    return {"rank": rank, **sums, **held}


def calls_of(engine: Engine, report: Callable[[str, int], dict[str, object] | None], **options: Any) -> list[str]:
    """The management calls of a sleep and a wake; `report` gives each worker's answer."""
    calls: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        target, body = request.url.raw_path.decode(), json.loads(request.content or b"null")
        if target != "/collective_rpc":
            calls.append(target)
            return httpx.Response(200, json=like_vllm(target))
        calls.append(body["method"])
        if not body["method"].startswith("torpor"):
            return httpx.Response(200, json={"results": [None] * RANKS})
        reports = [report(body["method"], rank) for rank in range(RANKS)]
        return httpx.Response(200, json={"results": [one for one in reports if one is not None]})

    lifecycle = Lifecycle(deployment(**options))
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://engine") as client:
        lifecycle.pre_snapshot(engine, client)
        lifecycle.post_restore(engine, client)
    return calls


@pytest.mark.parametrize(
    ("level", "wake"),
    [
        (1, ["/wake_up"]),
        (2, ["/wake_up?tags=weights", "reload_weights", "/wake_up?tags=kv_cache"]),
    ],
)
def test_ranks_let_go_after_the_sleep_and_take_back_before_the_wake(
    an_engine: Engine, level: int, wake: list[str]
) -> None:
    """Everything is checked before anything is released. The guard allows exactly these calls."""
    calls = calls_of(an_engine, good, sleep_level=level)
    sleep = ["torpor_before_sleep", f"/sleep?level={level}&mode=wait", "torpor_let_go"]
    assert calls == [*sleep, "torpor_take_back", *wake, "torpor_after_wake"]
    engine = deployment(sleep_level=level).engine
    assert isinstance(engine, VLLM)
    paths = [call.partition("?")[0] if call.startswith("/") else "/collective_rpc" for call in calls]
    assert [*engine.sleep_steps(), *engine.wake_steps()] == paths


@pytest.mark.parametrize(
    ("bad", "error", "said"),
    [
        (("torpor_before_sleep", None), EngineRequestError, "no report of rank 1"),
        (("torpor_let_go", {"rank": 1, "held_bytes": 7}), GpuSnapshotError, "rank 1 still holds 7 bytes"),
        (("torpor_let_go", {"rank": 1}), GpuSnapshotError, "rank 1 still holds None"),
        (("torpor_take_back", None), EngineRequestError, "no report of rank 1"),
        (
            ("torpor_after_wake", {"rank": 1, "weights": "a", "weights_before": "b"}),
            GpuSnapshotError,
            "rank 1 has the sum a and had b",
        ),
        (("torpor_after_wake", {"rank": 1}), GpuSnapshotError, "rank 1 has the sum None"),
        (
            ("torpor_after_wake", {"rank": 0, "weights": "a", "weights_before": "a"}),
            EngineRequestError,
            "report of rank 1",
        ),
    ],
)
def test_a_rank_that_reports_something_else_is_named(
    an_engine: Engine, bad: tuple[str, dict[str, object] | None], error: type[Exception], said: str
) -> None:
    """A worker that answers 200 proves nothing: what it says is compared."""
    method, answer = bad
    with pytest.raises(error, match=said):
        calls_of(an_engine, lambda name, rank: answer if (name, rank) == (method, 1) else good(name, rank))
