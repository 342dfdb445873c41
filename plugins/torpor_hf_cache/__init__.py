"""Weights of the Hugging Face hub on a volume, for Torpor: the plugin `HFCache`.

The plugin is imported on first use: `torpor_hf_cache.download` also runs as a bare file, in images without Torpor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor_hf_cache.plugin import HFCache

__all__ = ["HFCache"]


def __getattr__(name: str) -> object:
    if name == "HFCache":
        from torpor_hf_cache.plugin import HFCache  # noqa: PLC0415 - only where Torpor is installed

        return HFCache
    raise AttributeError(f"module 'torpor_hf_cache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
