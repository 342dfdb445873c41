"""Restore if it fits, else start cold (and keep a snapshot): one function, for the command line and whoever else serves here.

started = start_here(load_app("app.py"), snapshot=Path("/srv/kept"))
...
started.stop()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import ConfigurationError, PortInUseError, SnapshotError, TorporError
from torpor.platforms.local.backends import CriuBackend
from torpor.platforms.local.server import LocalServer
from torpor.plugin_checks import tell_warnings
from torpor.runtime.supervision import WAKE_FAILED, ReplicaEvent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torpor.app_file import App
    from torpor.deployment import Deployment
    from torpor.lifecycle import Lifecycle
    from torpor.platforms.local.backends import SnapshotBackend
    from torpor.platforms.local.replicas import Replicas
    from torpor.telemetry.records import BootKind, StageRecord
    from torpor.telemetry.stage_report import StageReport

__all__ = ["Way", "start_here", "why_not_restored"]


class Way(NamedTuple):
    """How a server is started.

    Attributes:
        boot: `restored` or `cold`.
        said: one line that says so, and why.
        reasons: what stands against a restore, a sentence each.
    """

    boot: BootKind
    said: str
    reasons: tuple[str, ...] = ()


def start_here(
    app: App,
    *,
    snapshot: Path | None = None,
    backend: SnapshotBackend | None = None,
    prove: bool | None = None,
    host: str | None = None,
    port: int | None = None,
    report: StageReport | None = None,
    supervised: bool = True,
    on_way: Callable[[Way], None] | None = None,
    on_cold: Callable[[LocalServer], None] | None = None,
    on_step: Callable[[str], None] | None = None,
    on_stage: Callable[[str, StageRecord], None] | None = None,
    on_event: Callable[[ReplicaEvent], None] | None = None,
) -> LocalServer | Replicas:
    """Start a server on this machine; it serves when this returns.

    With a snapshot: restore it where it fits. A restore that fails is tried once more, a wake that fails is tried once more by
    itself. Where there is none, where it does not fit or is marked bad, and where it failed twice: start cold, and make the
    snapshot anew; where a trial of the new one does not wake, either, start cold once more and serve without a snapshot.

    Args:
        app: what to serve; a snapshot remembers its file.
        snapshot: a snapshot's folder; None starts cold.
        backend: how a server without a snapshot is kept; with one it is kept there.
        prove: whether a new snapshot is tried before it is put in place; see `CriuBackend`.
        host: address of the public port of a server with a snapshot; the deployment's by default.
        port: that port; the deployment's by default.
        report: where the stages of a cold start are recorded; those of a restore go to its file.
        supervised: start restored replicas again that end by themselves; a `LocalServer` is told to by `start_again`.
        on_way: told which way is taken.
        on_cold: told the server before a cold start.
        on_step: told the name of each build step before it runs.
        on_stage: told the stages of a restored replica's wake.
        on_event: told what happens to the engine by itself; by default that is logged.

    Returns:
        What serves; `stop` ends it.

    Raises:
        PortInUseError: somebody else has the port.
        ConfigurationError: the deployment cannot run here, or a plugin's check finds an error in it.
        TorporError: the cold start failed; nothing is left running.
    """
    deployment = app.deployment
    tell_warnings(deployment)  # also where a snapshot is restored, which makes no `LocalServer`
    tell_way = on_way or _not_told
    failed = False
    if snapshot is not None:
        from torpor.platforms.local.replicas import Replicas  # noqa: PLC0415 - only with a snapshot

        way = _way(app.lifecycle, snapshot)
        tell_way(way)
        if way.boot == "restored":
            replicas = Replicas(
                snapshot,
                host=host or deployment.host,
                port=port or deployment.port,
                supervised=supervised,
                cold_start=False,  # a cold start here keeps a new snapshot
                on_stage=on_stage,
                on_event=on_event,
                records=report.path if report else None,
                lifecycle=app.lifecycle,
            )
            try:
                _start_or_try_again(replicas, deployment, on_event or ReplicaEvent.log)
            except (PortInUseError, ConfigurationError):
                raise  # a cold start would fail in the same way, later
            except TorporError as error:
                if not deployment.cold_start_on_failed_wake:
                    raise
                tell_way(Way("cold", f"cold: the snapshot could not be restored: {error}"))
                failed = True
            else:
                replicas.allow_cold_start()
                return replicas
        backend = CriuBackend(folder=snapshot, app_file=app.file, leave_running=True, prove=prove, host=host, port=port)
    server = LocalServer(
        deployment, lifecycle=app.lifecycle, backend=backend, report=report, on_step=on_step, on_event=on_event
    )
    if failed:
        server.boot.reason, server.boot.restarts = WAKE_FAILED, 1
    if on_cold:
        on_cold(server)
    server.start()
    return server


def _not_told(_way: Way) -> None:
    """Nobody wants to know."""


def why_not_restored(lifecycle: Lifecycle, snapshot: Path) -> tuple[str, ...]:
    """What stands against a restore of this snapshot for this deployment here and now, a sentence each; nothing: it fits."""
    from torpor.snapshots.fit import misfits  # noqa: PLC0415 - only with a snapshot
    from torpor.snapshots.store.stored import inspect  # noqa: PLC0415

    try:
        return tuple(misfits(snapshot, inspect(snapshot), lifecycle))
    except SnapshotError as error:
        return (str(error),)


def _way(lifecycle: Lifecycle, snapshot: Path) -> Way:
    from torpor.snapshots.store.manifest import MANIFEST  # noqa: PLC0415 - only with a snapshot
    from torpor.snapshots.targets import check_target  # noqa: PLC0415

    there = (snapshot / MANIFEST).is_file()
    reasons = why_not_restored(lifecycle, snapshot) if there else ()
    if there and not reasons:
        return Way("restored", f"restored: the snapshot {snapshot} fits")
    check_target(snapshot)  # a new snapshot takes this place; one that fits is only read
    if there:
        return Way("cold", f"cold: the snapshot {snapshot} does not fit and is made anew after the start", reasons)
    return Way("cold", f"cold: there is no snapshot in {snapshot}; it is made after the start")


def _start_or_try_again(replicas: Replicas, deployment: Deployment, tell: Callable[[ReplicaEvent], None]) -> None:
    """CRIU may have been killed, or have met a full machine; whatever the wake did was tried twice before."""
    try:
        replicas.start()
    except (PortInUseError, ConfigurationError):
        raise
    except SnapshotError as error:
        tell(ReplicaEvent("restore_failed", deployment.name, error=f"{type(error).__name__}: {error}"))
        replicas.start()
