"""Reads the progress of a start of SGLang from its log.

Lines of 0.5.6.post2, 0.5.16 and 0.5.23 (model_executor/model_runner.py, model_loader/weight_utils.py,
model_executor/*cuda_graph_runner.py, layers/deep_gemm_wrapper/compile_utils.py), progress bars of tqdm included.
"""

from __future__ import annotations

__all__ = ["PROGRESS_LINES"]

_BAR = r":\s+(\d+)%.*?\b(\d+)/(\d+)\b"
PROGRESS_LINES = (
    (rf"(?:Loading|loading) .*shards{_BAR}", "loading weights, {1} of {2} files"),
    (r"Load weight begin", "loading weights"),
    (r"Load weight end", "weights are loaded"),
    (rf"Capturing batches .*{_BAR}", "capturing CUDA graphs, {1} of {2}"),
    (r"(?i)Capture .*?CUDA graph begin", "capturing CUDA graphs"),
    (r"DeepGEMM JIT Pre-Compile", "compiling DeepGEMM kernels"),
    (r"KV Cache is allocated", "the KV cache is allocated"),
)
