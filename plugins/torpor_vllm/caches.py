"""Folders for all kernel caches of vLLM, under one root."""

from __future__ import annotations

from torpor.engine_plugins import DEEP_GEMM_FOLDER, shared_cache_env

__all__ = ["COMPILE_FOLDER", "cache_env"]

COMPILE_FOLDER = "vllm/torch_compile_cache"
"""The folder under the root for the results of torch.compile (compilation/backends.py)."""


def cache_env(root: str) -> dict[str, str]:
    """Return variables that put every cache under `root`, an absolute path.

    Sources: vLLM 0.33.0 `envs.py:713` (VLLM_CACHE_ROOT), `utils/deep_gemm.py:281` (DeepGEMM's own variable is kept if set).
    """
    return {
        "VLLM_CACHE_ROOT": f"{root}/vllm",
        "DG_JIT_CACHE_DIR": f"{root}/{DEEP_GEMM_FOLDER}",
        **shared_cache_env(root),
    }
