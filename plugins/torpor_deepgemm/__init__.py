"""DeepGEMM kernels compiled while the image is built, for Torpor: the plugin `DeepGEMM`.

The plugin is imported on first use: `torpor_deepgemm.watch` also runs as a bare file, in images without Torpor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor_deepgemm.plugin import DeepGEMM

__all__ = ["DeepGEMM"]


def __getattr__(name: str) -> object:
    if name == "DeepGEMM":
        from torpor_deepgemm.plugin import DeepGEMM  # noqa: PLC0415 - only where Torpor is installed

        return DeepGEMM
    raise AttributeError(f"module 'torpor_deepgemm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
