"""Choose a GPU for one replica of a snapshot, as a command does, and keep it until standard input ends.

    claims_program.py SNAPSHOT GPUS [settle]

GPUS is how many GPUs of one kind the machine has, all free. Prints the number of the GPU that it got.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from torpor.platforms.local.replica_gpus import ReplicaGpus
from torpor.snapshots.gpu import placement
from torpor.snapshots.gpu.driver import Driver, GpuUse
from torpor.snapshots.store.manifest import read_manifest

GIB = 1 << 30
_SLOW_S = 0.15  # between the look at others' claims and the own one: who does not wait for it sees too little


def main(folder: Path, count: int, *, settle: bool) -> None:
    """Choose, print, wait."""
    manifest = read_manifest(folder)
    first = manifest.machine.gpus[0]
    gpus = [first._replace(uuid=f"GPU-{number}{first.uuid[5:]}") for number in range(count)]
    uses = tuple(GpuUse(gpu=gpu, used_bytes=0, free_bytes=100 * GIB) for gpu in gpus)
    placement.look = lambda: Driver(version=manifest.machine.driver, uses=uses)  # type: ignore[attr-defined]
    usual = placement.placed

    def slowly(*seen: object, **options: object) -> object:
        time.sleep(_SLOW_S)
        return usual(*seen, **options)  # type: ignore[arg-type]

    placement.placed = slowly  # type: ignore[assignment]
    replicas = ReplicaGpus(list)
    found = replicas.place(manifest, ["one"], [])
    assert found is not None
    print(found.maps[0].gpus[0].number if found.maps else found.reasons, os.getpid(), flush=True)
    if settle:
        replicas.serves("one")
    sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), settle="settle" in sys.argv)
