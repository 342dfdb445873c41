"""The flagship's model and engine flags on Hopper cards, with weights made on the spot.

The benchmark says by TORPOR_GPU_BENCH (JSON) what varies: `name` and `served` (of the deployment and its model), `gpu`, `model`
(folder), `python`, `port`, `version`, `canary_mismatch`, `engine` (`sglang`, `vllm`, or `standin` for a trial of the benchmark's
own code), `ranks` (GPUs that share the model), `gpus` (names of those to use; empty for all), `gpu_snapshot`, `flags` (further ones
of the engine), and `options` of the engine's plugin over those below.
"""

import json
import os
from typing import Any

from torpor import Deployment, EnginePlugin, Model, Scaling
from torpor.testing import StandIn
from torpor_sglang import SGLang
from torpor_vllm import VLLM

VARIABLE = "TORPOR_GPU_BENCH"
SERVED = "qwen3-8b-fp8"


def deployment_of(varied: dict[str, Any]) -> Deployment:
    """The deployment with what varies."""
    ranks, stand_in, gpu = varied.get("ranks", 1), varied.get("engine") == "standin", varied.get("gpu", "H100")
    return Deployment(
        name=varied.get("name", "gpu-bench"),
        model=Model(path=varied.get("model", "/tmp/qwen3-8b-fp8"), served_name=varied.get("served", SERVED)),
        gpu=None if stand_in else gpu if ranks == 1 else f"{gpu}:{ranks}",
        gpu_snapshot=None if stand_in else varied.get("gpu_snapshot"),
        port=varied.get("port", 8000),
        scaling=Scaling(target_concurrency=10, max_concurrency=1000),
        startup_timeout_s=500,
        canary_mismatch=varied.get("canary_mismatch", "fail"),
        plugins=(_engine(varied),),
    )


def _engine(varied: dict[str, Any]) -> EnginePlugin:
    """The engine's plugin with its options."""
    if varied.get("engine") == "standin":
        return StandIn()
    is_vllm = varied.get("engine") == "vllm"
    chosen = {
        "image": "local",  # the engine of this machine
        "python": varied.get("python", "python3"),
        "tensor_parallel": varied.get("ranks", 1),
        **({"memory_utilization": 0.85} if is_vllm else _SGLANG),
        **({"version": varied["version"]} if varied.get("version") else {}),
        **varied.get("options", {}),
    }
    chosen["extra_args"] = (*chosen.get("extra_args", ()), *varied.get("flags", ()))
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    return VLLM(**options) if is_vllm else SGLang(**options)


_SGLANG = {
    "version": "0.5.16",
    "cuda_graph_max_batch": 1000,
    "dummy_weights": True,
    # FA3's library (1.1 GB) and a grammar backend are not wanted for these figures; both can be left to SGLang.
    "attention_backend": "triton",
    "extra_args": ("--grammar-backend", "none"),
}

deployment = deployment_of(json.loads(os.environ.get(VARIABLE, "{}")))
