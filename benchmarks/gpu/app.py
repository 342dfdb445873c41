"""The flagship's model and engine flags on Hopper cards, with weights made on the spot.

The benchmark says by TORPOR_GPU_BENCH (JSON) what varies: `gpu`, `model` (folder), `python`, `port`, `version`, `canary_mismatch`,
`engine` (`sglang`, `vllm`, or `standin` for a trial of the benchmark's own code), `ranks` (GPUs that share the model),
`gpu_snapshot`, and `options` of the engine's plugin over those below.
"""

import json
import os

from torpor import Deployment, EnginePlugin, Model, Scaling
from torpor.testing import StandIn
from torpor_sglang import SGLang
from torpor_vllm import VLLM

varied = json.loads(os.environ.get("TORPOR_GPU_BENCH", "{}"))
ranks = varied.get("ranks", 1)
stand_in = varied.get("engine") == "standin"
common = {
    "image": "local",  # the engine of this machine
    "python": varied.get("python", "python3"),
    "tensor_parallel": ranks,
    **({"version": varied["version"]} if varied.get("version") else {}),
}
sglang = {
    "version": "0.5.16",
    **common,
    "cuda_graph_max_batch": 1000,
    "dummy_weights": True,
    # FA3's library (1.1 GB) and a grammar backend are not wanted for these figures; both can be left to SGLang.
    "attention_backend": "triton",
    "extra_args": ("--grammar-backend", "none"),
}
vllm = {**common, "memory_utilization": 0.85}


def engine() -> EnginePlugin:
    """The engine's plugin with its options."""
    if stand_in:
        return StandIn()
    chosen = {**(vllm if varied.get("engine") == "vllm" else sglang), **varied.get("options", {})}
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}
    return VLLM(**options) if varied.get("engine") == "vllm" else SGLang(**options)


gpu = varied.get("gpu", "H100")
deployment = Deployment(
    name="gpu-bench",
    model=Model(path=varied.get("model", "/tmp/qwen3-8b-fp8"), served_name="qwen3-8b-fp8"),
    gpu=None if stand_in else gpu if ranks == 1 else f"{gpu}:{ranks}",
    gpu_snapshot=None if stand_in else varied.get("gpu_snapshot"),
    port=varied.get("port", 8000),
    scaling=Scaling(target_concurrency=10, max_concurrency=1000),
    startup_timeout_s=500,
    canary_mismatch=varied.get("canary_mismatch", "fail"),
    plugins=(engine(),),
)
