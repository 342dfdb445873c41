"""The backend `criu`: CRIU writes the sleeping engine to a snapshot, and restores it in a sandbox of its own."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from torpor.errors import SnapshotError
from torpor.guard.protocol import WOKEN_BY_DEFAULT
from torpor.platforms.local.gateway import Gateway
from torpor.platforms.local.gateway_route import GatewayReplica, ready_path
from torpor.snapshots.capture import CaptureOptions, capture
from torpor.snapshots.criu import probe
from torpor.snapshots.criu.program import find
from torpor.snapshots.fit import gpus_for_one
from torpor.snapshots.gpu.driver import look
from torpor.snapshots.gpu.requirements import against_gpu
from torpor.snapshots.restore import begin_sandbox, read_snapshot, restore_replica
from torpor.snapshots.sandbox.start import create_sandbox
from torpor.snapshots.sandbox.starter import SandboxStarter
from torpor.snapshots.store.folder import real_folder
from torpor.snapshots.store.here import read_here
from torpor.snapshots.store.hold import Hold
from torpor.snapshots.store.paths import criu_prefix, release_work_folder, scratch_folder, snapshot_folder
from torpor.snapshots.targets import check_target, check_writable
from torpor.telemetry.records import failed_restore
from torpor.values.addresses import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torpor.deployment import Deployment
    from torpor.engine.start import Starter
    from torpor.runtime.boot import Boot
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.gpu.placement import GpuMap, GpuPlace
    from torpor.snapshots.sandbox.sandbox import Sandbox
    from torpor.snapshots.store.manifest import Manifest, Mode

__all__ = ["CriuBackend"]


class CriuBackend:
    """Captures the sleeping engine in a snapshot; restores replicas of it, each in a sandbox of its own.

    Args:
        folder: where the snapshot goes; `<cache root>/snapshots/<deployment>` by default.
        app_file: the deployment's app file; a later `torpor snapshot restore` imports it.
        mode: root or rootless; by default what works here, rootless first (with a GPU: root).
        leave_running: keep the captured engine and wake it, instead of a restored one.
        public: whether a gateway on the deployment's port leads to the engine.
        copy_memory: have CRIU copy memory into each replica, instead of letting replicas map it from the snapshot's files
            (`torpor.snapshots.criu.mapped_memory`). The restore is slower, and the replica no longer needs the files.
        gpu_devices: prefixes of the GPU driver's device files; the NVIDIA driver's by default.
        prove: restore and wake one replica of each new snapshot before the snapshot is put in place. By default only without a
            GPU, where that takes seconds.
        host: address of the gateway; the deployment's by default.
        port: port of the gateway; the deployment's by default.
        gpus: the GPUs that a restored replica may take; by default all of this machine.
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
        gpus: Sequence[GpuPlace] = (),
    ) -> None:
        self._gpus = gpus
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
        """Why CRIU cannot be used here. A small real dump and restore decides; its result is kept until the machine boots again.

        Args:
            deployment: one with a GPU needs root, and a driver that can checkpoint.
        """
        return self._mode_or_reasons(deployment)[1]

    def placed(self, deployment: Deployment) -> Deployment:
        """The engine listens on the loopback of its sandbox; the gateway gets the deployment's address."""
        self._host = self._host or deployment.host
        return deployment if deployment.host == LOOPBACK else replace(deployment, host=LOOPBACK)

    def address(self, deployment: Deployment) -> tuple[str, int]:
        """Where the gateway listens."""
        return self._host or LOOPBACK, self._gateway.port if self._gateway else self._port or deployment.port

    @property
    def in_flight(self) -> int:
        """Requests at its gateway that are not answered yet."""
        return self._gateway.in_flight if self._gateway is not None else 0

    def folder(self, deployment: Deployment) -> Path:
        """Where the snapshot of a deployment goes."""
        return self._folder or snapshot_folder(deployment.name)

    def prepare(self, deployment: Deployment) -> Starter:
        """Open the gateway and create a sandbox for the engine.

        Raises:
            PortInUseError: somebody else has the port.
            SnapshotError: CRIU cannot be used here for this deployment, or no sandbox can be created.
        """
        folder = self.folder(deployment)
        check_target(folder)  # now, not after the minutes of a cold start
        check_writable(folder)
        mode = self._usable_mode(deployment)
        if self._public and self._gateway is None:
            self._gateway = Gateway(host=self._host or LOOPBACK, port=self._port or deployment.port)
            self._gateway.start()
        self._sandbox = create_sandbox(deployment.name, mode=mode, scratch=scratch_folder())
        self._publish(deployment)
        return SandboxStarter(self._sandbox, deployment)

    def capture(self, boot: Boot) -> Manifest:
        """Put the engine to sleep and capture it; returns the manifest."""
        folder = self.folder(boot.deployment)
        check_target(folder)
        try:
            self._withdraw()  # no new connection or readiness check may reach the engine during the capture
            return self._captured(boot, folder)
        except BaseException:
            if self._sandbox is not None and self._sandbox.alive:
                self._publish(boot.deployment)
            raise

    def _captured(self, boot: Boot, folder: Path) -> Manifest:
        awake = look() if boot.deployment.gpu is not None else None
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
            awake=awake,
        )
        manifest = capture(boot, self._sandbox, folder, options)
        self._held(folder, used=False)
        if not self._leave_running:
            self._end_sandbox()
        return manifest

    def _held(self, folder: Path, *, used: bool) -> None:
        """Hold the snapshot that the server restores from."""
        self._hold = self._hold or Hold()
        self._hold.take(real_folder(folder), used=used)

    def restore(self, boot: Boot) -> None:
        """Wake the captured engine if it was left running; else restore a replica from the snapshot."""
        if self._sandbox is not None and self._sandbox.alive:
            boot.wake()
        else:
            self._restored(boot)
        self._publish(boot.deployment)

    def _restored(self, boot: Boot) -> None:
        folder = self.folder(boot.deployment)
        manifest, identity = read_snapshot(folder)
        criu = self._criu()
        self._held(folder, used=True)
        began = time.perf_counter()
        try:
            begun = begin_sandbox(manifest, boot.deployment.name, here=read_here(real_folder(folder)))
            replica = restore_replica(
                folder, manifest, criu=criu, begun=begun, gpus=lambda: self._place(folder, manifest)
            )
        except Exception as error:
            failed = failed_restore(
                deployment=boot.deployment.name,
                replica=boot.replica,
                seconds=time.perf_counter() - began,
                error=error,
                restarts=boot.restarts,
            )
            boot.report.end(failed)
            boot.telling.stage_ended(failed, error)
            raise
        self._sandbox, self._work = replica.sandbox, replica.work
        replica.wake(boot, manifest, identity)

    def _place(self, folder: Path, manifest: Manifest) -> GpuMap | None:
        """GPUs for one replica, now."""
        return gpus_for_one(folder, manifest, chosen=[gpu.uuid for gpu in self._gpus])

    def clear(self) -> None:
        """End the sandbox; the gateway stays, and answers 503 with Retry-After."""
        self._end_sandbox()

    def drain(self, limit_s: float) -> int:
        """Let clients of the gateway read their answers; returns how many have not."""
        return self._gateway.drain(limit_s) if self._gateway is not None else 0

    def close(self) -> None:
        """End the sandbox, close the gateway and release the snapshot."""
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

        prefix, mode = criu_prefix(), self._wanted_mode
        if deployment is not None and deployment.gpu is not None:
            found = against_gpu(mode)
            if mode != "rootless":
                mode, found = "root", (*probe.available("root", cache=prefix, prefix=prefix), *found)
            return mode, tuple(map(str, found))
        if mode is not None:
            return mode, tuple(map(str, probe.available(mode, cache=prefix, prefix=prefix)))
        mode, found = probe.usable_mode(cache=prefix, prefix=prefix)
        return mode, tuple(map(str, found))

    def _criu(self) -> Criu:

        return find(criu_prefix(), cache=criu_prefix())

    def _publish(self, deployment: Deployment) -> None:
        """Route the gateway to the sandbox; the guard refuses requests until it serves."""
        if self._gateway is None or self._sandbox is None:
            return

        self._withdraw()
        self._gateway.sleeps("")
        sandbox, path = self._sandbox, ready_path(deployment.engine)
        self._routed = GatewayReplica(name=sandbox.name, sandbox=sandbox, port=deployment.port, ready_path=path)
        self._gateway.add(self._routed)

    def _withdraw(self) -> None:
        """Route no new connection to the sandbox; open ones go on."""
        if self._gateway is not None and self._routed is not None:
            self._gateway.remove(self._routed)
            self._routed = None

    def _end_sandbox(self) -> None:
        self._withdraw()
        if self._sandbox is not None:
            self._sandbox.kill()
            self._sandbox = None
        if self._work is not None:
            release_work_folder(self._work)
            self._work = None
