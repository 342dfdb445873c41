"""Snapshots of a running engine on a plain Linux machine, taken with CRIU (Checkpoint/Restore In Userspace).

capture      takes a snapshot of a sleeping engine
             (before_capture: what no snapshot can hold; foresight, targets: what a capture would refuse, told before the
             start; trial: one restore of a new snapshot before it is published)
restore      restores one replica from a snapshot
fit          whether a snapshot fits here and now: every reason against it
             (facts: what is true here and now; machines, differences: how two machines or deployments differ)
catalog      lists and prunes the snapshots of this machine
             (kept_weights: which snapshots need which weights outside of them)

store        a snapshot's folder, its manifest, and how both are read, damaged or not
sandbox      one sandbox per replica: the engine's process tree lives in it, CRIU runs in it
criu         the program CRIU, its runs with deadlines, and the images that it writes
             (probe: whether all of this works on this machine, by a small real dump and restore)
criu_install CRIU 4.2 in a private folder, for a machine whose own package is missing or too old
remote       push to a store that several machines reach, and pull from it
gpu          GPU state to host memory before a dump, and back after a restore
"""

from typing import TYPE_CHECKING

from torpor._lazy import lazy_names

if TYPE_CHECKING:
    from torpor.snapshots.fit import misfits
    from torpor.snapshots.foresight import warn_of_held
    from torpor.snapshots.store.manifest import MANIFEST
    from torpor.snapshots.store.stored import inspect
    from torpor.snapshots.targets import check_target

__all__ = ["MANIFEST", "check_target", "inspect", "misfits", "warn_of_held"]

__getattr__, __dir__ = lazy_names(
    __name__,  # an engine without a snapshot starts 40 ms earlier
    {
        "torpor.snapshots.fit": ("misfits",),
        "torpor.snapshots.foresight": ("warn_of_held",),
        "torpor.snapshots.store.manifest": ("MANIFEST",),
        "torpor.snapshots.store.stored": ("inspect",),
        "torpor.snapshots.targets": ("check_target",),
    },
)
