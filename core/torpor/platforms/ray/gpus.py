"""The GPUs that Ray gave to an actor, as the driver numbers them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.errors import ConfigurationError
from torpor.snapshots.gpu.driver import look

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["assigned_gpus"]


def assigned_gpus(ids: Sequence[str]) -> tuple[int, ...]:
    """Numbers of GPUs in the driver's order.

    Args:
        ids: as `ray.get_runtime_context().get_accelerator_ids()` has them: numbers or UUIDs, as in `CUDA_VISIBLE_DEVICES`.

    Raises:
        ConfigurationError: the driver knows no such GPU, e.g. because it is a part of one (MIG).
    """
    if not ids:
        return ()
    uuids = [gpu.uuid for gpu in look().gpus]
    found = []
    for one in map(str, ids):
        if one.isdecimal() and int(one) < len(uuids):
            found.append(int(one))
        elif one in uuids:
            found.append(uuids.index(one))
        else:
            raise ConfigurationError(
                f"Ray gave this replica the GPU {one!r}, and the driver has {', '.join(uuids) or 'none'}. Use whole GPUs."
            )
    return tuple(found)
