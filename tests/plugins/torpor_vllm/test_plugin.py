"""The flags, variables and calls of the plugin, for its options."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from torpor import (
    Adapter,
    ConfigurationError,
    Deployment,
    Engine,
    EngineRequestError,
    GpuSnapshotError,
    Model,
    start_engine,
)
from torpor.build_steps.command import step_command
from torpor.lifecycle import Lifecycle
from torpor_deepgemm import DeepGEMM
from torpor_vllm import VLLM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from torpor import Plugin

KERNELS = "/opt/torpor/kernels"
AWAKE, ASLEEP = {"status": "awake"}, {"status": "sleeping"}


@pytest.fixture
def an_engine() -> Iterator[Engine]:
    """Any process: these tests only use its HTTP calls."""
    engine = start_engine((sys.executable, "-c", "import time; time.sleep(60)"))
    yield engine
    engine.terminate(0.0)


def deployment(*others: Plugin, **options: Any) -> Deployment:
    return Deployment(name="d", model=Model(path="/model"), gpu="H100!", plugins=(*others, VLLM(**options)))


def env_of(**options: Any) -> dict[str, str]:
    return dict(Lifecycle(deployment(**options)).recipe().env)


def argv_of(**options: Any) -> tuple[str, ...]:
    made = deployment(**options)
    return made.engine.engine_argv(made, Lifecycle(made).recipe())


def calls_of(
    engine: Engine, answers: Callable[[str], object], *, sleep: bool = True, wake: bool = True, **options: Any
) -> list[tuple[str, object]]:
    """Return the management calls of a sleep and a wake; `answers` maps path and query to the JSON answer."""
    calls: list[tuple[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        target = request.url.raw_path.decode()
        calls.append((target, json.loads(request.content or b"null")))
        return httpx.Response(200, json=answers(target))

    lifecycle = Lifecycle(deployment(**options))
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://engine") as client:
        if sleep:
            lifecycle.pre_snapshot(engine, client)
        if wake:
            lifecycle.post_restore(engine, client)
    return calls


def like_vllm(target: str) -> object:
    """Return the answers of 0.33.0 (entrypoints/serve/dev/sleep/api_router.py)."""
    if target == "/collective_rpc":
        return {"results": [{"rank": 0, "weights": "5eed", "weights_before": "5eed", "held_bytes": 0}]}
    return ASLEEP if target.startswith("/sleep") or target.endswith("tags=weights") else AWAKE


def test_level_1_wakes_everything_at_once_and_renews_the_workers(an_engine: Engine) -> None:
    """Weights come back from host memory, then each replica gets its own random state."""
    *calls, renewal = calls_of(an_engine, like_vllm)
    note = ("/collective_rpc", {"method": "torpor_note_weights", "args": []})
    freed = ("/collective_rpc", {"method": "torpor_let_go", "args": []})
    assert calls == [note, ("/sleep?level=1&mode=wait", None), freed, ("/wake_up", None)]
    path, body = renewal
    assert path == "/collective_rpc"
    assert isinstance(body, dict)
    assert (body["method"], 0 <= int(body["args"][0]) < 2**32) == ("torpor_after_wake", True)


def test_other_weights_after_a_wake_are_an_error(an_engine: Engine) -> None:
    """The worker sums its weights before the sleep and after the wake; a level 2 whose files have changed is noticed."""

    def other_weights(target: str) -> object:
        report = {"rank": 0, "weights": "bad", "weights_before": "5eed", "held_bytes": 0}
        return {"results": [report]} if target == "/collective_rpc" else like_vllm(target)

    with pytest.raises(GpuSnapshotError, match=r"woke with other weights .*rank 0 has the sum bad and had 5eed"):
        calls_of(an_engine, other_weights)


def test_every_wake_sets_another_seed(an_engine: Engine) -> None:
    """Replicas of one snapshot would otherwise sample the same text."""
    seeds = {str(calls_of(an_engine, like_vllm, sleep=False)[-1][1]) for _ in range(3)}
    assert len(seeds) == 3


def test_level_2_reads_the_weights_again_before_it_wakes_the_kv_cache(an_engine: Engine) -> None:
    """The order is that of vLLM's snapshots (vllm/snapshot/server.py): wake weights, read them, wake KV cache."""
    assert [path for path, _ in calls_of(an_engine, like_vllm, sleep_level=2)] == [
        "/collective_rpc",
        "/sleep?level=2&mode=wait",
        "/collective_rpc",
        "/wake_up?tags=weights",
        "/collective_rpc",
        "/wake_up?tags=kv_cache",
        "/collective_rpc",
    ]
    assert calls_of(an_engine, like_vllm, sleep_level=2)[4][1] == {"method": "reload_weights"}


