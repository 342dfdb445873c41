"""Does a snapshot fit here and now? The one list of differences, each as a sentence.

    bad_marks            it is marked bad: its replicas did not wake
    damaged_files        its own files (torpor.snapshots.store.files)
    unfit_machine        machine, CRIU and GPUs
    different_deployment what its app file says now (torpor.snapshots.differences, field by field)
    changed_files        the files outside of it that it depends on

`misfits` checks all of them. A restore checks each at the moment when that takes no extra time.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError, SnapshotMisfitError, TorporError
from torpor.snapshots.facts import deployment_facts, known_criu, machine_facts
from torpor.snapshots.machines import machine_differences
from torpor.snapshots.store.failures import bad_reason
from torpor.snapshots.store.files import damaged_files
from torpor.snapshots.store.folder import real_folder
from torpor.snapshots.store.here import AS_CAPTURED, read_here
from torpor.snapshots.store.paths import cache_root
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torpor.lifecycle import Lifecycle
    from torpor.recipe import Recipe
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.gpu.placement import GpuMap, Placement
    from torpor.snapshots.store.here import Here
    from torpor.snapshots.store.manifest import DeploymentFacts, Manifest
    from torpor.snapshots.store.outside import Hashes

__all__ = [
    "bad_marks",
    "changed_files",
    "different_deployment",
    "gpus_for_one",
    "loaded_here",
    "misfit",
    "misfits",
    "placed_gpus",
    "unfit_gpus",
    "unfit_machine",
]

_SHOWN = 8


def misfits(
    folder: Path, manifest: Manifest, lifecycle: Lifecycle | None = None, *, full: bool = False, replicas: int = 1
) -> list[str]:
    """Every reason why a snapshot cannot be restored here, a sentence each.

    Args:
        folder: the snapshot.
        manifest: its manifest.
        lifecycle: of the deployment to compare with; by default the snapshot's own app file is imported.
        full: compare hashes, too.
        replicas: how many are to be restored.
    """
    folder = real_folder(folder)
    reasons = [*bad_marks(folder), *damaged_files(folder, manifest, full=full)]
    try:
        reasons += unfit_machine(manifest, known_criu(manifest.machine))
    except SnapshotError as error:
        reasons.append(str(error))
    reasons += unfit_gpus(manifest, replicas=replicas)
    try:
        _, _, differences = loaded_here(manifest, lifecycle, read_here(folder))
        reasons += differences
    except TorporError as error:
        reasons.append(f"its app file cannot be used: {error}")
    with contextlib.suppress(SnapshotError):  # the list is damaged: `damaged_files` says so
        reasons += changed_files(folder, full=full)
    return list(map(plain, reasons))


def misfit(folder: Path, reasons: Sequence[str]) -> SnapshotMisfitError:
    """The error for a snapshot that does not fit, with every reason."""
    listed = "\n".join(f"  - {plain(reason)}" for reason in reasons)
    return SnapshotMisfitError(
        f"The snapshot {folder} does not fit:\n{listed}\nNothing was restored. Undo the change, or take a new snapshot: "
        "torpor snapshot create"
    )


def bad_marks(folder: Path) -> list[str]:
    """Why a snapshot is marked bad; empty if it is not."""
    reason = bad_reason(folder)
    return [reason] if reason else []


def unfit_machine(manifest: Manifest, criu: Criu) -> tuple[str, ...]:
    """Why a snapshot cannot be restored on this machine, a sentence for each reason; `unfit_gpus` looks at the GPUs.

    Args:
        manifest: the snapshot's.
        criu: the program.
    """
    return tuple(machine_differences(manifest.machine, machine_facts(criu)))


def gpus_for_one(folder: Path, manifest: Manifest, *, chosen: Sequence[str] = ()) -> GpuMap | None:
    """The GPUs of one replica that is restored now; None for a snapshot without GPU state.

    Raises:
        SnapshotMisfitError: there are none; the error lists every reason.
    """
    found = placed_gpus(manifest, chosen=chosen)
    if found is None:
        return None
    if found.reasons:
        raise misfit(folder, found.reasons)
    return found.maps[0]


def unfit_gpus(manifest: Manifest, *, replicas: int = 1) -> tuple[str, ...]:
    """Why a snapshot's GPU state cannot be restored on this machine's GPUs, a sentence for each reason; see `placed_gpus`."""
    found = placed_gpus(manifest, replicas=replicas)
    return found.reasons if found else ()


def placed_gpus(
    manifest: Manifest, *, replicas: int = 1, chosen: Sequence[str] = (), occupied: Sequence[str] = ()
) -> Placement | None:
    """The GPUs of each replica, or why a snapshot's GPU state cannot be restored on this machine's GPUs.

    It asks the driver: 0.06 s on an H200's host. A restore asks beside CRIU's work, as GPU state comes back after it.

    Args:
        manifest: the snapshot's.
        replicas: how many are to be restored; each needs GPU memory.
        chosen: UUIDs of the GPUs that may be taken; by default all.
        occupied: UUIDs of the GPUs that other replicas of the same command have, one for each replica.

    Returns:
        None for a snapshot without GPU state, which needs no GPUs.
    """
    made_on = manifest.machine
    if not made_on.gpus:
        return None
    from torpor.snapshots.gpu.placement import placed_here  # noqa: PLC0415 - driver and placement: 3 ms, needed only with a GPU

    needed = manifest.gpu.needed if manifest.gpu else {}
    return placed_here(made_on.driver, made_on.gpus, needed, replicas=replicas, chosen=chosen, occupied=occupied)


def loaded_here(
    manifest: Manifest, lifecycle: Lifecycle | None, here: Here = AS_CAPTURED
) -> tuple[Lifecycle, Recipe, list[str]]:
    """The deployment of the snapshot's app file as it is now, and how it differs from the captured one.

    Args:
        manifest: the snapshot's.
        lifecycle: of the deployment, if its app file was imported already.
        here: where the snapshot's files lie on this machine.

    Raises:
        TorporError: the app file cannot be used.
    """
    from torpor.app_file import load_app  # noqa: PLC0415 - app_file: 14 ms beside CRIU's work
    from torpor.build_steps.relocation import relocate  # noqa: PLC0415

    found = lifecycle or load_app(here.app_file or here.path(manifest.app_file)).lifecycle
    deployment = found.deployment
    recipe = relocate(found.recipe(), cache_root(), deployment.name)
    facts = here.as_captured(deployment_facts(deployment, recipe))
    return found, recipe, list(different_deployment(manifest.deployment, facts))


def different_deployment(made_of: DeploymentFacts, here: DeploymentFacts) -> tuple[str, ...]:
    """How the captured deployment differs from the one here, field by field, a sentence each."""
    if made_of == here:
        return ()
    from torpor.snapshots.differences import differences  # noqa: PLC0415 - differences: 5 ms that a restore saves

    return differences(made_of, here)


def changed_files(folder: Path, *, full: bool = False, hashes: Hashes | None = None) -> tuple[str, ...]:
    """Which files outside of a snapshot have changed: open files, the model, the engine's code. A sentence each.

    CRIU compares the sizes of open files as well, but stops at the first.

    Args:
        folder: the snapshot.
        full: compare content even if size and time are the same.
        hashes: gives hashes of files; by default each is read.

    Raises:
        DamagedSnapshotError: the list of files is missing or damaged.
    """
    from torpor.snapshots.store import outside  # noqa: PLC0415 - hashlib: 2.7 ms beside CRIU's work

    source = hashes or outside.Hashes()
    noted = outside.noted_files(folder)
    found = [what for entry in noted if (what := outside.difference(entry, full=full, hashes=source))]
    more = [f"{len(found) - _SHOWN} more files have changed"] if len(found) > _SHOWN else []
    return tuple(found[:_SHOWN] + more)
