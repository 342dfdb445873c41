"""Makes the registry's torchvision, a CUDA build, importable with a CPU build of torch."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from torpor.launcher import Patch
from torpor_sglang.patches.cpu import is_cpu_engine

if TYPE_CHECKING:
    import torch

__all__ = ["PATCH"]

_OPERATORS = ("nms", "qnms")
_kept: list[torch.library.Library] = []  # a garbage-collected library would remove its schemas


def _torchvision_has_no_operators() -> bool:
    if not is_cpu_engine() or importlib.util.find_spec("torchvision") is None:
        return False
    import torch  # noqa: PLC0415 - the engine's

    return not torch.version.cuda


def _define_schemas() -> None:
    import torch  # noqa: PLC0415 - the engine's

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _OPERATORS:
        if not _is_defined(f"torchvision::{name}"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)


def _is_defined(operator: str) -> bool:
    import torch  # noqa: PLC0415 - the engine's

    return operator in torch._C._dispatch_get_all_op_names()  # noqa: SLF001 - there is no public question


PATCH = Patch(
    name="torchvision-schemas",
    reason=(
        "the registry's torchvision is a CUDA build whose library does not load with a CPU torch, so its import fails at two "
        "unknown operators: nms and qnms"
    ),
    versions=("0.5.6.post2", "0.5.16", "0.5.18", "0.5.23"),
    applies=_torchvision_has_no_operators,
    apply=_define_schemas,
)
