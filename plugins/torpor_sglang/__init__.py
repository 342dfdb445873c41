"""SGLang for Torpor: the engine plugin `SGLang`, and the launcher `python -m torpor_sglang.serve`.

Lazy (PEP 562): the launcher runs in the engine's own environment, where pluggy and httpx need not be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor_sglang.plugin import SGLang

__all__ = ["SGLang"]


def __getattr__(name: str) -> object:
    if name == "SGLang":
        from torpor_sglang.plugin import SGLang  # noqa: PLC0415 - the point of this function

        return SGLang
    raise AttributeError(f"module 'torpor_sglang' has no attribute {name!r}")
