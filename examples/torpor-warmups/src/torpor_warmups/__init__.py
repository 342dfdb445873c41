"""Warm-ups that an engine's own lacks: `LoraPreload` for adapters, `GrammarWarmup` for JSON schemas."""

from torpor_warmups.grammar import GrammarWarmup
from torpor_warmups.lora import LoraPreload

__all__ = ["GrammarWarmup", "LoraPreload"]
