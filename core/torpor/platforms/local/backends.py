"""How a machine keeps a sleeping server: one small protocol, three implementations.

none       nothing is kept: every start is a cold start
standby    the process stays, asleep; no privilege is needed, GPU memory is free
criu       the process is written to a folder and ends; any number of copies can be restored from it
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from torpor.errors import SnapshotError
from torpor.guard.protocol import WOKEN_BY_DEFAULT
from torpor.values.addresses import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torpor.deployment import Deployment
    from torpor.engine.start import Starter
    from torpor.platforms.local.gateway import Gateway
    from torpor.platforms.local.gateway_route import GatewayReplica
    from torpor.runtime.boot import Boot
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.sandbox.sandbox import Sandbox
    from torpor.snapshots.store.hold import Hold
    from torpor.snapshots.store.manifest import Manifest, Mode

__all__ = ["BACKENDS", "STANDBY_WORKS", "CriuBackend", "NoSnapshot", "SnapshotBackend", "Standby", "make_backend"]

STANDBY_WORKS = "The backend 'standby' works anywhere: torpor up APP --backend standby"
"""What is offered where another backend cannot be used."""


class SnapshotBackend(Protocol):
    """How this machine keeps a sleeping server.

    Attributes:
        name: as in `--backend`.
        process_stays: whether the engine's process lives on while it is kept.
    """

    name: ClassVar[str]
    process_stays: ClassVar[bool]

    def available(self, deployment: Deployment | None = None) -> tuple[str, ...]:
        """Why it cannot be used here, each reason with what to do about it; empty when it can.

        Args:
            deployment: what it is for, as far as that matters (a GPU asks for more); None for one that needs nothing special.
        """

    def placed(self, deployment: Deployment) -> Deployment:
        """The deployment as its engine is started: an engine in a network of its own listens on loopback there."""

    def address(self, deployment: Deployment) -> tuple[str, int]:
        """Where its clients find it: host and port that are listened on.

        Args:
            deployment: as `placed` gave it.
        """

    def prepare(self, deployment: Deployment) -> Starter | None:
        """Get ready for a cold start: where the engine is started, or None for a child of this process.

        Raises:
            PortInUseError: somebody else has the port.
            SnapshotError: there is no place to be had.
        """

    def capture(self, boot: Boot) -> object:
        """Put a started server to sleep and keep it."""

    def restore(self, boot: Boot) -> None:
        """Bring the kept server back to serving."""

    def clear(self) -> None:
        """Let go of the place of an engine that ended by itself, for `prepare` or `restore`; the public port stays.

        Harmless to repeat.
        """

    def drain(self, limit_s: float) -> int:
        """Let clients of a public port of its own take their answers, for so many seconds; how many have not.

        Args:
            limit_s: seconds.
        """

    def close(self) -> None:
        """End what the backend itself started; the engine has been ended before. Harmless to repeat."""


class NoSnapshot:
    """Nothing is kept: every start is a cold start."""

    name: ClassVar[str] = "none"
    process_stays: ClassVar[bool] = True

    def available(self, deployment: Deployment | None = None) -> tuple[str, ...]:  # noqa: ARG002 - the protocol's
        """It can be used anywhere."""
        return ()

    def placed(self, deployment: Deployment) -> Deployment:
        """The engine's own server listens on the public port."""
        return deployment

    def address(self, deployment: Deployment) -> tuple[str, int]:
        """Where the engine listens."""
        return deployment.host, deployment.port

    def prepare(self, deployment: Deployment) -> Starter | None:  # noqa: ARG002 - the protocol's
        """The engine is a child of this process."""
        return None

    def capture(self, boot: Boot) -> None:
        """Refuse.

        Raises:
            SnapshotError: always; the message names the backend that can.
        """
        raise SnapshotError(
            f"The backend 'none' keeps nothing, so {boot.deployment.name!r} cannot be put to sleep; use --backend standby."
        )

    def restore(self, boot: Boot) -> None:
        """Refuse.

        Raises:
            SnapshotError: always.
        """
        raise SnapshotError(f"The backend 'none' keeps nothing, so there is no {boot.deployment.name!r} to wake.")

    def clear(self) -> None:
        """There is nothing to let go of."""

    def drain(self, limit_s: float) -> int:  # noqa: ARG002 - the protocol's
        """The engine's own server listens on the public port."""
        return 0

    def close(self) -> None:
        """There is nothing to end."""