def test_a_sleep_that_frees_nothing_is_an_error(an_engine: Engine) -> None:
    """VLLM says that it sleeps, and its worker counts what is still mapped."""

    def holding(target: str) -> object:
        report = {"rank": 0, "weights": "5eed", "weights_before": "5eed", "held_bytes": 9_000_000_000}
        return {"results": [report]} if target == "/collective_rpc" else like_vllm(target)

    with pytest.raises(GpuSnapshotError, match="rank 0 still holds 9000000000 bytes"):
        calls_of(an_engine, holding)


def test_level_2_keeps_a_draft_models_weights() -> None:
    """`reload_weights` reads the target's alone (v1/worker/gpu_worker.py), so the draft's are kept. A user's choice stays."""
    draft = ("--speculative-config", '{"model": "/draft", "num_speculative_tokens": 3}')
    assert argv_of(sleep_level=2, extra_args=draft)[-2:] == ("--sleep-preserve-parameter-names", "draft.*")
    own = (*draft, "--sleep-preserve-parameter-names", "*")
    assert argv_of(sleep_level=2, extra_args=own)[-2:] == own[-2:]
    for options in ({"sleep_level": 2}, {"sleep_level": 1, "extra_args": draft}):
        assert "--sleep-preserve-parameter-names" not in argv_of(**options)


def test_level_2_with_adapters_is_refused() -> None:
    """Nothing would load the adapters again."""
    made = Deployment(
        name="d",
        model=Model(path="/m", adapters={"sql": Adapter(path="/adapters/sql")}),
        plugins=(VLLM(sleep_level=2),),
        gpu="H100!",
    )
    (found,) = made.engine.check(made)
    assert (found.level, found.what) == ("error", "adapters")
    assert "drops the adapters' weights" in found.seen
    assert found.cure == "use sleep_level=1 with adapters"
    with pytest.raises(ConfigurationError, match=r"is to load adapters, and VLLM\.sleep_level is 2"):
        made.engine.engine_argv(made, Lifecycle(made).recipe())


@pytest.mark.parametrize("level", [1, 2])
def test_the_guard_allows_exactly_the_calls_of_a_sleep_and_a_wake(an_engine: Engine, level: int) -> None:
    """Each is allowed once, in this order."""
    made = deployment(sleep_level=level)
    engine = made.engine
    assert isinstance(engine, VLLM)
    rules = engine.guard_rules(made)
    paths = [path.partition("?")[0] for path, _ in calls_of(an_engine, like_vllm, sleep_level=level)]
    assert (*rules.sleep, *rules.wake) == tuple(paths)


@pytest.mark.parametrize(
    ("sleep", "answer", "said"),
    [(True, AWAKE, "told to sleep and answered"), (False, ASLEEP, "woken and answered .* it does not serve")],
)
def test_an_engine_that_does_not_sleep_or_wake_is_an_error(
    an_engine: Engine, sleep: bool, answer: object, said: str
) -> None:
    """Status 200 does not prove it: vLLM only warns and answers 200 if there is nothing to do."""
    with pytest.raises(EngineRequestError, match=said):
        calls_of(
            an_engine,
            lambda target: like_vllm(target) if target == "/collective_rpc" else answer,
            sleep=sleep,
            wake=not sleep,
        )


def test_the_environment_enables_sleep_and_disables_what_snapshots_cannot_hold() -> None:
    """Development mode adds sleep and wake. Usage reports and the pool of compile workers are off; only loopback is used."""
    env = env_of()
    assert {name: env[name] for name in ("VLLM_SERVER_DEV_MODE", "VLLM_NO_USAGE_STATS", "VLLM_HOST_IP")} == {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",
    }
    assert (env["VLLM_WORKER_MULTIPROC_METHOD"], env["TORCHINDUCTOR_COMPILE_THREADS"]) == ("spawn", "1")
    assert (env["VLLM_CACHE_ROOT"], env["DG_JIT_CACHE_DIR"]) == (f"{KERNELS}/vllm", f"{KERNELS}/deep_gemm")
    assert "VLLM_ENABLE_STARTUP_PLAN" not in env
    assert env_of(startup_plan=True)["VLLM_ENABLE_STARTUP_PLAN"] == "1"


def test_a_cpu_has_no_sleep_mode_and_no_image() -> None:
    """There vLLM refuses the flag, and its sleep only pauses. Idle threads do not spin."""
    assert "--enable-sleep-mode" in argv_of()
    assert "--enable-sleep-mode" not in argv_of(device="cpu")
    assert env_of(device="cpu")["OMP_WAIT_POLICY"] == "passive"
    assert Lifecycle(deployment(device="cpu")).recipe().image.base is None
    assert Lifecycle(deployment(version="0.32.0")).recipe().image.base == "vllm/vllm-openai:v0.32.0"


