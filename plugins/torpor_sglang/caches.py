"""Homes for every kernel cache of SGLang, one root for all.

The defaults are spread over `~/.cache`, `~/.triton`, `/tmp` and `~/.nv`, and differ between versions (DeepGEMM:
`~/.cache/deep_gemm` up to 0.5.16, `~/.cache/sglang/deep_gemm` in 0.5.23). Setting a variable that a version does not
read is harmless, so all of them are always set.
"""

from __future__ import annotations

__all__ = ["DEEP_GEMM_FOLDER", "cache_env"]

DEEP_GEMM_FOLDER = "deep_gemm"


def cache_env(root: str) -> dict[str, str]:
    """Variables that put every cache under `root`, an absolute path.

    Sources: SGLang `srt/environ.py` and `compile_utils.py` of each version; triton `knobs.py` 3.9; flashinfer
    `jit/env.py` 0.5.3 and 0.7.2; apache-tvm-ffi `cpp/extension.py` 0.1.11.
    """
    return {
        # SGLang overwrites DG_JIT_CACHE_DIR at import; only its own variable counts, in all three versions.
        "SGLANG_DG_CACHE_DIR": f"{root}/{DEEP_GEMM_FOLDER}",
        "SGLANG_CACHE_DIR": f"{root}/sglang",
        "SGLANG_JIT_CACHE_DIR": f"{root}/sglang/jit",  # 0.5.23: does not follow SGLANG_CACHE_DIR
        "TRITON_CACHE_DIR": f"{root}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{root}/inductor",
        "FLASHINFER_WORKSPACE_BASE": f"{root}/flashinfer",
        "TVM_FFI_CACHE_DIR": f"{root}/tvm-ffi",
        "CUDA_CACHE_PATH": f"{root}/cuda",
    }
