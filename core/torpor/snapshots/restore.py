"""Restore one replica from a snapshot: a sandbox, CRIU's restore into it, the GPU's state, and the wake.

    read_snapshot    the manifest, and the identity by which the sleeping engine is addressed
    begin_sandbox    an empty sandbox, which gets ready by itself
    restore_replica  the engine's process tree in that sandbox; it sleeps
    Replica.wake     the engine answers, and as before the capture

A restore waits for whatever this module imports. So it imports only what every restore needs.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import DamagedSnapshotError, SnapshotError
from torpor.snapshots.criu.run import restore
from torpor.snapshots.sandbox.engine import SandboxEngine
from torpor.snapshots.sandbox.sandbox import Clock, Sandbox
from torpor.snapshots.sandbox.scheduling import schedule_again
from torpor.snapshots.sandbox.start import StartingSandbox
from torpor.snapshots.store.fields import NEW_ONE
from torpor.snapshots.store.files import damaged_files
from torpor.snapshots.store.folder import checked, real_folder, unchanged
from torpor.snapshots.store.here import AS_CAPTURED
from torpor.snapshots.store.manifest import IMAGES
from torpor.snapshots.store.paths import release_work_folder, work_folder
from torpor.snapshots.store.stored import inspect, read_identity
from torpor.telemetry.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torpor.runtime.boot import Boot
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.criu.run import Restored
    from torpor.snapshots.gpu.checkpoint import Resumed, Resumption
    from torpor.snapshots.gpu.placement import GpuMap, GpuPlace
    from torpor.snapshots.sandbox.first_process import FirstProcess
    from torpor.snapshots.store.folder import Mark
    from torpor.snapshots.store.here import Here
    from torpor.snapshots.store.manifest import Manifest
    from torpor.snapshots.store.stored import Identity

__all__ = ["Replica", "begin_sandbox", "read_snapshot", "restore_replica"]

_RESTORE_TIMEOUT_S = 120.0


class Replica(NamedTuple):
    """A restored process tree; it sleeps until `wake`.

    Attributes:
        name: for messages.
        sandbox: where it lives.
        work: folder with CRIU's log.
        sandbox_s: seconds until the sandbox was ready.
        side_files_s: seconds to unpack its private files.
        criu_s: seconds that CRIU took.
        cuda: what it took to move its GPU state back; None without a GPU.
        began_at: monotonic clock, seconds.
        gpus: the GPUs that it uses; empty without a GPU.
    """

    name: str
    sandbox: Sandbox
    work: Path
    sandbox_s: float
    side_files_s: float
    criu_s: float
    cuda: Resumed | None = None
    began_at: float = 0.0
    gpus: tuple[GpuPlace, ...] = ()

    @property
    def cuda_s(self) -> float | None:
        """Seconds until its processes were back on their GPUs; None without a GPU."""
        return self.cuda.seconds if self.cuda else None

    def end(self) -> None:
        """End the processes and remove the working folder."""
        self.sandbox.kill()
        release_work_folder(self.work)

    def wake(self, boot: Boot, manifest: Manifest, identity: Identity) -> None:
        """Wake it with a new replica id and a new lifecycle key, and compare its answer with the canary.

        Raises:
            EngineError: it did not wake.
            CanaryError: it answers differently.
        """
        engine = SandboxEngine(self.sandbox, replica_id=identity.replica_id, guard_key=identity.guard_key)
        boot.adopt(engine, manifest.canary)
        boot.gpus, boot.places = [gpu.number for gpu in self.gpus], self.gpus
        replica_id = os.urandom(8).hex()
        steps = [
            (Stage.SANDBOX, self.sandbox_s),
            (Stage.SIDE_FILES, self.side_files_s),
            (Stage.CRIU, self.criu_s),
        ]
        steps += [(Stage.CUDA, self.cuda_s)] if self.cuda_s is not None else []
        since_s = time.perf_counter() - self.began_at - sum(seconds for _, seconds in steps)
        boot.note_restored(steps, ended_at=time.time() - since_s, replica_id=replica_id)
        boot.wake(new_replica_id=replica_id)


def read_snapshot(folder: Path) -> tuple[Manifest, Identity]:
    """The manifest of a snapshot, and the identity of the engine in it.

    Raises:
        SnapshotError: the snapshot cannot be used; the message says why.
    """
    folder = real_folder(folder)
    return inspect(folder), read_identity(folder)


def begin_sandbox(
    manifest: Manifest, name: str, *, first: FirstProcess | None = None, here: Here = AS_CAPTURED
) -> StartingSandbox:
    """Begin an empty sandbox for a replica; it gets ready by itself.

    Args:
        manifest: of the snapshot.
        name: of the replica.
        first: a first process that was started earlier; a new one by default.
        here: where the snapshot's files lie on this machine.
    """
    return StartingSandbox(
        name,
        mode=manifest.mode,
        scratch=Path(manifest.scratch),
        clock=_clock(manifest),
        first=first,
        moved=here.moved,
    )


def restore_replica(
    folder: Path,
    manifest: Manifest,
    *,
    criu: Criu,
    begun: StartingSandbox,
    mark: Mark | None = None,
    gpus: Callable[[], GpuMap | None] | None = None,
) -> Replica:
    """Restore the process tree of a snapshot into a sandbox; it sleeps.

    Args:
        folder: the snapshot.
        manifest: its manifest.
        criu: the program.
        begun: from `begin_sandbox`.
        mark: identifies the folder that was checked; by default the folder is checked now.
        gpus: called when CRIU is done, for the GPUs that the replica gets; by default those of the capture. If it raises, the
            replica is ended before GPU state moves.

    Raises:
        SnapshotError: CRIU or the GPU driver failed, or another folder took the snapshot's place. Nothing is left running.
    """
    started = time.perf_counter()
    folder = real_folder(folder)
    sandbox = begun.ready(_RESTORE_TIMEOUT_S)
    sandbox_s = time.perf_counter() - started
    sandbox.filtered = manifest.mode == "root"  # an engine that was started as root runs under the filter
    work = work_folder(begun.name)
    empty = Replica(begun.name, sandbox, work, sandbox_s, side_files_s=0.0, criu_s=0.0, began_at=started)
    with _ended_on_failure(begun, sandbox, work):
        return _filled(empty, folder, manifest, criu=criu, mark=mark, gpus=gpus)


def _filled(
    replica: Replica,
    folder: Path,
    manifest: Manifest,
    *,
    criu: Criu,
    mark: Mark | None,
    gpus: Callable[[], GpuMap | None] | None,
) -> Replica:
    """Run CRIU, move GPU state back, and schedule threads as before."""
    sandbox = replica.sandbox
    resumption = _resumption(sandbox, manifest)
    took = _by_criu(folder, manifest, sandbox, criu=criu, mark=mark, work=replica.work)
    where = gpus() if gpus else None
    cuda = resumption.finish(where) if resumption else None
    schedule_again(sandbox, manifest.scheduling)
    return replica._replace(
        side_files_s=took.side_files_s, criu_s=took.criu_s, cuda=cuda, gpus=where.gpus if where else ()
    )


@contextlib.contextmanager
def _ended_on_failure(begun: StartingSandbox, sandbox: Sandbox, work: Path) -> Iterator[None]:
    """End the sandbox if the block fails. CRIU's log stays as evidence; there is none if the start was ended early."""
    try:
        yield
    except BaseException:
        sandbox.kill()
        release_work_folder(work, remove=begun.ended or not os.listdir(work))  # noqa: PTH208 - pathlib's iterdir is slower
        raise


