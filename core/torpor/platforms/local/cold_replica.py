"""A replica that starts cold where a restored one was to be: in a sandbox like theirs, behind the same port."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.snapshots.restore import Replica
from torpor.snapshots.sandbox.start import StartingSandbox
from torpor.snapshots.store.paths import cache_root, logs_folder, work_folder

if TYPE_CHECKING:
    from torpor.lifecycle import Lifecycle
    from torpor.platforms.local.replacement import Attempt
    from torpor.recipe import Recipe
    from torpor.runtime.boot import Boot
    from torpor.snapshots.store.manifest import Manifest
    from torpor.telemetry.stage_report import StageReport

__all__ = ["start_cold"]

_SANDBOX_TIMEOUT_S = 30.0


def start_cold(
    attempt: Attempt,
    name: str,
    manifest: Manifest,
    lifecycle: Lifecycle,
    recipe: Recipe,
    *,
    report: StageReport,
    restarts: int,
    reason: str,
) -> tuple[Replica, Boot]:
    """Start a replica cold; it serves when this returns.

    Args:
        attempt: what it is part of.
        name: of the replica.
        manifest: of the snapshot, for the kind of sandbox.
        lifecycle: of what to start.
        recipe: the deployment's, relocated to this machine.
        report: where stages are recorded.
        restarts: how often this replica was started again before.
        reason: why it starts cold.

    Raises:
        TorporError: it did not start; nothing of it is left.
    """
    from torpor.platforms.local.server import run_build_steps  # noqa: PLC0415 - the platform uses this package
    from torpor.runtime.boot import Boot  # noqa: PLC0415 - httpx
    from torpor.snapshots.sandbox.starter import SandboxStarter  # noqa: PLC0415

    deployment, began_at = lifecycle.deployment, time.perf_counter()
    run_build_steps(recipe, cache_root())
    scratch = Path(manifest.scratch)
    begun = attempt.begin(lambda: StartingSandbox(name, mode=manifest.mode, scratch=scratch))
    sandbox = begun.ready(_SANDBOX_TIMEOUT_S)
    sandbox_s = time.perf_counter() - began_at
    boot = Boot(
        deployment,
        lifecycle=lifecycle,
        recipe=recipe,
        report=report,
        starter=SandboxStarter(sandbox, deployment, captured=False),
        restarts=restarts,
        reason=reason,
        replica=name,
    )
    boot.logs = logs_folder(deployment.name)
    replica = Replica(
        name=name,
        sandbox=sandbox,
        work=work_folder(name),
        sandbox_s=sandbox_s,
        side_files_s=0.0,
        criu_s=0.0,
        began_at=began_at,
    )
    try:
        boot.cold_start()
        boot.serve()
    except BaseException:
        replica.end()
        raise
    return replica, boot
