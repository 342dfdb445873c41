"""The flagship's model on vLLM on one Hopper card, for rows `vllm-1` and `vllm-2` of the GPU benchmark.

A plugin as a third party would write its first: it starts vLLM's own server behind the guard (vllm_serve.py) and calls the
routes of vLLM's sleep mode. Options come by TORPOR_GPU_BENCH as in `app.py`: `level` 1 keeps the weights in host memory and so in
the snapshot, 2 drops them and reads them again from the model's folder after a wake; `load_format` and `flags` are vLLM's.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from typing_extensions import override

from torpor import Deployment, Engine, EnginePlugin, ImagePatch, Model, Scaling, hookimpl, start_engine
from torpor.guard import GuardRules

if TYPE_CHECKING:
    import httpx

    from torpor import Recipe

ENV = {
    "VLLM_SERVER_DEV_MODE": "1",  # /sleep, /wake_up, /collective_rpc
    "VLLM_NO_USAGE_STATS": "1",
    # What a machine without flashinfer and without a compile of DeepGEMM's kernels wants: FP8 matrices by CUTLASS.
    "VLLM_USE_DEEP_GEMM": "0",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
FLAGS = ("--enable-sleep-mode", "--gpu-memory-utilization", "0.85")


@dataclass(frozen=True, kw_only=True)
class SleepingVLLM(EnginePlugin):
    """vLLM with its sleep mode.

    Attributes:
        level: how deep it sleeps: 1 or 2.
        load_format: how the weights are read.
        flags: further flags of `vllm serve`.
    """

    plugin_name: ClassVar[str] = "sleeping_vllm"
    supports_sleep: ClassVar[bool] = True
    public_paths: ClassVar[tuple[str, ...]] = ("/v1/chat/completions", "/v1/completions", "/v1/models")
    ready_path: ClassVar[str] = "/v1/models"
    guarded: ClassVar[bool] = True

    level: int = 1
    load_format: str = "auto"
    flags: tuple[str, ...] = ()

    @override
    def engine_argv(self, deployment: Deployment, recipe: Recipe) -> tuple[str, ...]:
        model = deployment.model
        named = (
            "--served-model-name",
            model.served_name,
            "--port",
            str(deployment.port),
            "--load-format",
            self.load_format,
        )
        serve = (sys.executable, "-m", "benchmarks.gpu.vllm_serve", "serve", model.source)
        return (*serve, *named, *FLAGS, *self.flags, *recipe.engine_args)

    @hookimpl
    @override
    def prepare_image(self, deployment: Deployment) -> ImagePatch:
        return ImagePatch(env=ENV)

    @hookimpl
    @override
    def launch(self, deployment: Deployment, recipe: Recipe) -> Engine:
        wake = ("/wake_up",) if self.level == 1 else ("/wake_up", "/collective_rpc", "/wake_up")
        rules = GuardRules(public=self.public_paths, sleep=("/sleep",), wake=wake)
        return start_engine(self.engine_argv(deployment, recipe), env=recipe.env, guard=rules)

    @hookimpl
    @override
    def warmup(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        message = {"role": "user", "content": "Hello."}
        body = {"model": deployment.model.served_name, "messages": [message], "max_tokens": 16}
        client.post("/v1/chat/completions", json=body).raise_for_status()

    @hookimpl(trylast=True)
    @override
    def pre_snapshot(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        client.post(f"/sleep?level={self.level}").raise_for_status()

    @hookimpl(tryfirst=True)
    @override
    def post_restore(self, deployment: Deployment, engine: Engine, client: httpx.Client) -> None:
        if self.level == 1:
            client.post("/wake_up").raise_for_status()
            return
        client.post("/wake_up?tags=weights").raise_for_status()
        client.post("/collective_rpc", json={"method": "reload_weights"}).raise_for_status()
        client.post("/wake_up?tags=kv_cache").raise_for_status()


varied = cast("dict[str, object]", json.loads(os.environ.get("TORPOR_GPU_BENCH", "{}")))
chosen = cast("dict[str, str | int | list[str]]", varied.get("options", {}))

deployment = Deployment(
    name="gpu-bench-vllm",
    model=Model(path=str(varied.get("model", "/tmp/qwen3-8b-fp8")), served_name="qwen3-8b-fp8"),
    gpu=str(varied.get("gpu", "H100")),
    port=int(cast("int", varied.get("port", 8000))),
    scaling=Scaling(target_concurrency=10, max_concurrency=256),
    startup_timeout_s=500,
    plugins=(
        SleepingVLLM(
            level=int(cast("int", chosen.get("level", 1))),
            load_format=str(chosen.get("load_format", "auto")),
            flags=tuple(cast("list[str]", chosen.get("flags", []))),
        ),
    ),
)