def _by_criu(
    folder: Path, manifest: Manifest, sandbox: Sandbox, *, criu: Criu, mark: Mark | None, work: Path
) -> Restored:
    """Run CRIU, which opens the snapshot's files by path, as the replica does."""
    with unchanged(folder, mark or checked(folder)), _damage_named(folder, manifest):
        return restore(criu, sandbox, folder / IMAGES, work=work, timeout_s=_RESTORE_TIMEOUT_S, tcp=manifest.tcp)


@contextlib.contextmanager
def _damage_named(folder: Path, manifest: Manifest) -> Iterator[None]:
    """If the block fails, name the files that went or changed since they were checked: CRIU's log does not."""
    try:
        yield
    except SnapshotError as error:
        if not (damages := damaged_files(folder, manifest, full=False)):
            raise
        raise DamagedSnapshotError(
            f"The snapshot {folder} was changed while it was being restored: {'; '.join(damages)}. If nobody is deleting it, "
            f"{NEW_ONE}"
        ) from error


def _resumption(sandbox: Sandbox, manifest: Manifest) -> Resumption | None:
    """Have the GPU driver get ready beside CRIU's work, if the snapshot has GPU state."""
    if manifest.gpu is None:
        return None
    from torpor.snapshots.gpu.checkpoint import Resumption  # noqa: PLC0415 - checkpoint: 8 ms, needed with a GPU only

    return Resumption(sandbox, manifest.gpu, wait_s=_RESTORE_TIMEOUT_S)


def _clock(manifest: Manifest) -> Clock | None:
    """Where the replica's clocks begin: at the dump's time if the host's clock is behind it (after a reboot), else None."""
    if time.monotonic() >= manifest.monotonic_s:
        return None
    return Clock(monotonic_s=manifest.monotonic_s, boottime_s=manifest.boottime_s)