def test_options_become_flags() -> None:
    """The model is the first argument, without a flag."""
    argv = argv_of(eager=True, max_model_len=8, memory_utilization=0.5, kv_cache_bytes=9, load_strategy="prefetch")
    assert argv[:4] == ("python3", "-m", "torpor_vllm.serve", "/model")
    words = " ".join(argv)
    for flags in (
        "--enforce-eager",
        "--max-model-len 8",
        "--gpu-memory-utilization 0.5",
        "--kv-cache-memory-bytes 9",
        "--safetensors-load-strategy prefetch",
        "--worker-extension-cls torpor_vllm.worker.Renewal",
    ):
        assert flags in words
    assert "--disable-log-stats" in argv_of(metrics=False)
    assert "--sleep-mode-offload-cudagraph" in argv_of(offload_graphs=True)


def test_kernels_come_from_one_temporary_start_with_the_serving_flags() -> None:
    """It uses no port and nothing of Torpor's, which the image does not contain yet. The result is kept by key."""
    made = deployment(cuda_graph_max_batch=64, extra_args=("--tool-call-parser", "hermes"))
    [step] = Lifecycle(made).recipe().steps
    assert step.argv[:2] == ("python3", "-c")
    assert step.argv[3:] == (
        *("/model", "--served-model-name", "model", "--tensor-parallel-size", "1", "--max-num-seqs", "100"),
        *("--enable-sleep-mode", "--max-cudagraph-capture-size", "64", "--tool-call-parser", "hermes"),
    )
    assert "torpor" not in " ".join(step.argv)
    compile(step.argv[2], "one line", "exec")
    line = step_command(step, python="python3", runner="/opt/torpor/buildstep.py", script=None)
    assert not [token for token in line if "\n" in token or "$" in token]
    assert step.outputs == (f"{KERNELS}/vllm/torch_compile_cache",)
    assert step.cache is not None
    assert "engine=vllm 0.33.0" in step.cache.key


def test_kernels_are_compiled_by_one_plugin_only() -> None:
    """DeepGEMM runs the same command, so the engine has no step of its own; without compilation it has none either."""
    [step] = Lifecycle(deployment(DeepGEMM())).recipe().steps
    assert step.name == "compile DeepGEMM kernels"
    assert step.argv[:3] == ("--", "python3", "-c")
    assert Lifecycle(deployment(eager=True)).recipe().steps == ()
    assert Lifecycle(deployment(device="cpu")).recipe().steps == ()


@pytest.mark.parametrize(
    ("options", "shapes"),
    [({}, "full"), ({"fast_warmup": True}, "relax"), ({"precompile": False}, "skip")],
)
def test_the_deepgemm_options_set_vllms_variable(options: dict[str, bool], shapes: str) -> None:
    """The variable is VLLM_DEEP_GEMM_WARMUP of 0.33.0."""
    recipe = Lifecycle(deployment(DeepGEMM(**options))).recipe()  # type: ignore[arg-type] # flags
    assert recipe.env["VLLM_DEEP_GEMM_WARMUP"] == shapes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"version": "0.9.0"}, "version is '0.9.0'; supported are 0.33.0, 0.32.0"),
        ({"sleep_level": 0}, "sleep_level is 0; allowed are 1"),
        ({"sleep_level": 2, "dummy_weights": True}, "dummy_weights has none to read"),
        ({"offload_graphs": True, "eager": True}, "there are no CUDA graphs"),
        ({"compile_volume": "a/b"}, "compile_volume is 'a/b'; it has to be a volume's name"),
        ({"kv_cache_bytes": 0}, "kv_cache_bytes is 0; the lowest allowed value is 1"),
        ({"memory_utilization": 1.5}, "memory_utilization is 1.5; it has to be between 0 and 1"),
        ({"extra_args": ("--middleware", "x.Y")}, "outside the guard, which has to be the outermost layer"),
        ({"extra_args": ("--api_server_count=2",)}, "each server process would have its own guard, with its own state"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], said: str) -> None:
    """Each message says what to set."""
    with pytest.raises(ConfigurationError, match=said):
        VLLM(**options)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("(Worker pid=9) INFO [cpu_model_runner.py:68] Starting to load model /m...", "loading weights"),
        ("Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00]", "loading weights, 1 of 2 files"),
        ("INFO [default_loader.py:501] Loading weights took 0.01 seconds", "weights are loaded"),
        (
            "Capturing CUDA graphs (decode, FULL):  12%|#  | 3/24 [00:01<00:09]",
            "capturing CUDA graphs (decode, FULL), 3 of 24",
        ),
        ("DeepGEMM warmup:  40%|####", "compiling DeepGEMM kernels, 40 %"),
        ("INFO [kv_cache_utils.py:2327] CPU KV cache size: 2,097,152 tokens, Maximum", "the KV cache is allocated"),
        ("INFO 11-26 [entry.py:140] Starting vLLM server on http://127.0.0.1:8123", ""),
    ],
)
def test_progress_of_a_start_is_read_from_the_log(line: str, told: str) -> None:
    """The lines are those of 0.32.0 and 0.33.0."""
    assert VLLM().log_progress(line) == told
