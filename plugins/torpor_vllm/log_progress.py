"""Reads the progress of a start of vLLM from its log.

Lines of 0.32.0 and 0.33.0 (v1/worker/*_model_runner.py, model_loader/weight_utils.py and default_loader.py,
model_executor/warmup/deep_gemm_warmup.py, v1/core/kv_cache_utils.py), progress bars of tqdm included.
"""

from __future__ import annotations

__all__ = ["PROGRESS_LINES"]

PROGRESS_LINES = (
    (r"Loading .*shards:\s+\d+% Completed \| (\d+)/(\d+)", "loading weights, {0} of {1} files"),
    (r"Starting to load model", "loading weights"),
    (r"Loading weights took", "weights are loaded"),
    (
        r"Capturing CUDA graphs \((.+?)\):\s+\d+%.*?\b(\d+)/(\d+)\b",
        "capturing CUDA graphs ({0}), {1} of {2}",
    ),
    (r"DeepGEMM warmup:\s+(\d+)%", "compiling DeepGEMM kernels, {0} %"),
    (r"KV cache size: [\d,]+ tokens", "the KV cache is allocated"),
)
