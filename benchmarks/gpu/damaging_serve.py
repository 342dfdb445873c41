"""Torpor's launcher of SGLang with one addition, for `benchmarks.gpu.canary`: POST /weights_checker damages weights in place.

    {"action": "damage KIND SEED"}   damages one place of the weights where they are, on the GPU
    {"action": "undo"}               restores what the last damage changed
    {"action": "sums"}               writes the weights' checksum and its seconds to TORPOR_DAMAGE_SUMS

Weights on the GPU have the engine's own layout (fused projections, FP8 with scales in blocks), so a damage works on bytes and rows.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torpor.launcher import after_import, model_sums
from torpor_sglang import serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    import torch

SUMS_VARIABLE = "TORPOR_DAMAGE_SUMS"
_saved: dict[str, torch.Tensor] = {}


def damage_by_request(module: ModuleType) -> None:
    """Let `ModelRunner.check_weights` damage and sum (0.5.16 and 0.5.23 model_executor/model_runner.py)."""
    original = module.ModelRunner.check_weights

    def check_weights(runner: Any, action: str, *args: object, **options: object) -> object:
        what, *rest = action.split()
        if what == "damage":
            damage(runner.model, rest[0], int(rest[1]))
        elif what == "undo":
            undo(runner.model)
        elif what == "sums":
            _write_sums(runner.model)
        else:
            return original(runner, action, *args, **options)
        return None

    module.ModelRunner.check_weights = check_weights


class Places(NamedTuple):
    """Where a damage may be.

    Attributes:
        parameters: every parameter by its name.
        matrices: names of the matrices, without embeddings and block scales.
        norms: names of the norms' weights.
        chance: chooses.
    """

    parameters: dict[str, torch.Tensor]
    matrices: list[str]
    norms: list[str]
    chance: random.Random


def damage(model: torch.nn.Module, kind: str, seed: int) -> None:
    """Inflict one damage; `undo` takes it back."""
    parameters = {name: one.data for name, one in model.named_parameters() if "rotary" not in name}
    matrices = [
        name for name, one in parameters.items() if one.dim() == 2 and "embed" not in name and "scale" not in name
    ]
    norms = [name for name, one in parameters.items() if one.dim() == 1 and "norm" in name]
    KINDS[kind](Places(parameters, matrices, norms, random.Random(f"{kind} {seed}")))


def undo(model: torch.nn.Module) -> None:
    """Restore what the last damage changed."""
    parameters = dict(model.named_parameters())
    for name, saved in _saved.items():
        _bytes_of(parameters[name].data).copy_(saved)
    _saved.clear()


def _keep(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, kept for `undo`."""
    found = _bytes_of(tensor)
    _saved[name] = found.clone()
    return found


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    library = sys.modules["torch"]
    whole = library.empty(0, dtype=library.uint8, device=tensor.device).set_(tensor.untyped_storage())
    start = tensor.storage_offset() * tensor.element_size()
    return whole[start : start + tensor.numel() * tensor.element_size()]


def _range(places: Places, size: int) -> torch.Tensor:
    name = places.chance.choice(places.matrices)
    found = _keep(name, places.parameters[name])
    count = min(size, found.numel())
    start = places.chance.randrange(found.numel() - count + 1)
    return found[start : start + count]


def _zero(size: int) -> Callable[[Places], None]:
    def zero(places: Places) -> None:
        _range(places, size).zero_()

    return zero


def _reverse(places: Places) -> None:
    found = _range(places, 4096)
    found.copy_(found.flip(0))


def _row(places: Places) -> None:
    name = places.chance.choice(places.matrices)
    found, rows = _keep(name, places.parameters[name]), places.parameters[name].shape[0]
    found.view(rows, -1)[places.chance.randrange(rows)].zero_()


def _flip(places: Places) -> None:
    name = places.chance.choice(places.matrices)
    one = places.parameters[name]
    found, size = _keep(name, one), one.element_size()
    last = places.chance.randrange(found.numel() // size) * size + size - 1
    found[last : last + 1].bitwise_xor_(0x40)  # the top bit of the exponent: little-endian, and FP8 is one byte


def _of_norm(factor: float) -> Callable[[Places], None]:
    def scale(places: Places) -> None:
        name = places.chance.choice(places.norms)
        _keep(name, places.parameters[name])
        places.parameters[name].mul_(factor)

    return scale


def _scaled(factor: float) -> Callable[[Places], None]:
    """Scale a matrix: by its block scales where it has some, otherwise its values."""

    def scale(places: Places) -> None:
        name = places.chance.choice(places.matrices)
        name = next((one for one in places.parameters if one.startswith(name) and "scale" in one), name)
        _keep(name, places.parameters[name])
        places.parameters[name].mul_(factor)

    return scale


def _exchange(places: Places) -> None:
    """A matrix comes back as that of another layer."""
    name = places.chance.choice([one for one in places.matrices if ".layers." in one])
    kind = name.split(".layers.")[1].split(".", 1)[1]
    other = places.chance.choice([one for one in places.matrices if one != name and one.endswith("." + kind)])
    _keep(name, places.parameters[name]).copy_(_bytes_of(places.parameters[other]))


KINDS: dict[str, Callable[[Places], None]] = {
    "exponent-bit": _flip,
    "zero-4KiB": _zero(4096),
    "reversed-4KiB": _reverse,
    "zero-64KiB": _zero(65536),
    "zero-2MiB": _zero(2 << 20),
    "zero-row": _row,
    "norm-x1.1": _of_norm(1.1),
    "matrix-x0.9": _scaled(0.9),
    "matrix-x2": _scaled(2.0),
    "other-layer": _exchange,
}


def _write_sums(model: torch.nn.Module) -> None:
    library = sys.modules["torch"]
    began = time.perf_counter()
    total = model_sums(model)
    if library.cuda.is_available():
        library.cuda.synchronize()
    told = {"sum": total, "seconds": time.perf_counter() - began}
    Path(os.environ[SUMS_VARIABLE]).write_text(json.dumps(told), encoding="utf-8")


after_import("sglang.srt.model_executor.model_runner", damage_by_request)

if __name__ == "__mp_main__":
    serve._prepare_process(sys.argv[1:])  # noqa: SLF001 - what the launcher itself does in a spawned process

if __name__ == "__main__":
    sys.exit(serve.main(sys.argv[1:]))
