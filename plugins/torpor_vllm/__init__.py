"""vLLM for Torpor: the engine plugin `VLLM`, and the launcher `python -m torpor_vllm.serve`.

Lazy (PEP 562): the launcher runs in the engine's own environment, where pluggy and httpx need not be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor_vllm.plugin import VLLM

__all__ = ["VLLM"]


def __getattr__(name: str) -> object:
    if name == "VLLM":
        from torpor_vllm.plugin import VLLM  # noqa: PLC0415 - the point of this function

        return VLLM
    raise AttributeError(f"module 'torpor_vllm' has no attribute {name!r}")
