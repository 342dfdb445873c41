"""The stand-in's draft: it counts how many guesses are right, as engines do, and guesses nothing."""

from __future__ import annotations

import math

__all__ = ["Drafting"]

_RIGHT = 0.75
"""The share of a draft's guesses that are right while its weights are there."""


class Drafting:
    """What an engine counts of speculative decoding.

    Args:
        tokens: guesses for each step; 0 for an engine without a draft.

    Attributes:
        tokens: as given.
        steps: steps of the model in which something was guessed.
        accepted: guesses that were right.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.steps = self.accepted = 0
        self._right = _RIGHT

    def lose(self) -> None:
        """Be wrong from now on."""
        self._right = 0.0

    def answer(self, tokens: int) -> float | None:
        """Count an answer of so many tokens; return its tokens for each step, None without a draft."""
        if not self.tokens:
            return None
        steps = math.ceil(tokens / (1 + self.tokens * self._right))
        self.steps += steps
        self.accepted += tokens - steps
        return tokens / steps

    def metrics(self) -> str:
        """The counters of vLLM (v1/spec_decode/metrics.py); empty without a draft."""
        if not self.tokens:
            return ""
        labels = '{engine="0",model_name="standin"}'
        return (
            f"vllm:spec_decode_num_drafts_total{labels} {float(self.steps)}\n"
            f"vllm:spec_decode_num_accepted_tokens_total{labels} {float(self.accepted)}\n"
        )
