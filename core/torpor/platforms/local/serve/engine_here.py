"""One replica of a served deployment on this machine. Every method blocks, and runs in a thread of its own.

    start     restore the snapshot if it fits, else start cold in a sandbox, so that it can be captured later
    sleep     in memory; the process stays
    wake      in memory
    capture   write the snapshot; the replica sleeps afterwards
    end       end its processes

Without CRIU the engine is a child of this process on a free port of loopback. It can sleep, but not be captured. If another
program takes that port before the engine does, the start is repeated on another one.
"""

from __future__ import annotations

import os
import threading
import time
from socket import socket as Socket  # noqa: N812 - `socket` is a method here
from typing import TYPE_CHECKING, NamedTuple

from torpor.engine.failure import stops_on_failure
from torpor.errors import (
    ConfigurationError,
    DamagedSnapshotError,
    SnapshotError,
    SnapshotMisfitError,
    TorporError,
)
from torpor.platforms.local.backends import Standby
from torpor.platforms.local.criu_backend import CriuBackend
from torpor.platforms.local.free_ports import free_port, is_taken
from torpor.platforms.local.gateway_route import GatewayReplica, ready_path
from torpor.platforms.local.memory import gpu_bytes, tree_bytes
from torpor.platforms.local.replicas import Replicas
from torpor.platforms.local.running import Process
from torpor.platforms.local.server import LocalServer
from torpor.runtime.supervision import WAKE_FAILED
from torpor.serving.sizes import Size
from torpor.snapshots.gpu.driver import look
from torpor.snapshots.gpu.placement import GpuPlace
from torpor.snapshots.store.manifest import MANIFEST
from torpor.snapshots.store.paths import records_file
from torpor.telemetry.stage_report import StageReport
from torpor.values.addresses import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torpor.app_file import App
    from torpor.platforms.local.backends import SnapshotBackend
    from torpor.runtime.boot import Boot
    from torpor.runtime.supervision import ReplicaEvent
    from torpor.serving.states import Kind

__all__ = ["EngineHere", "Ways"]

_CODE_S = 0.5
_TAIL_LINES = 2
_STOP_S = 20.0
_LOOK_S = 0.1
_PORT_TRIES = 5


class Ways(NamedTuple):
    """How replicas of a deployment start.

    Attributes:
        app: what to serve.
        snapshot: the snapshot's folder; None if CRIU cannot be used, or nothing is to be captured.
        tell: called with one line for people.
        on_event: called with what happens to a replica by itself.
    """

    app: App
    snapshot: Path | None
    tell: Callable[[str], None]
    on_event: Callable[[ReplicaEvent], None]


