"""What a line of vLLM's log says about how far a start is.

Lines of 0.32.0 and 0.33.0 (v1/worker/*_model_runner.py, model_loader/weight_utils.py and default_loader.py,
model_executor/warmup/deep_gemm_warmup.py, v1/core/kv_cache_utils.py), progress bars of tqdm included.
"""

from __future__ import annotations

import re

__all__ = ["log_progress"]

_LINES = (
    (re.compile(r"Loading .*shards:\s+\d+% Completed \| (\d+)/(\d+)"), "loading weights, {0} of {1} files"),
    (re.compile(r"Starting to load model"), "loading weights"),
    (re.compile(r"Loading weights took"), "weights are loaded"),
    (
        re.compile(r"Capturing CUDA graphs \((.+?)\):\s+\d+%.*?\b(\d+)/(\d+)\b"),
        "capturing CUDA graphs ({0}), {1} of {2}",
    ),
    (re.compile(r"DeepGEMM warmup:\s+(\d+)%"), "compiling DeepGEMM kernels, {0} %"),
    (re.compile(r"KV cache size: [\d,]+ tokens"), "the KV cache is allocated"),
)


def log_progress(line: str) -> str:
    """A few words, or nothing for a line that says nothing about it."""
    for pattern, words in _LINES:
        if match := pattern.search(line):
            return words.format(*match.groups())
    return ""
