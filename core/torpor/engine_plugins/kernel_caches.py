"""Folders for the kernel caches that engines share, under one root.

By default they are spread over `~/.cache`, `~/.triton`, `/tmp` and `~/.nv`. A variable that an engine does not read is harmless,
so all of them are set; the engine's plugin adds its own.
"""

from __future__ import annotations

__all__ = ["COMPILE_LINES", "DEEP_GEMM_FOLDER", "shared_cache_env"]

DEEP_GEMM_FOLDER = "deep_gemm"
"""Folder of DeepGEMM's kernels, below the folder of all kernel caches."""

COMPILE_LINES = (
    r"Loading JIT ops: ",  # flashinfer jit/core.py
    r"DeepGEMM JIT (?:Pre-Compile|Compiling|Single Kernel)",  # SGLang deep_gemm_wrapper/compile_utils.py
    r"Triton autotuning for function",  # triton runtime/autotuner.py, with TRITON_PRINT_AUTOTUNING=1
    r"during inference: .*latency spike",  # vLLM utils/jit_monitor.py: Triton, CuTe, TileLang
    r"torch\._dynamo hit config\.\w+_limit",  # torch: a function that is compiled again for each shape
)
"""What the log of an engine says when it compiles: regular expressions."""


def shared_cache_env(root: str) -> dict[str, str]:
    """Variables that put every shared cache under `root`, an absolute path.

    Sources: triton `knobs.py` 3.9; flashinfer `jit/env.py` 0.5.3 and 0.7.2; apache-tvm-ffi `cpp/extension.py` 0.1.11;
    torch `_inductor/runtime/cache_dir_utils.py`; CUDA's programming guide, appendix "environment variables".
    """
    return {
        "TRITON_CACHE_DIR": f"{root}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{root}/inductor",
        "FLASHINFER_WORKSPACE_BASE": f"{root}/flashinfer",
        "TVM_FFI_CACHE_DIR": f"{root}/tvm-ffi",
        "CUDA_CACHE_PATH": f"{root}/cuda",
    }
