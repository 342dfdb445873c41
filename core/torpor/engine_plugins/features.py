"""What a request may ask for beside its text, by name. Light: every engine plugin imports it."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["FEATURES", "MEDIA", "Feature", "Medium"]

Feature = Literal[
    "json_schema",
    "json_object",
    "regex",
    "tools",
    "logprobs",
    "n",
    "stop",
    "seed",
    "penalties",
    "repetition",
    "sampling",
    "logit_bias",
    "min_tokens",
]
"""What a request may ask for, by the name that `warmup_features` has for it."""

FEATURES: tuple[Feature, ...] = get_args(Feature)
"""All of them."""

Medium = Literal["image", "audio"]
"""What a model may take beside text."""

MEDIA: tuple[Medium, ...] = get_args(Medium)
"""All of them."""
