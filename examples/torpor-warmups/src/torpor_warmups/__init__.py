"""Warm-ups that an engine's own lacks: `AdapterPrompts` for LoRA adapters, `GrammarWarmup` for JSON schemas."""

from torpor_warmups.adapter_prompts import AdapterPrompts
from torpor_warmups.grammar import GrammarWarmup

__all__ = ["AdapterPrompts", "GrammarWarmup"]