class EngineHere:
    """One replica.

    Args:
        ways: how it starts.
        name: of the replica.
        cards: numbers of its GPUs, in the driver's order; empty without a GPU.
        reason: why it starts in place of another one; empty for a plain start.

    Attributes:
        name: see above.
        misfit: whether the snapshot did not fit, or could not be restored.
        routed: how the gateway reaches it, once it serves.
    """

    def __init__(self, ways: Ways, name: str, cards: Sequence[int] = (), *, reason: str = "") -> None:
        self.name = name
        self._reason = reason
        self._cards = tuple(cards)
        self.misfit = False
        self.routed: GatewayReplica | None = None
        self._ways = ways
        self._replicas: Replicas | None = None
        self._server: LocalServer | None = None
        self._boot: Boot | None = None
        self._child: _Child | None = None
        self._ending = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._end_lock = threading.Lock()

    @property
    def boot(self) -> Boot:
        """What moves its engine through the lifecycle.

        Raises:
            TorporError: it was not started.
        """
        if self._boot is None:
            raise TorporError(f"The replica {self.name} was not started.")
        return self._boot

    @property
    def was_restored(self) -> bool:
        """Whether its latest start was a restore, or should have been."""
        return self._replicas is not None and self._server is None

    def start(self) -> Kind:
        """Start it; it serves when this returns.

        Raises:
            TorporError: it could not be started; nothing of it is left.
        """
        self._idle.clear()
        try:
            return self._started()
        finally:
            self._idle.set()

    def _started(self) -> Kind:
        snapshot, failed = self._ways.snapshot, False
        if snapshot is not None and (snapshot / MANIFEST).is_file():
            if self._restored(snapshot):
                return "restored"
            failed = self.misfit = True
        self._started_cold(failed=failed)
        return "cold"

    def sleep(self) -> None:
        """Put it to sleep in memory.

        Raises:
            TorporError: it does not sleep. `alive` says whether it serves on.
        """
        self.boot.woken_by = "by the next request"
        self.boot.sleep(for_snapshot=False)

    def wake(self) -> None:
        """Wake it.

        Raises:
            TorporError: it did not wake, and was ended.
        """
        self.boot.wake()

    def capture(self) -> None:
        """Put it to sleep and write the snapshot. It sleeps when this returns.

        Raises:
            TorporError: there is no snapshot. `asleep` and `alive` say what became of the replica.
        """
        if self._server is None or self._ways.snapshot is None:
            raise SnapshotError(f"The replica {self.name} cannot be captured: CRIU cannot be used for it here.")
        self._server.backend.capture(self.boot)

    @property
    def can_be_captured(self) -> bool:
        """Whether `capture` makes sense: it started cold, in a sandbox."""
        return self._server is not None and self._ways.snapshot is not None

    @property
    def asleep(self) -> bool:
        """Whether it sleeps."""
        return self._boot is not None and self._boot.asleep

    @property
    def alive(self) -> bool:
        """Whether its engine runs."""
        return self._boot is not None and self._boot.engine is not None and self._boot.engine.poll() is None

    def size(self, cards: Sequence[int]) -> Size:
        """The memory that it takes now.

        Args:
            cards: its GPUs, by number.
        """
        leader = self.leader
        held = gpu_bytes(leader) if cards else {}
        return Size(tree_bytes(leader) or 0, tuple(held.get(card, 0) for card in cards))

    @property
    def leader(self) -> Process:
        """The root of its process tree."""
        engine = self.boot.running_engine
        sandbox = getattr(engine, "sandbox", None)
        return Process.of(engine.pid if sandbox is None else sandbox.pid)

    def drain(self, limit_s: float) -> int:
        """Refuse new requests and finish those in flight; returns how many were cut off."""
        return self.boot.drain(limit_s) if self._boot is not None else 0

    def end(self) -> None:
        """End its processes, also in the middle of a start. Harmless to repeat, in any thread."""
        self._ending.set()
        self._stop()
        deadline = time.monotonic() + _STOP_S
        while not self._idle.wait(_LOOK_S) and time.monotonic() < deadline:
            self._stop()  # a start may have launched its engine meanwhile
        self._stop()

    def _stop(self) -> None:
        with self._end_lock:
            if self._replicas is not None:
                self._replicas.stop()
            if self._server is not None:
                self._server.stop()
            if self._child is not None:
                self._child.close()

    def _restored(self, snapshot: Path) -> bool:
        """Restore it; False if the snapshot does not fit, or a second attempt failed as well."""
        app = self._ways.app
        try:
            for last in (False, True):
                try:
                    self._restore_once(app, snapshot)
                except ConfigurationError:
                    raise
                except SnapshotError as error:
                    self._check_wanted()
                    if last or isinstance(error, SnapshotMisfitError | DamagedSnapshotError):
                        raise
                else:
                    return True
        except ConfigurationError:
            raise
        except TorporError as error:
            self._check_wanted()
            if not app.deployment.cold_start_on_failed_wake:
                raise
            self._ways.tell(f"{app.deployment.name}: {error}\nIt starts cold, and a new snapshot is captured.")
        return False

    def _restore_once(self, app: App, snapshot: Path) -> None:
        replicas = Replicas(
            snapshot,
            cold_start=False,
            on_event=self._ways.on_event,
            records=records_file(app.deployment.name),
            lifecycle=app.lifecycle,
            gpus=self._places(),
            entrance=lambda _: _NoGateway(),
            reason=self._reason,
        )
        self._replicas = replicas
        self._check_wanted()
        replicas.start()
        (one,) = replicas.serving
        self._boot, self.routed = one.boot, one.routed

    def _started_cold(self, *, failed: bool) -> None:
        if self._ways.snapshot is not None:
            self._start_cold_once(self._ways.app, failed=failed)
            return
        for tried in range(1, _PORT_TRIES + 1):
            port = free_port()
            try:
                self._start_cold_once(self._ways.app.at(LOOPBACK, port), failed=failed)
            except TorporError:
                self._check_wanted()
                if tried == _PORT_TRIES or not is_taken(port):
                    raise
                self._ways.tell(f"{self.name}: another program took port {port}; it starts again on another one")
            else:
                return

    def _start_cold_once(self, app: App, *, failed: bool) -> None:
        snapshot = self._ways.snapshot
        report = StageReport(records_file(app.deployment.name))
        if snapshot is None:
            backend: SnapshotBackend = Standby()
        else:
            backend = CriuBackend(folder=snapshot, app_file=app.file, leave_running=True, public=False)
        server = LocalServer(
            app.deployment, lifecycle=app.lifecycle, backend=backend, report=report, gpus=self._places()
        )
        server.boot.replica = self.name
        if reason := WAKE_FAILED if failed else self._reason:
            server.boot.reason, server.boot.restarts = reason, 1
        self._server, self._boot = server, server.boot
        self._check_wanted()
        with stops_on_failure(server.stop):
            server.cold_start()
            self._check_wanted()
            server.boot.serve()
            self.routed = self._route(server.boot)

    def _places(self) -> list[GpuPlace]:
        """Its GPUs, as the driver has them."""
        gpus = look().gpus if self._cards else ()
        return [GpuPlace(card, gpus[card].uuid, gpus[card].name) for card in self._cards if card < len(gpus)]

    def _route(self, boot: Boot) -> GatewayReplica:
        engine, deployment = boot.running_engine, boot.deployment
        place = getattr(engine, "sandbox", None)
        if place is None:
            place = self._child = _Child(engine.pid)
        path = ready_path(deployment.engine)
        return GatewayReplica(name=self.name, sandbox=place, port=deployment.port, ready_path=path)

    def _check_wanted(self) -> None:
        if self._ending.is_set():
            raise TorporError(f"The start of {self.name} was ended before it was over.")

    def buried(self) -> str:
        """Clean up after its processes have ended by themselves; returns the reason, for people."""
        engine = self.boot.running_engine
        code = engine.wait(_CODE_S)
        last = " | ".join(engine.log_tail()[-_TAIL_LINES:])
        self.end()
        return f"its engine ended (exit code {code}){f'; it said: {last}' if last else ''}"


class _NoGateway:
    """Stands in front of one restored replica in place of a gateway of its own: the conductor watches for its end."""

    port = 0
    in_flight = 0

    def add(self, replica: GatewayReplica) -> None:
        """The conductor has it."""

    def drain(self, limit_s: float) -> int:  # noqa: ARG002 - the protocol's
        """The common gateway drains."""
        return 0

    def stop(self) -> None:
        """Nothing to stop."""


class _Child:
    """The place of an engine that is a child of this process, as the gateway sees it."""

    def __init__(self, pid: int) -> None:
        self._end = os.pidfd_open(pid)

    def fileno(self) -> int:
        """Readable once the process has ended."""
        return self._end

    def socket(self) -> Socket:
        """A TCP socket of this machine."""
        return Socket()

    def sockets(self, count: int) -> list[Socket]:
        """Several at once."""
        return [Socket() for _ in range(count)]

    def close(self) -> None:
        """Stop watching. Harmless to repeat."""
        end, self._end = self._end, -1
        if end >= 0:
            os.close(end)
