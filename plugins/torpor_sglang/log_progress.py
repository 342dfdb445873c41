"""What a line of SGLang's log says about how far a start is.

Lines of 0.5.6.post2, 0.5.16 and 0.5.23 (model_executor/model_runner.py, model_loader/weight_utils.py,
model_executor/*cuda_graph_runner.py, layers/deep_gemm_wrapper/compile_utils.py), progress bars of tqdm included.
"""

from __future__ import annotations

import re

__all__ = ["log_progress"]

_BAR = r":\s+(\d+)%.*?\b(\d+)/(\d+)\b"
_LINES = (
    (re.compile(rf"(?:Loading|loading) .*shards{_BAR}"), "loading weights, {1} of {2} files"),
    (re.compile(r"Load weight begin"), "loading weights"),
    (re.compile(r"Load weight end"), "weights are loaded"),
    (re.compile(rf"Capturing batches .*{_BAR}"), "capturing CUDA graphs, {1} of {2}"),
    (re.compile(r"Capture .*?CUDA graph begin", re.IGNORECASE), "capturing CUDA graphs"),
    (re.compile(r"DeepGEMM JIT Pre-Compile"), "compiling DeepGEMM kernels"),
    (re.compile(r"KV Cache is allocated"), "the KV cache is allocated"),
)


def log_progress(line: str) -> str:
    """A few words, or nothing for a line that says nothing about it."""
    for pattern, words in _LINES:
        if match := pattern.search(line):
            return words.format(*match.groups())
    return ""
