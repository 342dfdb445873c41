"""The variables that show an engine only some of a machine's GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["visible_devices"]


def visible_devices(gpus: Sequence[int]) -> dict[str, str]:
    """Variables for an engine that may use these GPUs alone; none for no GPU, which leaves the choice to CUDA.

    Numbers, because engines take the value apart and expect numbers. CUDA counts GPUs as the driver does only in the order of the
    PCI bus.

    Args:
        gpus: numbers in the driver's order, as `nvidia-smi` shows them.
    """
    if not gpus:
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
