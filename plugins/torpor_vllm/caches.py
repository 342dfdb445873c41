"""Folders for all kernel caches of vLLM, under one root."""

from __future__ import annotations

from torpor.engine_plugins import DEEP_GEMM_FOLDER, shared_cache_env

__all__ = ["COMPILE_FOLDER", "cache_env"]

COMPILE_FOLDER = "vllm/torch_compile_cache"
"""Where a start with torch.compile leaves its results under the root (compilation/backends.py)."""


def cache_env(root: str) -> dict[str, str]:
    """Variables that put every cache under `root`, an absolute path.

    Sources: vLLM 0.33.0 `envs.py:713` (VLLM_CACHE_ROOT), `utils/deep_gemm.py:281` (DeepGEMM's own variable is kept if set).
    """
    return {
        "VLLM_CACHE_ROOT": f"{root}/vllm",
        "DG_JIT_CACHE_DIR": f"{root}/{DEEP_GEMM_FOLDER}",
        **shared_cache_env(root),
    }
