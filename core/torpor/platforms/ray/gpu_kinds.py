"""How Ray names the kinds of GPUs: the accelerator type of a `Deployment.gpu`.

Each Ray node reads its GPU's name from the driver and offers `accelerator_type:KIND`. The rule for KIND is that of
ray/_private/accelerators/nvidia_gpu.py (2.60): the first words in capitals and digits (`NVIDIA H100 80GB HBM3` is `H100`), else
the product's name with dashes (`NVIDIA GeForce RTX 4090` is `GeForce-RTX-4090`).
"""

from __future__ import annotations

import re

from torpor.values.gpu_names import gpu_model

__all__ = ["MANUAL_KINDS", "accelerator_type"]

MANUAL_KINDS = ("A100-40G", "A100-80G")
"""Ray finds `A100` for both. A node offers these only if it is started with them as a resource."""

_ODD = {"a100-40gb": "A100-40G", "a100-80gb": "A100-80G"}
_GEFORCE = re.compile(r"rtx-?([2-5]0[5-9]0)", re.ASCII)
_QUADRO = re.compile(r"rtx-?([4-8]000)", re.ASCII)
_WORKSTATION = re.compile(r"a([2-6][05]00)|a(6000)", re.ASCII)


def accelerator_type(gpu: str | None) -> str | None:
    """Ray's name of a kind of GPU.

    Args:
        gpu: as in `Deployment.gpu`: `H100!:2` is `H100`.

    Returns:
        None for no GPU, and for `any`.
    """
    name = gpu_model(gpu)
    plain = name.lower()
    if plain in ("", "any"):
        return None
    if plain in _ODD:
        return _ODD[plain]
    if found := _GEFORCE.fullmatch(plain):
        return f"GeForce-RTX-{found[1]}"
    if found := _QUADRO.fullmatch(plain):
        return f"RTX-{found[1]}"
    if _WORKSTATION.fullmatch(plain):
        return f"RTX-{name.upper()}"
    return name.upper()
