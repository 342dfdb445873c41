"""Replicas restored from one snapshot, behind one port.

A restore of one replica takes about a third of a second, and CRIU takes a third of that. The other steps overlap:

    while the sandbox starts   check the snapshot
    while CRIU works           import the app file, its plugins and the HTTP client; compare the deployment
    while the engine wakes     open the gateway

If the snapshot does not fit, the sandboxes end before any engine wakes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torpor import runtime
from torpor.errors import ConfigurationError, SnapshotError, SnapshotMisfitError
from torpor.network.light_httpx import import_httpx
from torpor.platforms.local.replacement import Attempt, Replacement
from torpor.platforms.local.replica_gpus import ReplicaGpus
from torpor.platforms.local.tasks import Task, results
from torpor.runtime import later
from torpor.runtime.answering import AnswerWatch
from torpor.runtime.draining import drain
from torpor.runtime.supervision import ENGINE_ENDED, WAKE_FAILED, BackOff, ReplicaEvent
from torpor.runtime.telling import tell_failed_restore
from torpor.snapshots.facts import deployment_facts, known_criu
from torpor.snapshots.fit import (
    bad_marks,
    changed_files,
    different_deployment,
    loaded_here,
    misfit,
    misfits,
    unfit_machine,
)
from torpor.snapshots.restore import begin_sandbox, read_snapshot, restore_replica
from torpor.snapshots.store.failures import forget_failures, note_failure
from torpor.snapshots.store.files import damaged_files
from torpor.snapshots.store.folder import checked, real_folder
from torpor.snapshots.store.here import read_here
from torpor.snapshots.store.hold import Hold
from torpor.snapshots.store.paths import logs_folder
from torpor.telemetry.stage_report import StageReport
from torpor.telemetry.stages import RESTORE_STAGES
from torpor.values.addresses import LOOPBACK, check_free

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torpor.lifecycle import Lifecycle
    from torpor.platforms.local.gateway_route import GatewayReplica
    from torpor.recipe import Recipe
    from torpor.runtime.boot import Boot
    from torpor.snapshots.criu.program import Criu
    from torpor.snapshots.gpu.placement import GpuMap, GpuPlace, Placement
    from torpor.snapshots.restore import Replica
    from torpor.snapshots.sandbox.first_process import FirstProcess
    from torpor.snapshots.sandbox.start import StartingSandbox
    from torpor.telemetry.records import StageRecord

__all__ = ["MAX_REPLICAS", "Entrance", "Replicas"]

_CODE_S = 0.5
MAX_REPLICAS = 64
"""The most replicas of one command."""


class Entrance(Protocol):
    """What stands in front of replicas; a `Gateway` does."""

    @property
    def port(self) -> int:
        """The public port."""

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet."""

    def add(self, replica: GatewayReplica) -> None:
        """A replica serves."""

    def drain(self, limit_s: float) -> int:
        """Let clients read their answers; return how many have not."""

    def stop(self) -> None:
        """The replicas end. Harmless to repeat."""


class Serving(NamedTuple):
    """A replica that serves.

    Attributes:
        replica: its sandbox, and how long its restore took.
        boot: moves its engine through the lifecycle.
        routed: the replica as the gateway knows it.
        back_off: the pauses before it starts again if it ends.
    """

    replica: Replica
    boot: Boot
    routed: GatewayReplica
    back_off: BackOff

    def end(self) -> None:
        """End its processes and remove its working folder."""
        exit_code = self.replica.sandbox.wait(0.0)
        self.replica.end()
        self.boot.note_end(exit_code)