class Standby:
    """The process stays, asleep: GPU memory is free, host memory holds what a wake needs; no privilege is needed."""

    name: ClassVar[str] = "standby"
    process_stays: ClassVar[bool] = True

    def available(self, deployment: Deployment | None = None) -> tuple[str, ...]:  # noqa: ARG002 - the protocol's
        """It can be used anywhere."""
        return ()

    def placed(self, deployment: Deployment) -> Deployment:
        """The engine's own server listens on the public port."""
        return deployment

    def address(self, deployment: Deployment) -> tuple[str, int]:
        """Where the engine listens."""
        return deployment.host, deployment.port

    def prepare(self, deployment: Deployment) -> Starter | None:  # noqa: ARG002 - the protocol's
        """The engine is a child of this process."""
        return None

    def capture(self, boot: Boot) -> None:
        """Put the engine to sleep; its process stays, and nothing of it is written down."""
        boot.sleep(for_snapshot=False)

    def restore(self, boot: Boot) -> None:
        """Wake the engine in its own process."""
        boot.wake()

    def clear(self) -> None:
        """There is nothing to let go of."""

    def drain(self, limit_s: float) -> int:  # noqa: ARG002 - the protocol's
        """The engine's own server listens on the public port."""
        return 0

    def close(self) -> None:
        """There is nothing to end."""


