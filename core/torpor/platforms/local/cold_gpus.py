"""The GPUs of an engine that starts cold: those that a user names, else CUDA's first ones, or others if a command has those."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torpor.snapshots.gpu.claims import choosing, claim, claimed
from torpor.snapshots.gpu.driver import look
from torpor.snapshots.gpu.placement import GpuPlace
from torpor.telemetry.progress import tell
from torpor.values.gpu_names import gpu_model, is_this_gpu

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torpor.deployment import Deployment
    from torpor.snapshots.gpu.claims import Claim, Claimed

__all__ = ["ColdGpus"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class ColdGpus:
    """The GPUs of one engine.

    Args:
        deployment: what starts.
        named: the GPUs that the user chose; empty for none.

    Attributes:
        gpus: the GPUs that the engine may use; empty leaves it to CUDA.
    """

    def __init__(self, deployment: Deployment, named: Sequence[GpuPlace] = ()) -> None:
        self.gpus = tuple(named)
        self._deployment = deployment
        self._claim: Claim | None = None

    def take(self) -> None:
        """Choose, and claim what was chosen; once. Nobody keeps memory free for it: how much it takes is not known."""
        if self._deployment.gpu is None or self._claim:
            return
        places = [GpuPlace(at, gpu.uuid, gpu.name) for at, gpu in enumerate(look().gpus)]
        with choosing():
            taken = self.gpus or self._chosen(places, claimed())
            self._claim = claim(dict.fromkeys([one.uuid for one in taken], 0))

    def release(self) -> None:
        """Let go. Harmless to repeat."""
        if self._claim:
            self._claim.release()
        self._claim = None

    def _chosen(self, places: Sequence[GpuPlace], others: Mapping[str, Claimed]) -> Sequence[GpuPlace]:
        """What CUDA takes by itself, its first ones; others, which it is then told, only if fewer replicas have those."""
        wanted, count = gpu_model(self._deployment.gpu), self._deployment.gpu_count
        fitting = [one for one in places if is_this_gpu(wanted, one.name)]
        if _VISIBLE in os.environ or len(fitting) < count:
            return ()
        fewest = sorted(fitting, key=lambda one: others[one.uuid].replicas if one.uuid in others else 0)[:count]
        chosen = sorted(fewest, key=lambda one: one.number)
        if chosen != places[:count]:
            self.gpus = tuple(chosen)
            first = [one for one in places[:count] if one not in chosen]
            taken = [one for one in first if one in fitting]
            why = f"another command has {_listed(taken)}" if taken else f"{_listed(first)} is no {wanted}"
            tell(f"{why}; taking {_listed(chosen)}")
        return chosen


def _listed(places: Sequence[GpuPlace]) -> str:
    return " and ".join(map(str, places))
