"""Folders for all kernel caches of SGLang, under one root.

The defaults differ between versions (DeepGEMM: `~/.cache/deep_gemm` up to 0.5.16, `~/.cache/sglang/deep_gemm` in 0.5.23).
"""

from __future__ import annotations

from torpor.engine_plugins import DEEP_GEMM_FOLDER, shared_cache_env

__all__ = ["cache_env"]


def cache_env(root: str) -> dict[str, str]:
    """Return variables that put every cache under `root`, an absolute path.

    Sources: SGLang `srt/environ.py` and `compile_utils.py` of each version.
    """
    return {
        # SGLang overwrites DG_JIT_CACHE_DIR at import; only its own variable counts, in all three versions.
        "SGLANG_DG_CACHE_DIR": f"{root}/{DEEP_GEMM_FOLDER}",
        "SGLANG_CACHE_DIR": f"{root}/sglang",
        "SGLANG_JIT_CACHE_DIR": f"{root}/sglang/jit",  # 0.5.23: does not follow SGLANG_CACHE_DIR
        **shared_cache_env(root),
    }
