"""The GPUs of the replicas of one command: chosen, claimed before other commands choose theirs, and released."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from torpor.snapshots import gpu
from torpor.snapshots.fit import placed_gpus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torpor.snapshots.gpu.claims import Claim
    from torpor.snapshots.gpu.placement import GpuPlace, Placement
    from torpor.snapshots.store.manifest import Manifest

__all__ = ["ReplicaGpus"]

_OTHERS_S, _LOOK_S = 30.0, 0.2


class ReplicaGpus:
    """The GPUs of the replicas that start or serve.

    Args:
        serving: names of the replicas that serve.
        stopped: whether nothing is to be started any more.
    """

    def __init__(self, serving: Callable[[], Iterable[str]], stopped: Callable[[], bool] = lambda: False) -> None:
        self._serving = serving
        self._stopped = stopped
        self._one = threading.Lock()
        self._starting: set[str] = set()
        self._gpus: dict[str, tuple[GpuPlace, ...]] = {}
        self._claims: dict[str, Claim] = {}

    def place(self, manifest: Manifest, names: Sequence[str], chosen: Sequence[GpuPlace]) -> Placement | None:
        """Find GPUs for replicas that start now. They count as theirs from now on, though they hold no memory there yet.

        If there is too little room, and another command is about to take some, its start is waited for: the driver then tells
        what it really took.

        Args:
            manifest: of their snapshot.
            names: of the replicas.
            chosen: the GPUs that they may take; by default all.
        """
        if not manifest.machine.gpus:
            return None
        until = time.monotonic() + _OTHERS_S
        with self._one:
            self._forget_ended(names)
            others = [place.uuid for name, gpus in self._gpus.items() if name not in names for place in gpus]
            while True:
                with gpu.choosing():
                    found = placed_gpus(
                        manifest, replicas=len(names), chosen=[place.uuid for place in chosen], occupied=others
                    )
                    if found is None or found.maps:
                        self._claim(manifest, names, found)
                        return found
                    coming = any(one.reserved for one in gpu.claimed().values())
                if not coming or time.monotonic() > until or self._stopped():
                    return found
                time.sleep(_LOOK_S)

    def serves(self, name: str) -> None:
        """A replica serves: its memory is on its GPUs."""
        self._starting.discard(name)
        if held := self._claims.get(name):
            held.settle()

    def ended(self, name: str) -> None:
        """A replica has ended, or did not start."""
        self._starting.discard(name)
        self._gpus.pop(name, None)
        if held := self._claims.pop(name, None):
            held.release()

    def end(self) -> None:
        """No replica is left."""
        for name in list(self._gpus):
            self.ended(name)

    def _forget_ended(self, names: Sequence[str]) -> None:
        there = {*self._starting, *self._serving(), *names}
        for name in [name for name in self._gpus if name not in there]:
            self.ended(name)

    def _claim(self, manifest: Manifest, names: Sequence[str], found: Placement | None) -> None:
        needed = manifest.gpu.needed if manifest.gpu else {}
        for name, where in zip(names, found.maps if found else (), strict=False):
            self._starting.add(name)
            self._gpus[name] = where.gpus
            self._claims[name] = gpu.claim({place.uuid: needed.get(then, 0) for then, place in where.places.items()})
