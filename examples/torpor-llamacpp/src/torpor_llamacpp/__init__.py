"""llama.cpp for Torpor: the engine plugin `LlamaCpp`, and its server `python -m torpor_llamacpp.serve`."""

from torpor_llamacpp.plugin import LlamaCpp

__all__ = ["LlamaCpp"]
