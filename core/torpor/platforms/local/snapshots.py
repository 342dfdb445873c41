"""Create, restore, inspect and remove a snapshot: what `torpor snapshot` does, for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.app_file import App, load_app
from torpor.build_steps.relocation import relocate
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.replicas import Replicas
from torpor.platforms.local.server import LocalServer, check_model_folder
from torpor.snapshots.before_capture.lasting_folders import check_lasting
from torpor.snapshots.store.index import remove
from torpor.snapshots.store.paths import cache_root
from torpor.snapshots.store.stored import inspect
from torpor.snapshots.targets import check_target, check_writable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torpor.lifecycle import Lifecycle
    from torpor.snapshots.gpu.placement import GpuPlace
    from torpor.snapshots.store.manifest import Manifest, Mode
    from torpor.telemetry.stage_report import StageReport

__all__ = ["check_before_start", "create_snapshot", "inspect_snapshot", "remove_snapshot", "restore_snapshot"]


def create_snapshot(
    app: App | str | Path,
    folder: Path,
    *,
    mode: Mode | None = None,
    copy_memory: bool = False,
    prove: bool | None = None,
    gpus: Sequence[GpuPlace] = (),
    report: StageReport | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Manifest:
    """Start an app cold, put it to sleep, capture it in a folder and end it.

    Args:
        app: the app, or the path of its file; a restore imports the file again.
        folder: where the snapshot goes; an older one is replaced once the new one is complete.
        mode: root or rootless; by default what works here, rootless first (with a GPU: root).
        copy_memory: see `CriuBackend`.
        prove: see `CriuBackend`.
        gpus: see `LocalServer`.
        report: where stages are recorded.
        on_step: called with the name of each build step before it runs.

    Raises:
        SnapshotError: it cannot be captured here, for every reason that is listed. Nothing is left on the disk or running.
        TorporError: the start failed.
    """
    check_target(folder)
    loaded = app if isinstance(app, App) else load_app(str(app))
    backend = CriuBackend(
        folder=folder, app_file=loaded.file, mode=mode, public=False, copy_memory=copy_memory, prove=prove
    )
    server = LocalServer(
        loaded.deployment, lifecycle=loaded.lifecycle, backend=backend, report=report, on_step=on_step, gpus=gpus
    )
    try:
        server.cold_start()
        return backend.capture(server.boot)
    finally:
        server.stop()


def restore_snapshot(
    folder: Path,
    *,
    replicas: int = 1,
    port: int | None = None,
    host: str | None = None,
    full: bool = False,
    gpus: Sequence[GpuPlace] = (),
) -> Replicas:
    """Restore replicas of a snapshot behind one port. They serve until `stop` of the returned `Replicas`.

    A replica that ends by itself is restored again; `torpor.runtime.supervision` says how often.

    Args:
        folder: the snapshot.
        replicas: how many.
        port: public port; the deployment's by default.
        host: address of the public port; the deployment's by default.
        full: compare the hash of every file first.
        gpus: the GPUs that the replicas may take; by default all of this machine.

    Raises:
        PortInUseError: somebody else has the port; nothing was restored.
        SnapshotError: it does not fit, for every reason that is listed; nothing is left running.
        TorporError: a replica did not wake; nothing is left running.
    """
    restored = Replicas(folder, port=port, host=host, full=full, supervised=True, gpus=gpus)
    restored.start(replicas)
    return restored


def inspect_snapshot(folder: Path) -> Manifest:
    """Read the manifest of a snapshot.

    Raises:
        SnapshotError: there is none, it is open to others, damaged, or of another version.
    """
    return inspect(folder)


def remove_snapshot(folder: Path) -> None:
    """Delete a snapshot; running replicas go on.

    Args:
        folder: the snapshot. A symbolic link is followed, and stays.

    Raises:
        SnapshotError: it is no snapshot that Torpor wrote for this user; the message says what it is, and nothing is deleted.
    """
    remove(folder)


def check_before_start(lifecycle: Lifecycle, folder: Path) -> None:
    """Refuse, before anything is built or started, what would fail a capture later.

    Args:
        lifecycle: of what is to be snapshotted.
        folder: where the snapshot is to go.

    Raises:
        SnapshotError: the target does not do, the engine needs files in a folder that does not last, or the model's folder holds
            more than a model.
    """
    check_target(folder)
    check_writable(folder)
    deployment = lifecycle.deployment
    recipe = relocate(lifecycle.recipe(), cache_root(), deployment.name)
    check_lasting(deployment, recipe)
    check_model_folder(deployment, recipe)
