"""vLLM for Torpor: the engine plugin `VLLM`, and the launcher `python -m torpor_vllm.serve`.

The plugin is imported on first use: the launcher runs in the engine's own environment, which need not have pluggy and httpx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor import lazy_names

if TYPE_CHECKING:
    from torpor_vllm.plugin import VLLM

__all__ = ["VLLM"]

__getattr__, __dir__ = lazy_names(__name__, {"torpor_vllm.plugin": ("VLLM",)})