class Replicas:
    """Replicas of one snapshot that serve behind one gateway, until `stop`.

    If a replica does not wake, another one is restored from the same snapshot. A second failure is noted in the snapshot
    (`torpor.snapshots.store.failures`). Then the replica starts cold behind the same gateway, unless the deployment or
    `cold_start` forbids it.

    Args:
        folder: the snapshot.
        port: public port; the deployment's by default.
        host: address of the public port; the deployment's by default.
        full: verify files by hash first.
        on_stage: called with the stages of every wake and of every cold start.
        first: first process of the first sandbox, if it already runs. If it is not used, its starter ends it.
        supervised: whether a replica that ends by itself starts again: from the snapshot, or cold if that no longer fits.
        cold_start: whether a replica that does not wake may start cold; the deployment may still forbid it.
        even_if_bad: restore the snapshot even if it is marked bad.
        on_event: called with each event of a replica (ended, failed, restarted), in any thread; logged by default.
        records: file that gets one JSON line for each stage of all replicas; see `torpor.telemetry.records`.
        lifecycle: of the app file, if it is already imported; by default it is imported while CRIU works.
        gpus: the GPUs that the replicas may take; by default all of this machine.
        entrance: makes what stands in front of the replicas; it gets what to call when one has ended. A gateway by default.
        reason: why the first replicas start in place of another one; empty for a plain start.

    Attributes:
        records: see above.
        gpus: see above.
        manifest: the snapshot's.
        verify_s: seconds for the checks before CRIU began.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        host: str | None = None,
        full: bool = False,
        on_stage: Callable[[str, StageRecord], None] | None = None,
        first: FirstProcess | None = None,
        supervised: bool = False,
        cold_start: bool = True,
        even_if_bad: bool = False,
        on_event: Callable[[ReplicaEvent], None] | None = None,
        records: Path | None = None,
        lifecycle: Lifecycle | None = None,
        gpus: Sequence[GpuPlace] = (),
        entrance: Callable[[Callable[[GatewayReplica], None]], Entrance] | None = None,
        reason: str = "",
    ) -> None:
        self._reason = reason
        self.records = records
        self.gpus = gpus
        self._entrance = entrance
        self._lifecycle = lifecycle
        self.folder = real_folder(folder)
        self.verify_s = 0.0
        self._full = full
        self._host = host
        self._app_host = ""
        self._port = port
        self._on_stage = on_stage
        self._first = first
        self._supervised = supervised
        self._cold_start = cold_start
        self._even_if_bad = even_if_bad
        self._tell = on_event or ReplicaEvent.log
        self._mark = checked(self.folder)
        self.manifest, self._identity = read_snapshot(self.folder)
        self._here = read_here(self.folder)
        self._begin_with_none()

    def _begin_with_none(self) -> None:
        self._gateway: Entrance | None = None
        self._serving: list[Serving] = []
        self._lock = threading.Lock()
        self._one_cold_start = threading.Lock()
        self._gpus = ReplicaGpus(lambda: [one.replica.name for one in self.serving], lambda: self._stopped)
        self._attempts: set[Attempt] = set()
        self._stopped = False
        self._names_given = 0
        self._app: tuple[Lifecycle, Recipe] | None = None
        self._replacement = Replacement(self._start_again, self._tell)
        self._hold = Hold()

    @property
    def port(self) -> int:
        """The public port."""
        if self._gateway is not None:
            return self._gateway.port
        return self._port if self._port is not None else self.manifest.deployment.port

    @property
    def host(self) -> str:
        """The address on which the gateway listens."""
        return self._host or (self._app_host or LOOPBACK)

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that clients connect to."""
        return self.host, self.port

    @property
    def serving(self) -> tuple[Serving, ...]:
        """The replicas that serve now."""
        with self._lock:
            return tuple(self._serving)

    @property
    def in_flight(self) -> int:
        """Requests at the gateway that are not answered yet."""
        gateway = self._gateway
        return gateway.in_flight if gateway is not None else 0

    @property
    def restarting(self) -> int:
        """How many replicas start again now, or wait to."""
        return self._replacement.under_way

    def start(self, count: int = 1) -> None:
        """Restore replicas and serve.

        Raises:
            PortInUseError: another process listens on the port; nothing was restored.
            SnapshotError: the snapshot does not fit; the error lists every reason, and nothing is left running.
            TorporError: a replica did not wake; nothing is left running.
        """
        if not 1 <= count <= MAX_REPLICAS:
            raise SnapshotError(f"{count} replicas were asked for; allowed are 1 to {MAX_REPLICAS}.")
        if self._gateway is None and self._entrance is None:
            check_free(self.host, self.port, cure="choose another with --port. Nothing was restored")
        self._stopped = False
        self._replacement.allow()
        with self._attempt() as attempt:
            self._publish(self._restored_and_woken(attempt, count))

    def allow_cold_start(self) -> None:
        """From now on a replica that cannot be restored may start cold, unless the deployment forbids it."""
        self._cold_start = True

    def restart_now(self) -> None:
        """Start replicas that wait for their restart now."""
        self._replacement.hurry()

    def drain(self, on_wait: Callable[[int], None] | None = None) -> int:
        """Refuse new requests, and wait up to `drain_timeout_s` for those in flight. Call it before `stop`.

        Args:
            on_wait: called with the number of requests in flight, if there are any.

        Returns:
            How many requests were cut off.
        """
        self._start_nothing_more()
        boots = [one.boot for one in self.serving]
        limit_s = boots[0].deployment.drain_timeout_s if boots else 0.0
        return drain(boots, limit_s=limit_s, on_wait=on_wait, port=self._gateway.drain if self._gateway else None)

    def stop(self) -> None:
        """End every replica and close the gateway. Harmless to repeat."""
        self._start_nothing_more()
        with self._lock:
            serving, self._serving = self._serving, []
        if self._gateway is not None:
            self._gateway.stop()
            self._gateway = None
        for one in serving:
            one.end()
        self._gpus.end()
        self._hold.release()

    def _start_nothing_more(self) -> None:
        """End the starts under way, and refuse others until `start` is called again."""
        self._replacement.stop()
        with self._lock:
            self._stopped = True
            attempts = list(self._attempts)
        for attempt in attempts:
            attempt.end()
        self._replacement.join()

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[Attempt]:
        """A start that `stop` can end."""
        attempt = Attempt()
        with self._lock:
            if self._stopped:
                raise SnapshotError("The server was stopped before the start began.")
            self._attempts.add(attempt)
        try:
            yield attempt
        finally:
            with self._lock:
                self._attempts.discard(attempt)

    def _restored_and_woken(self, attempt: Attempt, count: int) -> list[Serving]:
        started = time.perf_counter()
        restoring: list[Task[Replica]] = []
        waking: list[Task[Serving]] = []
        try:
            begun = []
            for _ in range(count):
                first, self._first = self._first, None
                begun.append(self._begin(attempt, first))
            import torpor.snapshots.sandbox.side_files  # noqa: PLC0415, F401 - tarfile: 1.2 ms, while the sandboxes get ready

            criu = self._verified_criu(count)
            self.verify_s = time.perf_counter() - started
            gpus = Task(self._placed, [one.name for one in begun])
            restoring += [Task(self._restored, attempt, one, criu, gpus, number=at) for at, one in enumerate(begun)]
            outside = Task(changed_files, self.folder, full=self._full)
            self._hold.take(self.folder)  # from here on, while CRIU works
            _import_what_a_wake_needs()
            lifecycle, recipe, differences = self._loaded()
            (changed,) = results([outside])
            if reasons := [*_reasons(gpus), *differences, *changed]:
                raise misfit(self.folder, reasons)  # noqa: TRY301 - one way out, below
            self._app = lifecycle, recipe
            waking += [Task(self._woken, attempt, replica, criu, reason=self._reason) for replica in results(restoring)]
            self._started_gateway()  # while the engines wake
            return results(waking)
        except BaseException:
            attempt.end()
            self._end(restoring, waking)
            raise

    def _publish(self, serving: Sequence[Serving]) -> None:
        """Put replicas behind the port; end them if the server was stopped meanwhile."""
        gateway = self._started_gateway()
        with self._lock:
            stopped = self._stopped
            if not stopped:
                self._serving += serving
        for one in serving:
            if stopped:
                one.end()
                self._gpus.ended(one.replica.name)
            else:
                self._gpus.serves(one.replica.name)
                one.back_off.serves()
                gateway.add(one.routed)

    def _begin(self, attempt: Attempt, first: FirstProcess | None = None) -> StartingSandbox:
        name = self._next_name()
        return attempt.begin(lambda: begin_sandbox(self.manifest, name, first=first, here=self._here))

    def _restored(
        self,
        attempt: Attempt,
        begun: StartingSandbox,
        criu: Criu,
        gpus: Task[Placement | None] | None = None,
        *,
        number: int = 0,
        restarts: int = 0,
    ) -> Replica:
        """Restore one replica and leave it asleep. Record a failure, unless `stop` ended the start.

        Args:
            attempt: the start that it belongs to.
            begun: its sandbox.
            criu: the program.
            gpus: looks for GPUs beside CRIU's work; by default for this replica alone.
            number: of the replica among those that `gpus` looks for, from 0.
            restarts: how often it was started again.
        """
        gpus = gpus or Task(self._placed, [begun.name])
        started = time.perf_counter()
        try:
            return restore_replica(
                self.folder,
                self.manifest,
                criu=criu,
                begun=begun,
                mark=self._mark,
                gpus=lambda: self._gpus_of(gpus, number),
            )
        except BaseException as error:
            self._gpus.ended(begun.name)
            if isinstance(error, Exception) and not attempt.ended and not isinstance(error, SnapshotMisfitError):
                self._record_failure(begun.name, time.perf_counter() - started, error, restarts)
            raise

    def _record_failure(self, name: str, seconds: float, error: Exception, restarts: int) -> None:
        from torpor.telemetry.records import failed_restore  # noqa: PLC0415 - records: 1 ms before CRIU begins

        deployment = self.manifest.deployment.name
        record = failed_restore(deployment=deployment, replica=name, seconds=seconds, error=error, restarts=restarts)
        self._report(name).end(record)
        lifecycle = self._app[0] if self._app is not None else self._lifecycle
        if lifecycle is not None and lifecycle.listeners is not None:
            tell_failed_restore(lifecycle, lifecycle.listeners, record, error)

    def _gpus_of(self, looking: Task[Placement | None], number: int) -> GpuMap | None:
        """The GPUs of one replica; refuses to move GPU state if there are none."""
        if reasons := _reasons(looking):
            raise misfit(self.folder, reasons)
        return looking.value.maps[number] if looking.value else None

    def _placed(self, names: Sequence[str]) -> Placement | None:
        return self._gpus.place(self.manifest, names, self.gpus)

    def _verified_criu(self, replicas: int) -> Criu:
        """Check files and machine, and return the CRIU to use.

        Raises:
            SnapshotError: they do not fit; the error lists every reason, those of the deployment too.
        """
        reasons = [] if self._even_if_bad else bad_marks(self.folder)
        reasons += damaged_files(self.folder, self.manifest, full=self._full)
        try:
            criu = known_criu(self.manifest.machine)
            reasons += unfit_machine(self.manifest, criu)
        except SnapshotError as error:
            raise misfit(self.folder, [*reasons, str(error)]) from error
        if reasons:
            raise misfit(self.folder, misfits(self.folder, self.manifest, full=self._full, replicas=replicas))
        return criu

    def _loaded(self) -> tuple[Lifecycle, Recipe, list[str]]:
        try:
            found, recipe, differences = loaded_here(self.manifest, self._lifecycle, self._here)
        except ConfigurationError as error:
            raise misfit(self.folder, [f"its app file cannot be used: {error}"]) from error
        self._app_host = found.deployment.host
        if self._app_host != LOOPBACK:
            found = found.bound(replace(found.deployment, host=LOOPBACK))
        return found, recipe, differences

    def _started_gateway(self) -> Entrance:
        if self._gateway is None and self._entrance is not None:
            self._gateway = self._entrance(self._bury)
        if self._gateway is None:
            from torpor.platforms.local.gateway import Gateway  # noqa: PLC0415 - asyncio: 18 ms, imported while the engine wakes

            gateway = Gateway(host=self.host, port=self.port, on_death=self._bury)
            gateway.start()
            self._gateway = gateway
        return self._gateway

    def _woken(
        self, attempt: Attempt, replica: Replica, criu: Criu, *, reason: str = "", back_off: BackOff | None = None
    ) -> Serving:
        """Wake a replica. If that fails, restore another one; if that fails too, start cold."""
        deployment = self._loaded_app()[0].deployment
        if back_off is None:
            back_off = BackOff(deployment.max_restarts)
            if reason:
                back_off.note_restart()
        try:
            return self._wake(replica, reason, back_off)
        except Exception as error:
            self._end_replica(replica)
            self._tell_failed_wake(attempt, replica.name, error)
        again: Replica | None = None
        try:
            again = self._restored(attempt, self._begin(attempt), criu, restarts=back_off.restarts)
            return self._wake(again, reason, back_off)
        except Exception as error:
            if again is not None:
                self._end_replica(again)
            self._tell_failed_wake(attempt, again.name if again else replica.name, error)
            note_failure(self.folder, error)
            if not (self._cold_start and deployment.cold_start_on_failed_wake):
                raise
        back_off.note_restart()
        return self._cold(attempt, WAKE_FAILED, back_off)

    def _end_replica(self, replica: Replica) -> None:
        """End a replica that does not serve."""
        replica.end()
        self._gpus.ended(replica.name)

    def _tell_failed_wake(self, attempt: Attempt, name: str, error: Exception) -> None:
        if attempt.ended:
            raise error  # `stop` ended it
        self._tell(ReplicaEvent("wake_failed", name, error=f"{type(error).__name__}: {error}"))

    def _wake(self, replica: Replica, reason: str, back_off: BackOff) -> Serving:
        boot = self._new_boot(replica.name, reason, back_off)
        replica.wake(boot, self.manifest, self._identity)
        forget_failures(self.folder)
        return self._serving_replica(replica, boot, back_off)

    def _new_boot(self, name: str, reason: str, back_off: BackOff) -> Boot:
        lifecycle, recipe = self._loaded_app()
        boot = runtime.Boot(
            lifecycle.deployment,
            lifecycle=lifecycle,
            recipe=recipe,
            report=self._report(name),
            restarts=back_off.restarts,
            reason=reason,
            replica=name,
        )
        boot.answers = AnswerWatch(boot)
        boot.logs = logs_folder(lifecycle.deployment.name)
        return boot

    def _cold(self, attempt: Attempt, reason: str, back_off: BackOff) -> Serving:
        """Start a replica cold in a sandbox. One at a time: a cold start needs the whole machine."""
        from torpor.platforms.local.cold_replica import start_cold  # noqa: PLC0415 - build steps: 9 ms of every restore

        boot = self._new_boot(self._next_name(), reason, back_off)
        with self._one_cold_start, self._gpus_for_cold(boot.replica) as gpus:
            replica = start_cold(attempt, self.manifest, boot, gpus)
        if reason == WAKE_FAILED:
            self._tell_restarted(replica, boot, back_off)
        return self._serving_replica(replica, boot, back_off)

    @contextlib.contextmanager
    def _gpus_for_cold(self, name: str) -> Iterator[Sequence[GpuPlace]]:
        """The GPUs for a replica that starts cold: as for a restored one; if none of them fits, those that may be taken."""
        found = self._placed([name])
        try:
            yield found.maps[0].gpus if found and found.maps else self.gpus
        except BaseException:
            self._gpus.ended(name)
            raise

    def _serving_replica(self, replica: Replica, boot: Boot, back_off: BackOff) -> Serving:
        from torpor.platforms.local.gateway_route import GatewayReplica, ready_path  # noqa: PLC0415 - asyncio: 16 ms, imported while the engine wakes

        deployment = boot.deployment
        path = ready_path(deployment.engine)
        routed = GatewayReplica(name=replica.name, sandbox=replica.sandbox, port=deployment.port, ready_path=path)
        return Serving(replica=replica, boot=boot, routed=routed, back_off=back_off)

    def _report(self, name: str) -> StageReport:
        def tell(record: StageRecord) -> None:
            # `Replica` holds the times of the stages before the wake.
            if self._on_stage is not None and record.stage not in RESTORE_STAGES:
                self._on_stage(name, record)

        return StageReport(self.records, on_end=tell)

    def _loaded_app(self) -> tuple[Lifecycle, Recipe]:
        if self._app is None:
            raise SnapshotError("No deployment was loaded; call start first.")
        return self._app

    def _bury(self, routed: GatewayReplica) -> None:
        """Remove a replica that ended by itself, report its end, and start it again if replicas are supervised."""
        with contextlib.ExitStack() as stack:
            if self._supervised:
                stack.enter_context(self._replacement.expected())
            with self._lock:
                dead = [one for one in self._serving if one.routed is routed]
                self._serving = [one for one in self._serving if one.routed is not routed]
            for one in dead:
                self._tell_end(one)
                if self._supervised:
                    self._replacement.run(routed.name, one.back_off)

    def _tell_end(self, one: Serving) -> None:
        sandbox, name = one.replica.sandbox, one.routed.name
        code, last = sandbox.wait(_CODE_S), sandbox.log_tail(20)
        one.end()
        log_file = str(one.boot.running_engine.log_path or "")
        self._tell(ReplicaEvent("replica_ended", name, exit_code=code, last_lines=last, log_file=log_file))

    def _start_again(self, name: str, back_off: BackOff) -> None:
        """Start a replica in place of one that ended: from the snapshot, or cold if the snapshot no longer fits."""
        with self._attempt() as attempt:
            try:
                one = self._restored_again(attempt, back_off)
            except SnapshotError as error:
                deployment = self._loaded_app()[0].deployment
                if attempt.ended or not (self._cold_start and deployment.cold_start_on_failed_wake):
                    raise
                self._tell(ReplicaEvent("restore_failed", name, error=f"{type(error).__name__}: {error}"))
                one = self._cold(attempt, ENGINE_ENDED, back_off)
            self._publish([one])
            if one.boot.reason == ENGINE_ENDED:
                self._tell_restarted(one.replica, one.boot, back_off)

    def _restored_again(self, attempt: Attempt, back_off: BackOff) -> Serving:
        """Check the snapshot again, which may have changed, and restore another replica of the same deployment."""
        mark = checked(self.folder)
        manifest, identity = read_snapshot(self.folder)
        here = read_here(self.folder)
        lifecycle, recipe = self._loaded_app()
        facts = here.as_captured(deployment_facts(lifecycle.deployment, recipe))
        differences = different_deployment(manifest.deployment, facts)
        if differences:
            raise misfit(
                self.folder, differences
            )  # the snapshot is another deployment's: change no state of this object
        self._mark, self.manifest, self._identity, self._here = mark, manifest, identity, here
        criu = self._verified_criu(1)
        if reasons := changed_files(self.folder, full=self._full):
            raise misfit(self.folder, reasons)
        self._hold.take(self.folder)
        replica = self._restored(attempt, self._begin(attempt), criu, restarts=back_off.restarts)
        return self._woken(attempt, replica, criu, reason=ENGINE_ENDED, back_off=back_off)

    def _tell_restarted(self, replica: Replica, boot: Boot, back_off: BackOff) -> None:
        self._tell(
            ReplicaEvent(
                "replica_restarted",
                replica.name,
                boot=boot.kind,
                reason=boot.reason,
                restart=back_off.restarts,
                seconds=time.perf_counter() - replica.began_at,
            )
        )

    def _end(self, restoring: Sequence[Task[Replica]], waking: Sequence[Task[Serving]]) -> None:
        """Wait for the threads of a failed start, and end its replicas."""
        for wake in waking:
            wake.join()
            if wake.value is not None:
                wake.value.end()
                self._gpus.ended(wake.value.replica.name)
        for restore in restoring:
            restore.join()
            if restore.value is not None:
                self._end_replica(restore.value)
        if self._gateway is not None and not self.serving and not self.restarting:
            self._gateway.stop()
            self._gateway = None

    def _next_name(self) -> str:
        with self._lock:
            self._names_given += 1
            return f"{self.manifest.deployment.name}-{self._names_given}"


def _reasons(looking: Task[Placement | None]) -> tuple[str, ...]:
    """Why there are no GPUs for the replicas; waits until that is known."""
    results([looking])
    return looking.value.reasons if looking.value else ()


def _import_what_a_wake_needs() -> None:
    """Import it while CRIU works: the engine would wait for it later."""
    import_httpx()
    for module, name in ((runtime, "Boot"), (later, "GuardControl"), (later, "explained")):
        getattr(module, name)
