"""Runs in an engine's Python: which damages the checksum of weights misses, as JSON."""

from __future__ import annotations

import json
import sys

import torch
from benchmarks.canary_damages import Damages

from torpor.launcher import tensor_sums, word_sums


def weights() -> dict[str, torch.Tensor]:
    """The parameters of a small model, named as a Qwen3's are; one matrix has an odd number of bytes."""
    torch.manual_seed(0)
    names = {f"model.layers.{layer}.self_attn.{part}_proj.weight": (64, 64) for layer in range(2) for part in "qkv"}
    shapes = {**names, "model.embed_tokens.weight": (128, 64), "model.norm.weight": (64,), "lm_head.weight": (127, 65)}
    return {name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}


def main() -> None:
    """Damage, sum, print."""
    whole, missed = weights(), []
    right = tensor_sums(whole.items())
    for damage in Damages(whole, 12).all():
        for trial in range(damage.trials):
            damaged = {name: one.clone() for name, one in whole.items()}
            damage.inflict(damaged)
            same = all(
                torch.equal(damaged[name].view(torch.int16), one.view(torch.int16)) for name, one in whole.items()
            )
            if not same and tensor_sums(damaged.items()) == right:
                missed.append(f"{damage.kind} {trial}")
    words = torch.arange(3_000_000)
    exchanged = words.clone()
    exchanged[[5, 2_500_000]] = exchanged[[2_500_000, 5]]
    name, one = next(iter(whole.items()))
    told = {
        "missed": missed,
        "again": tensor_sums(weights().items()) == right,
        "exchange": word_sums([words]) != word_sums([exchanged]),
        "order": word_sums([words, exchanged]) == [*word_sums([words]), *word_sums([exchanged])],
        "empty": word_sums([words[:0]]) == [0],
        "shared": tensor_sums([(name, one), ("view", one[:3])]) == tensor_sums([(name, one)]),
    }
    json.dump(told, sys.stdout)


main()