class CriuBackend:
    """The sleeping engine is written to a folder by CRIU; a restore brings a copy back in a sandbox of its own.

    Args:
        folder: where the snapshot goes; `<cache root>/snapshots/<deployment>` by default.
        app_file: where the deployment stands; a later `torpor snapshot restore` reads it again.
        mode: root or rootless; by default what works here, rootless first (with a GPU: root).
        leave_running: keep the original after a capture and wake it, instead of a copy.
        public: whether the deployment's port of this machine leads to the engine.
        copy_memory: have CRIU copy the memory into each copy, as it does by itself, instead of letting copies map it from the
            snapshot's files (`torpor.snapshots.criu.mapped_memory`): slower to restore, but then a copy needs the files no more.
        gpu_devices: how the paths of the GPU driver's device files begin; those of the NVIDIA driver by default.
        prove: restore and wake one replica of each new snapshot before it is put in its place; by default where that costs
            seconds: for deployments without a GPU.
        host: address of the public port; the deployment's by default.
        port: the public port; the deployment's by default.
    """

    name: ClassVar[str] = "criu"
    process_stays: ClassVar[bool] = False

    def __init__(
        self,
        *,
        folder: Path | None = None,
        app_file: Path | None = None,
        mode: Mode | None = None,
        leave_running: bool = False,
        public: bool = True,
        copy_memory: bool = False,
        gpu_devices: Sequence[str] = (),
        prove: bool | None = None,
        host: str | None = None,
        port: int | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._folder = folder
        self._prove = prove
        self._app_file = app_file or Path()
        self._wanted_mode = mode
        self._gpu_devices = gpu_devices
        self._leave_running = leave_running
        self._public = public
        self._copy_memory = copy_memory
        self._sandbox: Sandbox | None = None
        self._gateway: Gateway | None = None
        self._routed: GatewayReplica | None = None
        self._work: Path | None = None
        self._hold: Hold | None = None

    def available(self, deployment: Deployment | None = None) -> tuple[str, ...]:
        """Why CRIU cannot be used here, decided by a real small dump and restore (kept until the next boot).

        Args:
            deployment: one with a GPU needs root, and a driver that can checkpoint.
        """
        return self._mode_or_reasons(deployment)[1]

    def placed(self, deployment: Deployment) -> Deployment:
        """The engine listens on the loopback of its sandbox; the deployment's address is the public port's."""
        self._host = self._host or deployment.host
        return deployment if deployment.host == LOOPBACK else replace(deployment, host=LOOPBACK)

    def address(self, deployment: Deployment) -> tuple[str, int]:
        """Where the public port listens."""
        return self._host or LOOPBACK, self._gateway.port if self._gateway else self._port or deployment.port

    def prepare(self, deployment: Deployment) -> Starter:
        """Take the public port and make a sandbox for the engine.

        Raises:
            PortInUseError: somebody else has the port.
            SnapshotError: it cannot be used here for this deployment, or no sandbox can be made.
        """
        from torpor.snapshots.sandbox.start import create_sandbox  # noqa: PLC0415
        from torpor.snapshots.sandbox.starter import SandboxStarter  # noqa: PLC0415
        from torpor.snapshots.store.paths import scratch_folder  # noqa: PLC0415
        from torpor.snapshots.targets import check_target, check_writable  # noqa: PLC0415

        folder = self._folder or _default_folder(deployment)
        check_target(folder)  # now, not after the minutes of a cold start
        check_writable(folder)
        mode = self._usable_mode(deployment)
        if self._public and self._gateway is None:
            from torpor.platforms.local.gateway import Gateway  # noqa: PLC0415

            self._gateway = Gateway(host=self._host or LOOPBACK, port=self._port or deployment.port)
            self._gateway.start()
        self._sandbox = create_sandbox(deployment.name, mode=mode, scratch=scratch_folder())
        self._publish(deployment)
        return SandboxStarter(self._sandbox, deployment)

    def capture(self, boot: Boot) -> Manifest:
        """Put the engine to sleep and write it to the folder; what was written."""
        from torpor.snapshots.targets import check_target  # noqa: PLC0415

        folder = self._folder or _default_folder(boot.deployment)
        check_target(folder)
        try:
            self._withdraw()  # no new connection, and no question whether it is ready, may meet the capture
            return self._captured(boot, folder)
        except BaseException:
            if self._sandbox is not None and self._sandbox.alive:
                self._publish(boot.deployment)
            raise

    def _captured(self, boot: Boot, folder: Path) -> Manifest:
        from torpor.snapshots.capture import CaptureOptions, capture  # noqa: PLC0415

        boot.sleep()
        if self._sandbox is None:
            raise SnapshotError(
                "The engine was not started in a sandbox, so CRIU cannot take it; see CriuBackend.prepare."
            )
        if self._gateway is not None:
            self._gateway.sleeps(boot.woken_by or WOKEN_BY_DEFAULT)
        options = CaptureOptions(
            criu=self._criu(),
            app_file=self._app_file,
            leave_running=self._leave_running,
            copy_memory=self._copy_memory,
            gpu_devices=self._gpu_devices,
            prove=boot.deployment.gpu is None if self._prove is None else self._prove,
        )
        manifest = capture(boot, self._sandbox, folder, options)
        self._held(folder, used=False)
        if not self._leave_running:
            self._end_sandbox()
        return manifest

    def _held(self, folder: Path, *, used: bool) -> None:
        """Hold the snapshot that the server would come back from."""
        from torpor.snapshots.store.folder import real_folder  # noqa: PLC0415
        from torpor.snapshots.store.hold import Hold  # noqa: PLC0415

        self._hold = self._hold or Hold()
        self._hold.take(real_folder(folder), used=used)

    def restore(self, boot: Boot) -> None:
        """Wake the original where it was left running, else a copy out of the folder."""
        if self._sandbox is not None and self._sandbox.alive:
            boot.wake()
            self._publish(boot.deployment)
            return
        from torpor.snapshots.restore import begin_sandbox, read_snapshot, restore_replica  # noqa: PLC0415
        from torpor.telemetry.records import failed_restore  # noqa: PLC0415

        folder = self._folder or _default_folder(boot.deployment)
        manifest, identity = read_snapshot(folder)
        criu = self._criu()
        self._held(folder, used=True)
        began = time.perf_counter()
        try:
            replica = restore_replica(folder, manifest, criu=criu, begun=begin_sandbox(manifest, boot.deployment.name))
        except Exception as error:
            seconds = time.perf_counter() - began
            boot.report.end(
                failed_restore(
                    deployment=boot.deployment.name,
                    replica=boot.replica,
                    seconds=seconds,
                    error=error,
                    restarts=boot.restarts,
                )
            )
            raise
        self._sandbox, self._work = replica.sandbox, replica.work
        replica.wake(boot, manifest, identity)
        self._publish(boot.deployment)

    def clear(self) -> None:
        """End the sandbox; the port stays, and answers 503 with Retry-After meanwhile."""
        self._end_sandbox()

    def drain(self, limit_s: float) -> int:
        """Let clients of the public port take their answers."""
        return self._gateway.drain(limit_s) if self._gateway is not None else 0

    def close(self) -> None:
        """End the sandbox, and let go of the port and the snapshot."""
        self._end_sandbox()
        if self._hold is not None:
            self._hold.release()
        if self._gateway is not None:
            self._gateway.stop()
            self._gateway = None

    def _usable_mode(self, deployment: Deployment) -> Mode:
        mode, reasons = self._mode_or_reasons(deployment)
        if mode is None or reasons:
            raise SnapshotError("CRIU cannot be used here:\n" + "\n".join(f"  - {reason}" for reason in reasons))
        return mode

    def _mode_or_reasons(self, deployment: Deployment | None) -> tuple[Mode | None, tuple[str, ...]]:
        from torpor.snapshots.criu import probe  # noqa: PLC0415 - only this backend needs it
        from torpor.snapshots.store.paths import criu_prefix  # noqa: PLC0415

        prefix, mode = criu_prefix(), self._wanted_mode
        if deployment is not None and deployment.gpu is not None:
            from torpor.snapshots.gpu.requirements import against_gpu  # noqa: PLC0415

            found = against_gpu(mode)
            if mode != "rootless":
                mode, found = "root", (*probe.available("root", cache=prefix, prefix=prefix), *found)
            return mode, tuple(map(str, found))
        if mode is not None:
            return mode, tuple(map(str, probe.available(mode, cache=prefix, prefix=prefix)))
        mode, found = probe.usable_mode(cache=prefix, prefix=prefix)
        return mode, tuple(map(str, found))

    def _criu(self) -> Criu:
        from torpor.snapshots.criu.program import find  # noqa: PLC0415
        from torpor.snapshots.store.paths import criu_prefix  # noqa: PLC0415

        return find(criu_prefix(), cache=criu_prefix())

    def _publish(self, deployment: Deployment) -> None:
        """Lead the public port to the sandbox; a guard keeps the door shut until it serves."""
        if self._gateway is None or self._sandbox is None:
            return
        from torpor.platforms.local.gateway_route import GatewayReplica, ready_path  # noqa: PLC0415

        self._withdraw()
        self._gateway.sleeps("")
        sandbox, path = self._sandbox, ready_path(deployment.engine)
        self._routed = GatewayReplica(name=sandbox.name, sandbox=sandbox, port=deployment.port, ready_path=path)
        self._gateway.add(self._routed)

    def _withdraw(self) -> None:
        """Lead no new connection to the sandbox; those that it has go on."""
        if self._gateway is not None and self._routed is not None:
            self._gateway.remove(self._routed)
            self._routed = None

    def _end_sandbox(self) -> None:
        self._withdraw()
        if self._sandbox is not None:
            self._sandbox.kill()
            self._sandbox = None
        if self._work is not None:
            from torpor.snapshots.store.paths import release_work_folder  # noqa: PLC0415

            release_work_folder(self._work)
            self._work = None


BACKENDS: dict[str, Callable[[], SnapshotBackend]] = {
    "none": NoSnapshot,
    "standby": Standby,
    "criu": CriuBackend,
}


def make_backend(name: str, *, app_file: Path, host: str | None = None, port: int | None = None) -> SnapshotBackend:
    """The backend of that name, for the deployment of an app file; `host` and `port` are those of a public port of its own."""
    return CriuBackend(app_file=app_file, host=host, port=port) if name == CriuBackend.name else BACKENDS[name]()


def _default_folder(deployment: Deployment) -> Path:
    from torpor.snapshots.store.paths import snapshot_folder  # noqa: PLC0415

    return snapshot_folder(deployment.name)
