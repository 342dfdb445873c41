"""The flagship's model and engine flags on one Hopper card, with weights made on the spot.

The benchmark says by TORPOR_GPU_BENCH (JSON) what varies: `gpu`, `model` (folder), `python`, `port`, `canary_mismatch`, and
`options` of the SGLang plugin over those below.
"""

import json
import os

from torpor import Deployment, Model, Scaling
from torpor_sglang import SGLang

varied = json.loads(os.environ.get("TORPOR_GPU_BENCH", "{}"))
options = {
    "version": "0.5.16",
    "image": "local",  # the engine of this machine
    "python": varied.get("python", "python3"),
    "cuda_graph_max_batch": 1000,
    "dummy_weights": True,
    # FA3's library (1.1 GB) and a grammar backend are not wanted for these figures; both can be left to SGLang.
    "attention_backend": "triton",
    "extra_args": ("--grammar-backend", "none"),
}

chosen = {**options, **varied.get("options", {})}

deployment = Deployment(
    name="gpu-bench",
    model=Model(path=varied.get("model", "/tmp/qwen3-8b-fp8"), served_name="qwen3-8b-fp8"),
    gpu=varied.get("gpu", "H100"),
    port=varied.get("port", 8000),
    scaling=Scaling(target_concurrency=10, max_concurrency=1000),
    startup_timeout_s=500,
    canary_mismatch=varied.get("canary_mismatch", "fail"),
    plugins=(SGLang(**{name: tuple(value) if isinstance(value, list) else value for name, value in chosen.items()}),),
)
