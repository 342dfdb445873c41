"""Restore a snapshot if it fits, else start cold and capture a new one: for `torpor up` and all that serves on this machine.

started = start_here(load_app("app.py"), StartOptions(snapshot=Path("/srv/kept")))
...
started.stop()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torpor import snapshots
from torpor.errors import ConfigurationError, PortInUseError, SnapshotError, TorporError
from torpor.platforms import local
from torpor.platforms.local.server import LocalServer
from torpor.plugin_checks import tell_warnings
from torpor.runtime.supervision import WAKE_FAILED, ReplicaEvent
from torpor.snapshots import remote
from torpor.telemetry.records import fetched_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torpor.app_file import App
    from torpor.deployment import Deployment
    from torpor.lifecycle import Lifecycle
    from torpor.platforms.local.backends import SnapshotBackend
    from torpor.platforms.local.replicas import Replicas
    from torpor.snapshots.gpu.placement import GpuPlace
    from torpor.snapshots.remote.source import Source
    from torpor.telemetry.records import BootKind, StageRecord
    from torpor.telemetry.stage_report import StageReport

__all__ = ["StartOptions", "Way", "start_here", "why_not_restored"]


class Way(NamedTuple):
    """How a server is started.

    Attributes:
        boot: `restored` or `cold`.
        said: one line with the kind and the reason.
        reasons: why the snapshot is not restored, one sentence each.
    """

    boot: BootKind
    said: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """How `start_here` starts a server.

    Attributes:
        snapshot: a snapshot's folder; None starts cold.
        source: a snapshot of a store, in place of `snapshot`. If it fits, it is pulled and restored; else the server starts cold.
            Nothing is captured into the store or pushed to it.
        backend: the snapshot backend of a server without `snapshot`; with `snapshot` a `CriuBackend` keeps it there.
        prove: whether a new snapshot is restored on trial before it is put in place; see `CriuBackend`.
        host: address of the gateway of a server with a snapshot; the deployment's by default.
        port: that gateway's port; the deployment's by default.
        gpus: the GPUs that the engine may use; by default a restore takes free ones, and at a cold start CUDA chooses.
        report: records the stages of a cold start; those of a restore go to its file.
        supervised: whether restored replicas that end by themselves start again. The caller of a cold `LocalServer` restarts it
            itself (`start_again`).
        on_way: called with the way that was chosen.
        on_cold: called with the server before a cold start.
        on_step: called with the name of each build step before it runs.
        on_stage: called with the stages of a restored replica's wake.
        on_event: called with each event of the engine (ended, failed, restarted); logged by default.
    """

    snapshot: Path | None = None
    source: Source | None = None
    backend: SnapshotBackend | None = None
    prove: bool | None = None
    host: str | None = None
    port: int | None = None
    gpus: Sequence[GpuPlace] = ()
    report: StageReport | None = None
    supervised: bool = True
    on_way: Callable[[Way], None] | None = None
    on_cold: Callable[[LocalServer], None] | None = None
    on_step: Callable[[str], None] | None = None
    on_stage: Callable[[str, StageRecord], None] | None = None
    on_event: Callable[[ReplicaEvent], None] | None = None


def start_here(app: App, options: StartOptions) -> LocalServer | Replicas:
    """Start a server on this machine. It serves when this returns, until its `stop` is called.

    A snapshot that fits is restored. A failed restore is tried once more, and so is a failed wake. If there is no snapshot, if it
    does not fit or is marked bad, or if the restore failed twice, the server starts cold and captures a new snapshot. If the
    trial restore of the new snapshot fails too, the server starts cold once more and serves without a snapshot.

    Args:
        app: what to serve; a snapshot records its file.
        options: how to start it.

    Raises:
        PortInUseError: another process listens on the port.
        ConfigurationError: the deployment cannot run here, or a plugin's check finds an error in it.
        TorporError: the cold start failed; nothing is left running.
    """
    tell_warnings(app.deployment)  # a cold start would warn in `LocalServer`, a restore has none
    way, snapshot = _chosen_way(app, options)
    if way is not None:
        _tell(options, way)
    failed = False
    if snapshot is not None:
        replicas = _restored(app, snapshot, options)
        if replicas is not None:
            return replicas
        failed = True
    return _started_cold(app, options, failed=failed)


def _restored(app: App, snapshot: Path, options: StartOptions) -> Replicas | None:
    """Restore one replica; None if that failed and the deployment allows a cold start."""
    deployment = app.deployment
    from torpor.platforms.local.replicas import Replicas  # noqa: PLC0415 - 20 ms before an engine without a snapshot

    replicas = Replicas(
        snapshot,
        host=options.host or deployment.host,
        port=options.port or deployment.port,
        supervised=options.supervised,
        cold_start=False,  # `start_here` starts cold, and captures a new snapshot
        on_stage=options.on_stage,
        on_event=options.on_event,
        records=options.report.path if options.report else None,
        lifecycle=app.lifecycle,
        gpus=options.gpus,
    )
    try:
        _start_or_try_again(replicas, deployment, options.on_event or ReplicaEvent.log)
    except (PortInUseError, ConfigurationError):
        raise  # a cold start would fail in the same way, later
    except TorporError as error:
        if not deployment.cold_start_on_failed_wake:
            raise
        _tell(options, Way("cold", f"cold: the snapshot could not be restored: {error}"))
        return None
    replicas.allow_cold_start()
    return replicas


def _started_cold(app: App, options: StartOptions, *, failed: bool) -> LocalServer:
    """Start cold, and capture a snapshot if there is a folder for one."""
    backend = options.backend
    if options.snapshot is not None:
        backend = local.CriuBackend(
            folder=options.snapshot,
            app_file=app.file,
            leave_running=True,
            prove=options.prove,
            host=options.host,
            port=options.port,
            gpus=options.gpus,
        )
    server = LocalServer(
        app.deployment,
        lifecycle=app.lifecycle,
        backend=backend,
        report=options.report,
        on_step=options.on_step,
        on_event=options.on_event,
        gpus=options.gpus,
    )
    if failed:
        server.boot.reason, server.boot.restarts = WAKE_FAILED, 1
    if options.on_cold:
        options.on_cold(server)
    server.start()
    return server


def _tell(options: StartOptions, way: Way) -> None:
    if options.on_way:
        options.on_way(way)


def why_not_restored(lifecycle: Lifecycle, snapshot: Path) -> tuple[str, ...]:
    """Why this snapshot does not fit here and now, one sentence each; empty if it fits."""
    try:
        return tuple(snapshots.misfits(snapshot, snapshots.inspect(snapshot), lifecycle))
    except SnapshotError as error:
        return (str(error),)


def _chosen_way(app: App, options: StartOptions) -> tuple[Way | None, Path | None]:
    """The way to start, if a snapshot was named, and the snapshot to restore, if it fits."""
    if options.source is not None:
        return _pulled(app, options.source, options.report)
    if options.snapshot is not None:
        way = _way(app.lifecycle, options.snapshot)
        return way, options.snapshot if way.boot == "restored" else None
    return None, None


def _pulled(app: App, source: Source, report: StageReport | None) -> tuple[Way, Path | None]:
    """The way to start with a snapshot of a store, and its folder once it is here."""
    try:
        obtained = remote.obtain(source, app)
    except SnapshotError as error:
        return Way("cold", f"cold: the snapshot {source.url} is not restored: {error}"), None
    if report is not None:
        for one in obtained.stages:
            report.end(fetched_stage(one.stage, one.seconds, deployment=app.deployment.name))
    return Way("restored", f"restored: the snapshot {source.url} fits; {obtained.described()}"), obtained.folder


def _way(lifecycle: Lifecycle, snapshot: Path) -> Way:
    there = (snapshot / snapshots.MANIFEST).is_file()
    reasons = why_not_restored(lifecycle, snapshot) if there else ()
    if there and not reasons:
        return Way("restored", f"restored: the snapshot {snapshot} fits")
    snapshots.check_target(snapshot)  # the new snapshot will replace what is there; one that fits is only read
    if there:
        return Way(
            "cold", f"cold: the snapshot {snapshot} does not fit; a new one is captured after the start", reasons
        )
    return Way("cold", f"cold: there is no snapshot in {snapshot}; one is captured after the start")


def _start_or_try_again(replicas: Replicas, deployment: Deployment, tell: Callable[[ReplicaEvent], None]) -> None:
    """Restore, and try once more if that fails: CRIU may have been killed, or memory was short. `Replicas` repeats wakes itself."""
    try:
        replicas.start()
    except (PortInUseError, ConfigurationError):
        raise
    except SnapshotError as error:
        tell(ReplicaEvent("restore_failed", deployment.name, error=f"{type(error).__name__}: {error}"))
        replicas.start()
