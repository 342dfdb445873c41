"""Single damages of a model's weights, of the kinds that a wake can cause or that a canary may miss; for `benchmarks/canary.py`."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Weights = dict[str, torch.Tensor]

__all__ = ["Damage", "Damages"]

_SIGN_BIT, _TOP_EXPONENT_BIT, _MANTISSA_BIT = 15, 14, 3


class Damage(NamedTuple):
    """One kind of damage.

    Attributes:
        kind: what it does.
        trials: how often it is tried, each time somewhere else.
        inflict: changes the weights in place.
    """

    kind: str
    trials: int
    inflict: Callable[[Weights], None]


class Damages:
    """All kinds, from a fixed seed.

    Args:
        weights: of the undamaged model, in bfloat16, by name.
        trials: of each kind that depends on chance.
    """

    def __init__(self, weights: Weights, trials: int) -> None:
        self._chance = random.Random(3)
        self._generator = torch.Generator().manual_seed(3)
        self._trials = trials
        self._matrices = [name for name, one in weights.items() if one.dim() == 2 and "embed" not in name]
        self._norms = [name for name, one in weights.items() if one.dim() == 1]
        self._embedding = next(name for name in weights if "embed" in name)
        self._layers = sorted({int(name.split(".")[2]) for name in weights if ".layers." in name})

    def all(self) -> Iterator[Damage]:
        """Every kind."""
        for kind, inflict in self._of_one_place().items():
            yield Damage(kind, self._trials, inflict)
        for factor in (1.25, 2.0):
            yield Damage(
                f"V of all layers x{factor}", 1, partial(self._scale, part=".self_attn.v_proj.weight", factor=factor)
            )

    def _of_one_place(self) -> dict[str, Callable[[Weights], None]]:
        return {
            "sign bit of 1 weight": lambda w: self._flip(w, _SIGN_BIT),
            "top exponent bit of 1 weight": lambda w: self._flip(w, _TOP_EXPONENT_BIT),
            "mantissa bit of 1 weight": lambda w: self._flip(w, _MANTISSA_BIT),
            "1 weight := 0": lambda w: self._weight(w, 0.0),
            "1 weight := 100": lambda w: self._weight(w, 100.0),
            "1 row := 0": lambda w: self._row(w, self._matrix()),
            "1 embedding row := 0": lambda w: self._row(w, self._embedding),
            "4 KiB := 0": lambda w: self._range(w, 4096).zero_(),
            "4 KiB shuffled": lambda w: self._shuffle(self._range(w, 4096)),
            "64 KiB := 0": lambda w: self._range(w, 65536).zero_(),
            "1 norm value := 0": lambda w: self._weight(w, 0.0, self._norm()),
            "1 norm x1.1": lambda w: self._scale(w, self._norm(), 1.1),
            "1 norm x2": lambda w: self._scale(w, self._norm(), 2.0),
            "1 matrix x0.9": lambda w: self._scale(w, self._matrix(), 0.9),
            "1 matrix x2": lambda w: self._scale(w, self._matrix(), 2.0),
            "1 matrix x16": lambda w: self._scale(w, self._matrix(), 16.0),
            "K of 1 layer x2": lambda w: self._scale(w, self._attention("k"), 2.0),
            "V of 1 layer x0.5": lambda w: self._scale(w, self._attention("v"), 0.5),
            "V of 1 layer x2": lambda w: self._scale(w, self._attention("v"), 2.0),
            "V of 1 layer := 0": lambda w: self._scale(w, self._attention("v"), 0.0),
            "noise of 1 % everywhere": lambda w: self._noise(w, 0.01),
            "noise of 10 % everywhere": lambda w: self._noise(w, 0.1),
            "1 matrix random": lambda w: self._random(w, self._matrix()),
            "1 layer := 0": lambda w: self._scale(
                w, f".layers.{self._chance.choice(self._layers)}.", 0.0, matrices=True
            ),
        }

    def _matrix(self) -> str:
        return self._chance.choice(self._matrices)

    def _norm(self) -> str:
        return self._chance.choice(self._norms)

    def _attention(self, which: str) -> str:
        return f".layers.{self._chance.choice(self._layers)}.self_attn.{which}_proj.weight"

    def _flip(self, weights: Weights, bit: int) -> None:
        bits = weights[self._matrix()].view(torch.int16).reshape(-1)
        mask = -32768 if bit == _SIGN_BIT else 1 << bit
        bits[self._chance.randrange(bits.numel())] ^= mask

    def _weight(self, weights: Weights, value: float, name: str = "") -> None:
        flat = weights[name or self._matrix()].reshape(-1)
        flat[self._chance.randrange(flat.numel())] = value

    def _row(self, weights: Weights, name: str) -> None:
        weights[name][self._chance.randrange(weights[name].shape[0])] = 0

    def _range(self, weights: Weights, size: int) -> torch.Tensor:
        flat = weights[self._matrix()].reshape(-1)
        count = min(size // flat.element_size(), flat.numel())
        start = self._chance.randrange(flat.numel() - count + 1)
        return flat[start : start + count]

    def _shuffle(self, values: torch.Tensor) -> None:
        values.copy_(values[torch.randperm(values.numel(), generator=self._generator)])

    def _scale(self, weights: Weights, part: str, factor: float, *, matrices: bool = False) -> None:
        for name, one in weights.items():
            if part in name and (one.dim() == 2 or not matrices):
                one.copy_(one.float() * factor)

    def _noise(self, weights: Weights, share: float) -> None:
        for one in weights.values():
            one.copy_(one.float() * (1 + share * torch.randn(one.shape, generator=self._generator)))

    def _random(self, weights: Weights, name: str) -> None:
        one = weights[name]
        one.copy_(torch.randn(one.shape, generator=self._generator) * one.float().std())
