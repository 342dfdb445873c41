"""A replica that starts cold in place of a restored one: in a sandbox of the same kind, behind the same gateway."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from torpor.build_steps.local import run_build_steps
from torpor.engine.failure import stops_on_failure
from torpor.snapshots.restore import Replica
from torpor.snapshots.sandbox.start import StartingSandbox
from torpor.snapshots.sandbox.starter import SandboxStarter
from torpor.snapshots.store.paths import cache_root, scratch_folder, work_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.platforms.local.replacement import Attempt
    from torpor.runtime.boot import Boot
    from torpor.snapshots.gpu.placement import GpuPlace
    from torpor.snapshots.store.manifest import Manifest

__all__ = ["start_cold"]

_SANDBOX_TIMEOUT_S = 30.0


def start_cold(attempt: Attempt, manifest: Manifest, boot: Boot, gpus: Sequence[GpuPlace] = ()) -> Replica:
    """Start a replica cold; it serves when this returns.

    Args:
        attempt: the start that it belongs to.
        manifest: of the snapshot, for the kind of sandbox.
        boot: of the replica; it gets the sandbox as the place of its engine.
        gpus: the GPUs that its engine may use; empty leaves it to CUDA.

    Raises:
        TorporError: it did not start; nothing of it is left.
    """
    replica = _empty_replica(attempt, manifest, boot)
    boot.starter = SandboxStarter(replica.sandbox, boot.deployment, captured=False)
    boot.gpus, boot.places = [gpu.number for gpu in gpus], gpus
    with stops_on_failure(replica.end):
        boot.cold_start()
        boot.serve()
    return replica._replace(gpus=tuple(gpus))


def _empty_replica(attempt: Attempt, manifest: Manifest, boot: Boot) -> Replica:
    """Run the build steps, and create the sandbox."""
    began_at = time.perf_counter()
    run_build_steps(boot.recipe, cache_root())
    begun = attempt.begin(lambda: StartingSandbox(boot.replica, mode=manifest.mode, scratch=scratch_folder()))
    sandbox = begun.ready(_SANDBOX_TIMEOUT_S)
    return Replica(
        name=boot.replica,
        sandbox=sandbox,
        work=work_folder(boot.replica),
        sandbox_s=time.perf_counter() - began_at,
        side_files_s=0.0,
        criu_s=0.0,
        began_at=began_at,
    )
