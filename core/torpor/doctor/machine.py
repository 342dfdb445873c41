"""What this machine lacks for snapshots of a deployment, with the cure for each."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from torpor.adapter_checks import adapter_findings
from torpor.build_steps.relocation import relocate
from torpor.doctor.capture_size import memory_findings
from torpor.doctor.gpu_modes import mode_findings
from torpor.doctor.several_gpus import found_here
from torpor.errors import ConfigurationError, SnapshotError
from torpor.platforms.local.requirements import check_gpu
from torpor.snapshots.before_capture.lasting_folders import place_findings
from torpor.snapshots.criu import probe
from torpor.snapshots.criu.program import find
from torpor.snapshots.gpu.driver import look
from torpor.snapshots.gpu.requirements import against_gpu
from torpor.snapshots.store.paths import CACHE_VARIABLE, cache_root, criu_prefix, snapshot_folder
from torpor.snapshots.targets import check_target, check_writable
from torpor.values.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.deployment import Deployment
    from torpor.lifecycle import Lifecycle
    from torpor.snapshots.criu.probe import Reason
    from torpor.snapshots.gpu.driver import Driver
    from torpor.values.findings import Level

__all__ = ["diagnose"]


def diagnose(lifecycle: Lifecycle | None = None) -> tuple[Finding, ...]:
    """Check everything that a snapshot needs.

    Args:
        lifecycle: of what is to be captured; without one, what is missing is only a warning, and GPUs are checked if the machine
            has some.
    """
    driver, deployment = look(), lifecycle.deployment if lifecycle else None
    bad: Level = "error" if deployment else "warning"
    with_gpu = deployment.gpu is not None if deployment else bool(driver.uses)
    return (
        *_criu(bad, with_gpu=with_gpu),
        *(_folders(lifecycle) if lifecycle else ()),
        *_gpu(lifecycle, driver, bad, with_gpu=with_gpu),
    )


def _folders(lifecycle: Lifecycle) -> Iterator[Finding]:
    """Whether the snapshot can be written, and whether the files that the engine needs are in lasting folders."""
    deployment = lifecycle.deployment
    folder = snapshot_folder(deployment.name)
    try:
        check_target(folder)
        check_writable(folder)
    except SnapshotError as error:
        cure = f"name another folder (torpor snapshot create APP FOLDER), or set {CACHE_VARIABLE}"
        yield Finding(level="error", what="target", seen=str(error), cure=cure)
    with contextlib.suppress(ConfigurationError):  # doctor shows the recipe's error with the app's findings
        recipe = relocate(lifecycle.recipe(), cache_root(), deployment.name)
        yield from place_findings(deployment, recipe)
        told = tuple(adapter_findings(deployment))  # doctor shows these with the app's findings
        yield from (one for one in adapter_findings(deployment, recipe.env, here=True) if one not in told)


def _criu(bad: Level, *, with_gpu: bool) -> Iterator[Finding]:
    prefix = criu_prefix()
    try:
        criu = find(prefix, cache=prefix)
        yield Finding(level="ok", what="CRIU", seen=f"{criu.version} at {criu.program}")
    except SnapshotError:  # the trial below says so, with the cure
        pass
    against: tuple[Reason, ...]
    if with_gpu:
        mode, against = "root", probe.available("root", cache=prefix, prefix=prefix)
    else:
        found, against = probe.usable_mode(cache=prefix, prefix=prefix)
        mode = found or ""
    if not against:
        yield Finding(level="ok", what="snapshots", seen=f"a small dump and restore works here ({mode})")
    for reason in against:
        yield _from_reason(reason, bad, "CRIU" if reason.code == "criu_missing" else "snapshots")


def _gpu(lifecycle: Lifecycle | None, driver: Driver, bad: Level, *, with_gpu: bool) -> Iterator[Finding]:
    deployment = lifecycle.deployment if lifecycle else None
    if not with_gpu:
        why = f"deployment {deployment.name!r} uses none" if deployment else "this machine has none"
        yield Finding(level="ok", what="GPU", seen=f"GPU snapshots do not apply: {why}")
        return
    against = against_gpu(None, driver)
    for reason in against:
        yield _from_reason(reason, bad, "GPU driver")
    if not against:
        gpus = ", ".join(f"{gpu.uuid} {gpu}" for gpu in driver.gpus)
        yield Finding(level="ok", what="GPU driver", seen=f"{driver.version}, which can checkpoint: {gpus}")
    yield from mode_findings(driver, bad)
    if deployment:
        yield from _named_gpu(deployment)
    if lifecycle:
        with contextlib.suppress(ConfigurationError):  # doctor shows the recipe's error with the app's findings
            yield from found_here(
                lifecycle.deployment, relocate(lifecycle.recipe(), cache_root(), lifecycle.deployment.name)
            )
    yield from memory_findings(lifecycle, driver, bad)


def _named_gpu(deployment: Deployment) -> Iterator[Finding]:
    try:
        check_gpu(deployment)
    except ConfigurationError as error:
        yield Finding(level="error", what="GPU", seen=str(error), cure="use such a machine, or change Deployment.gpu")


def _from_reason(reason: Reason, level: Level, what: str) -> Finding:
    return Finding(level=level, what=what, seen=reason.seen, cure=reason.cure + ("" if reason.tried else " (untried)"))
