"""Prove a new snapshot: restore one trial replica before the snapshot is published."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import SnapshotError, TorporError, TrialWakeError
from torpor.runtime.boot import Boot
from torpor.snapshots.fit import gpus_for_one
from torpor.snapshots.restore import begin_sandbox, restore_replica

if TYPE_CHECKING:
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.sandbox.sandbox import Sandbox
    from torpor.snapshots.store.manifest import Manifest
    from torpor.snapshots.store.stored import Identity

__all__ = ["Life", "life_of", "prove"]


class Life(NamedTuple):
    """What a restore must restore and no other check would miss.

    Attributes:
        threads: number of threads of each process, by its pid inside the sandbox.
        locked_kb: memory that each process has locked (mlock(2)).
    """

    threads: dict[int, int]
    locked_kb: dict[int, int]


def life_of(sandbox: Sandbox) -> Life:
    """The threads and the locked memory of a tree now."""
    threads, locked = {}, {}
    for inside, outside in sandbox.host_pids().items():
        with contextlib.suppress(OSError, ValueError):
            lines = Path(f"/proc/{outside}/status").read_text().splitlines()
            status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
            if inside != 1 and status["State"][0] != "Z":
                threads[inside] = int(status["Threads"][0])
                locked[inside] = int(status.get("VmLck", ["0"])[0])
    return Life(threads=threads, locked_kb=locked)


def prove(folder: Path, manifest: Manifest, identity: Identity, *, criu: Criu, boot: Boot, before: Life) -> float:
    """Restore one replica without a public port, wake it, compare its answer with the canary, and end it.

    Args:
        folder: the snapshot, not yet published.
        manifest: its manifest.
        identity: of the engine in it.
        criu: the program.
        boot: the original's.
        before: threads and locked memory at the capture.

    Returns:
        The seconds that it took.

    Raises:
        TrialWakeError: the replica did not wake, or its answer differs.
        SnapshotError: the replica was not restored, in the subclass of the cause; or it differs from what was captured.
    """
    started = time.perf_counter()
    step = "restored"
    try:
        begun = begin_sandbox(manifest, f"{manifest.deployment.name}-proof-{os.getpid()}")
        replica = restore_replica(folder, manifest, criu=criu, begun=begun, gpus=lambda: gpus_for_one(folder, manifest))
        try:
            step = "verified"
            _compare(before, life_of(replica.sandbox))
            step = "woken"
            name = f"{boot.deployment.name}-proof"
            trial = Boot(boot.deployment, lifecycle=boot.lifecycle, recipe=boot.recipe, replica=name)
            replica.wake(trial, manifest, identity)
        finally:
            replica.end()
    except TorporError as error:
        raise _kind(error, step)(
            f"The new snapshot does not work: its trial replica could not be {step}. {error}\nThe new snapshot was deleted; an "
            "older one in its place is still there. `--no-prove` keeps a snapshot without a trial."
        ) from error
    return time.perf_counter() - started


def _kind(error: TorporError, step: str) -> type[SnapshotError]:
    """The class of the trial's error: that of its cause, so that a caller can act on it, unless the wake failed."""
    if step == "woken":
        return TrialWakeError
    return type(error) if isinstance(error, SnapshotError) else SnapshotError


def _compare(before: Life, after: Life) -> None:
    missing = sorted(set(before.threads) - set(after.threads))
    fewer = [pid for pid, count in before.threads.items() if after.threads.get(pid, count) < count]
    unlocked = [pid for pid, locked in before.locked_kb.items() if after.locked_kb.get(pid, locked) < locked]
    reasons = [f"process {pid} is missing" for pid in missing]
    reasons += [f"process {pid} has {after.threads[pid]} threads, not {before.threads[pid]}" for pid in fewer]
    reasons += [
        f"process {pid} has {after.locked_kb[pid]} kB of memory locked, not {before.locked_kb[pid]}" for pid in unlocked
    ]
    if reasons:
        raise SnapshotError(f"It differs from what was captured: {'; '.join(reasons)}.")
