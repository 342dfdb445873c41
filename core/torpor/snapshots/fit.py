"""Does a snapshot fit here and now? The one list of what stands against a restore, each reason as a sentence.

    bad_marks            it is marked bad: its replicas did not wake
    damaged_files        its own files (torpor.snapshots.store.manifest)
    unfit_machine        machine, CRIU and GPUs (torpor.snapshots.facts, with different_machine)
    different_deployment what its app file says now
    changed_files        what it depends on outside of itself (torpor.snapshots.capture)

A restore looks at each where it costs nothing; `misfits` looks at all of them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from torpor.errors import SnapshotError, SnapshotMisfitError, TorporError
from torpor.snapshots.before_capture.outside_files import difference
from torpor.snapshots.facts import deployment_facts, known_criu, machine_facts
from torpor.snapshots.store.failures import bad_reason
from torpor.snapshots.store.files import damaged_files
from torpor.snapshots.store.folder import real_folder
from torpor.snapshots.store.gpu_state import described, different_gpus
from torpor.snapshots.store.paths import cache_root
from torpor.snapshots.store.reading import plain
from torpor.snapshots.store.stored import noted_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torpor.lifecycle import Lifecycle
    from torpor.recipe import Recipe
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.store.manifest import DeploymentFacts, MachineFacts, Manifest

__all__ = [
    "bad_marks",
    "changed_files",
    "different_deployment",
    "different_machine",
    "loaded_here",
    "misfit",
    "misfits",
    "unfit_machine",
]

_SHOWN = 8


def misfits(
    folder: Path, manifest: Manifest, lifecycle: Lifecycle | None = None, *, full: bool = False, copies: int = 1
) -> list[str]:
    """Why a snapshot cannot be restored here, as a list of sentences.

    Args:
        folder: the snapshot.
        manifest: its manifest.
        lifecycle: of the deployment that it should be of; that of its own app file by default.
        full: compare hashes, too.
        copies: how many there are to be.
    """
    folder = real_folder(folder)
    reasons = [*bad_marks(folder), *damaged_files(folder, manifest, full=full)]
    try:
        criu = known_criu(manifest.machine)
        reasons += unfit_machine(manifest, criu, copies=copies)
    except SnapshotError as error:
        reasons.append(str(error))
    try:
        _, _, differences = loaded_here(manifest, lifecycle)
        reasons += differences
    except TorporError as error:
        reasons.append(f"its app file cannot be used: {error}")
    with contextlib.suppress(SnapshotError):  # damaged: said above
        reasons += changed_files(folder, full=full)
    return list(map(plain, reasons))


def misfit(folder: Path, reasons: Sequence[str]) -> SnapshotMisfitError:
    """The error of a snapshot that does not fit, with every reason."""
    listed = "\n".join(f"  - {plain(reason)}" for reason in reasons)
    return SnapshotMisfitError(
        f"The snapshot {folder} does not fit:\n{listed}\nNothing was restored. Undo the change, or take a new snapshot: "
        "torpor snapshot create"
    )


def bad_marks(folder: Path) -> list[str]:
    """Why a snapshot is marked bad; nothing where it is not."""
    reason = bad_reason(folder)
    return [reason] if reason else []


def loaded_here(manifest: Manifest, lifecycle: Lifecycle | None) -> tuple[Lifecycle, Recipe, list[str]]:
    """The deployment as its app file gives it now, and how it differs from the snapshot's.

    Args:
        manifest: the snapshot's.
        lifecycle: the deployment's, where the app file was imported already.

    Raises:
        TorporError: the app file cannot be used.
    """
    from torpor.app_file import load_app  # noqa: PLC0415 - plugins, pluggy: beside CRIU's work
    from torpor.build_steps.relocation import relocate  # noqa: PLC0415

    found = lifecycle or load_app(manifest.app_file).lifecycle
    deployment = found.deployment
    recipe = relocate(found.recipe(), cache_root(), deployment.name)
    return found, recipe, list(different_deployment(manifest.deployment, deployment_facts(deployment, recipe)))


def unfit_machine(manifest: Manifest, criu: Criu, *, copies: int = 1) -> tuple[str, ...]:
    """Why copies of a snapshot cannot be restored on this machine, each as a sentence.

    The GPUs are looked at only for a snapshot that was made on some.

    Args:
        manifest: the snapshot's.
        criu: the one to be used.
        copies: how many; each takes GPU memory.
    """
    if not manifest.machine.gpus:
        return different_machine(manifest.machine, machine_facts(criu))
    from torpor.snapshots.gpu.driver import full_gpus, look  # noqa: PLC0415 - NVML, for such snapshots alone

    driver = look()
    facts = machine_facts(criu, driver=driver.version, gpus=driver.gpus)
    needed = manifest.gpu.memory if manifest.gpu else {}
    return (*different_machine(manifest.machine, facts), *full_gpus(needed, driver, copies=copies))


def changed_files(folder: Path, *, full: bool = False) -> tuple[str, ...]:
    """What a snapshot depends on outside of itself and is not as it was: open files, the model, the engine's code.

    Each as a sentence. CRIU compares the sizes of open files as well, but stops at the first.

    Args:
        folder: the snapshot.
        full: compare content even where size and time are the same.

    Raises:
        SnapshotError: there is no list of them.
    """
    found = [what for entry in noted_files(folder) if (what := difference(entry, full=full))]
    more = [f"so have {len(found) - _SHOWN} more files"] if len(found) > _SHOWN else []
    return tuple(found[:_SHOWN] + more)


def different_deployment(made_of: DeploymentFacts, here: DeploymentFacts) -> tuple[str, ...]:
    """Why a snapshot is not of this deployment as it stands now, field by field, each as a sentence."""
    if made_of == here:
        return ()
    from torpor.snapshots.differences import differences  # noqa: PLC0415 - a snapshot that fits has none

    return differences(made_of, here)


def different_machine(made_on: MachineFacts, here: MachineFacts) -> tuple[str, ...]:
    """Why a snapshot of one machine does not fit another, each as a sentence."""
    found = [
        f"it was made on {what} {then}; here it is {now}"
        for what, then, now in (
            ("architecture", made_on.architecture, here.architecture),
            ("kernel", made_on.kernel, here.kernel),
            ("CRIU", made_on.criu, here.criu),
            ("NVIDIA driver", made_on.driver or "none", here.driver or "none"),
        )
        if then != now
    ]
    if len(here.gpus) < len(made_on.gpus):
        found.append(f"it was made on GPUs {described(made_on.gpus)}; here it is {described(here.gpus)}")
    found += different_gpus(made_on.gpus, here.gpus)
    if missing := sorted(set(made_on.cpu) - set(here.cpu)):
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        found.append(f"this CPU lacks features that were there: {', '.join(missing[:_SHOWN])}{more}")
    return tuple(found)
