"""One start of a deployment and its sleeps and wakes: what core does around the hooks.

    cold_start   preflight -> launch -> ready -> warmup -> canary
    serve        open the guard
    sleep        drain -> pre_snapshot -> close the guard
    wake         open the guard for the lifecycle -> post_restore -> canary_check -> serve
    stop         end the engine's whole process tree

Every stage has a deadline and a record. If a stage fails, the engine is ended, and the error says what the engine did.
The deployment's listeners are told of each stage, and when the replica serves, drains and ends (`torpor.listener`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from torpor.adapter_checks import check_adapters
from torpor.engine.failure import stops_on_failure
from torpor.engine.launching import ends_started_engines, signals_held
from torpor.engine.logs import replica_log
from torpor.engine.start import engines_started_by
from torpor.engine.visible_gpus import visible_devices
from torpor.errors import CanaryError, DrainTimeoutError, GuardStateError, TorporError
from torpor.lifecycle import Lifecycle
from torpor.runtime import later
from torpor.runtime.canary import Canary, check_canary, record_canary
from torpor.runtime.deadline import Deadline
from torpor.runtime.first_requests import FirstRequests
from torpor.runtime.preflight import run_preflight
from torpor.runtime.start_limits import CONTROL_TIMEOUT_S, stage_limits
from torpor.runtime.telling import Telling
from torpor.telemetry.events import log
from torpor.telemetry.progress import followed_lines
from torpor.telemetry.records import BootKind, StageRecord, described
from torpor.telemetry.stage_report import StageReport
from torpor.telemetry.stages import Stage
from torpor.values.addresses import check_free, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import httpx

    from torpor.deployment import Deployment
    from torpor.engine.handle import Engine
    from torpor.engine.start import Starter
    from torpor.recipe import Recipe
    from torpor.runtime.answering import AnswerWatch
    from torpor.runtime.compilations import Compiled
    from torpor.runtime.guard_client import GuardControl
    from torpor.runtime.telling import Place

__all__ = ["Boot"]

_SECOND_WAKE_S = 0.5
_ASKS_ADAPTERS = (Stage.WARMUP, Stage.CANARY, Stage.CANARY_CHECK)


class Boot:
    """Starts one engine, puts it to sleep and wakes it.

    It is never pickled: on Modal a snapshot contains this object's process, beside the engine.

    Args:
        deployment: what to serve.
        lifecycle: of the deployment's plugins; a new one by default.
        recipe: what the plugins asked for, with the paths of this platform; the lifecycle's own by default.
        report: records the stages.
        starter: starts the engine; by default as a child of this process.
        restarts: how often this replica has been restarted.
        reason: why this start is not a plain one, e.g. `wake failed`; records and guard repeat it.
        replica: the replica's name in records and metrics; the deployment's name by default.

    Attributes:
        asleep: whether the engine was put to sleep and not woken since.
        serving: whether public requests are let in; False from the moment at which a sleep, a drain or a stop begins.
        logs: folder for the engine's output (`torpor.engine.logs`); None keeps only its last lines.
        woken_by: what wakes the engine once it sleeps; the guard repeats it to clients. Empty if unknown.
        gpus: numbers of the GPUs that the engine has, in the driver's order; empty if CUDA chooses. A launch shows it these alone.
        places: the same GPUs with what the driver says of them, for listeners.
        answers: ends the engine if it does not answer any more; None leaves it alone.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        lifecycle: Lifecycle | None = None,
        recipe: Recipe | None = None,
        report: StageReport | None = None,
        starter: Starter | None = None,
        restarts: int = 0,
        reason: str = "",
        replica: str = "",
    ) -> None:
        self.starter = starter
        self.replica = replica or deployment.name
        self.restarts = restarts
        self.reason = reason
        self.deployment = deployment
        self.report = report or StageReport()
        self._plugin_seconds: dict[str, float] = {}
        self.lifecycle = (lifecycle or Lifecycle(deployment)).bound(deployment, observer=self._note_plugin)
        self.recipe = recipe or self.lifecycle.recipe()
        self.restore_count = 0
        self.engine: Engine | None = None
        self.canary: Canary | None = None
        self.asleep = self.serving = False
        self.woken_by = ""
        self.logs: Path | None = None
        self.gpus: Sequence[int] = ()
        self.places: Sequence[Place] = ()
        self._kind: BootKind = "cold"
        self._moving = threading.Lock()
        self.answers: AnswerWatch | None = None
        self.telling = Telling(self, self.lifecycle.listeners)
        self._first_requests = FirstRequests(self, self._note_compiled)

    def cold_start(self, *, on_ready: Callable[[Boot], None] | None = None, sleeps: bool = True) -> None:
        """Start the engine, warm it up and record the canary; the guard stays closed.

        Args:
            on_ready: called once the engine is ready, before its warm-up.
            sleeps: whether it may be put to sleep later; False records no canary, which only a wake asks for.

        Raises:
            PreflightError: a check before the launch failed.
            PortInUseError: another process listens on the port.
            EngineError: the engine ended, hung or answered with an error.
        """
        self._check_before_launch()
        self._launch()
        self._await_ready()
        if on_ready:
            on_ready(self)
        self._warm_up()
        if sleeps:
            self._record_canary()

    def _check_before_launch(self) -> None:
        with self._stage(Stage.PREFLIGHT):
            if self.starter is None:
                check_free(self.deployment.host, self.deployment.port)
            for check in self.recipe.preflight:
                run_preflight(check, self.recipe)
            check_adapters(self.deployment, self.recipe.env)

    def _launch(self) -> None:
        with (
            self._stage(Stage.LAUNCH),
            ends_started_engines(),
            signals_held(),
            engines_started_by(self.starter, visible_devices(self.gpus)),
            replica_log(self.logs, self.replica),
        ):
            self.engine = self.lifecycle.launch(self.recipe)
            self.engine.host = nearest(self.deployment.host)

    def _await_ready(self) -> None:
        engine_plugin, timeout_s = self.deployment.engine, self.deployment.startup_timeout_s
        with (
            self._stage(Stage.READY),
            self._client(timeout_s) as client,
            followed_lines(self.running_engine.log_tail, engine_plugin.log_progress),
        ):
            later.wait_ready(
                self.running_engine,
                client,
                port=self.deployment.port,
                ready_path=engine_plugin.ready_path,
                timeout_s=timeout_s,
            )

    def _warm_up(self) -> None:
        limits = stage_limits(self.deployment, self.recipe)
        timeout_s = self.deployment.warmup_timeout_s
        with self._stage(Stage.WARMUP, limits[Stage.WARMUP]), self._client(timeout_s) as client:
            self.lifecycle.warmup(self.running_engine, client)

    def _record_canary(self) -> None:
        limit_s = stage_limits(self.deployment, self.recipe)[Stage.CANARY]
        with self._stage(Stage.CANARY, limit_s), self._client(self.deployment.warmup_timeout_s) as client:
            self.canary = record_canary(self.deployment, client)

    def serve(self) -> None:
        """Let public requests in."""
        with self._alone("serve"):
            self._serve()

    def _serve(self) -> None:
        with self._stage(Stage.SERVE, CONTROL_TIMEOUT_S), self._control() as control:
            control.serve(reason=self.reason)
        self.serving = True
        self.telling.serving()
        self._first_requests.begin()

    def sleep(self, *, for_snapshot: bool = True) -> None:
        """Finish requests in flight, put the engine to sleep and close the guard.

        Idle connections are closed at once. After `drain_timeout_s` the requests still in flight are cut off, so a client that
        never reads, or sends its body byte by byte, cannot keep the engine awake.

        Args:
            for_snapshot: whether the engine will be captured, so that its processes may contain no secret; False for an engine
                that stays in memory.

        Raises:
            SnapshotError: the snapshot would contain a secret (see `Deployment.secrets_in_snapshot`); the engine keeps serving.
            GuardStateError: another thread is moving the engine to another state; this call changed nothing.
            DrainTimeoutError: the engine still works on requests that were cut off; it keeps serving.
            EngineError: the engine did not go to sleep, and was ended.
        """
        with self._alone("sleep"):
            if for_snapshot:
                from torpor.runtime.captured_secrets import check_captured  # noqa: PLC0415 - psutil: 8 ms of a restore

                check_captured(self.deployment, self.running_engine)
            try:
                self._sleep(for_snapshot=for_snapshot)
            except DrainTimeoutError:
                self.serving = True  # it serves on
                self.telling.serving()
                raise

    def _sleep(self, *, for_snapshot: bool) -> None:
        deployment = self.deployment
        limit_s = deployment.drain_timeout_s
        limits = stage_limits(deployment, self.recipe)
        self.serving = False
        self._first_requests.end()
        self.telling.draining()
        with self._stage(Stage.DRAIN, limits[Stage.DRAIN]), self._control() as control:
            if was_cut := control.drain(limit_s, cut=True):
                log(
                    "warning",
                    "requests_cut",
                    count=was_cut,
                    drain_timeout_s=limit_s,
                    replica_id=self.running_engine.replica_id,
                )
        if not deployment.engine.supports_sleep:
            log("info", "engine_cannot_sleep", plugin=type(deployment.engine).__name__)
        with self._stage(Stage.PRE_SNAPSHOT, limits[Stage.PRE_SNAPSHOT]):
            with self._client(deployment.sleep_timeout_s) as client:
                self.lifecycle.pre_snapshot(self.running_engine, client)
            with self._control() as control:
                control.asleep(alone=for_snapshot, woken_by=self.woken_by)
        self.telling.flush()  # no listener's thread may be in a snapshot
        self.asleep = True

    def in_flight(self) -> int:
        """How many requests the engine works on; 0 if the guard does not answer."""
        with contextlib.suppress(*later.no_answer()), self._control() as control:
            return control.in_flight()
        return 0

    def drain(self, limit_s: float) -> int:
        """Refuse new requests, wait for those in flight, and cut off the rest at the limit. Call it before `stop`.

        It does nothing if the engine sleeps, has ended or has no guard.

        Args:
            limit_s: seconds that requests in flight get.

        Returns:
            How many were cut off.
        """
        self.serving = False
        self._first_requests.end()
        self.telling.draining()
        with contextlib.suppress(*later.no_answer()), self._control() as control:
            return control.drain(limit_s, cut=True)
        return 0

    def check_asleep(self) -> None:
        """Check that the engine sleeps and has no request in flight; see `GuardControl.check_asleep`."""
        with self._control() as control:
            control.check_asleep()

    def adopt(self, engine: Engine, canary: Canary) -> None:
        """Take over a restored engine that still sleeps. Call `wake` next.

        Args:
            engine: the restored engine.
            canary: what was recorded of the captured engine before its sleep.
        """
        self.engine, self.canary = engine, canary
        if self.logs is not None:
            engine.keep_log(self.logs, self.replica)
        self._kind = "restored"

    def note_restored(self, stages: Sequence[tuple[Stage, float]], *, ended_at: float, replica_id: str) -> None:
        """Record the stages of a replica's restore, before its wake.

        Args:
            stages: those of `torpor.telemetry.stages.RESTORE_STAGES` with their seconds, in order.
            ended_at: Unix time at the end of the last one.
            replica_id: the restored replica's new id.
        """
        ends_at = ended_at - sum(seconds for _, seconds in stages)
        for stage, seconds in stages:
            ends_at += seconds
            self._note(
                stage, seconds, None, replica_id=replica_id, restore_count=self.restore_count + 1, ended_at=ends_at
            )

    def wake(self, *, new_replica_id: str | None = None) -> None:
        """Wake the engine, compare its canary and let public requests in.

        Args:
            new_replica_id: the id of a replica that was restored from a snapshot; None for a wake in place.

        Raises:
            EngineError: the engine ended, hung or answered with an error; it never serves.
            CanaryError: its answer differs from the recorded one; with `canary_mismatch="warn"` this is only logged.
            GuardStateError: another thread is moving the engine, and this call changed nothing; or the engine does not sleep, and
                was ended.
        """
        with self._alone("wake"):
            self._wake(new_replica_id)

    def _wake(self, new_replica_id: str | None) -> None:
        deployment = self.deployment
        self._kind = "woken" if new_replica_id is None else "restored"
        self.restore_count += 1
        limits = stage_limits(deployment, self.recipe)
        with (
            self._stage(Stage.POST_RESTORE, limits[Stage.POST_RESTORE]),
            self._client(deployment.wake_timeout_s) as client,
        ):
            self._wake_guard(client, new_replica_id)
            self.lifecycle.post_restore(self.running_engine, client)
        with (
            self._stage(Stage.CANARY_CHECK, limits[Stage.CANARY_CHECK]),
            self._client(deployment.wake_timeout_s) as client,
        ):
            self._check_canary(client)
        self._serve()
        self.asleep = False

    def _wake_guard(self, client: httpx.Client, new_replica_id: str | None) -> None:
        """Wake the guard. If the connection fails, try once more: the guard has seen nothing, so this is safe."""
        control = later.GuardControl(self.running_engine, client)
        try:
            control.wake(new_replica_id=new_replica_id)
        except later.connect_failure():
            if self.running_engine.wait(_SECOND_WAKE_S) is not None:
                raise
            control.wake(new_replica_id=new_replica_id)

    def stop(self) -> int | None:
        """End the engine's whole process tree; return its exit code, or None without an engine. Harmless to repeat."""
        exit_code = self._end_engine()
        self.note_end(exit_code)
        return exit_code

    def _end_engine(self) -> int | None:
        return None if self.engine is None else self.engine.terminate(self.deployment.stop_timeout_s)

    def note_end(self, exit_code: int | None) -> None:
        """Tell the listeners that the engine has ended, and wait until they have heard all. Harmless to repeat.

        Args:
            exit_code: the engine's; None if unknown.
        """
        self.serving = False
        self._first_requests.end()
        self.telling.stopped(exit_code)
        self.telling.flush()

    @property
    def kind(self) -> BootKind:
        """The kind of its latest start."""
        return self._kind

    @property
    def running_engine(self) -> Engine:
        """The engine of this boot.

        Raises:
            TorporError: it has not been launched.
        """
        if self.engine is None:
            raise TorporError("No engine was launched in this boot yet; call cold_start first.")
        return self.engine

    def _check_canary(self, client: httpx.Client) -> None:
        if self.canary is None:
            raise TorporError("No canary was recorded in this boot; call cold_start first.")
        try:
            check_canary(self.canary, self.deployment, client)
        except CanaryError as error:
            if self.deployment.canary_mismatch == "fail":
                raise
            log("warning", "canary_mismatch", replica_id=self.running_engine.replica_id, detail=str(error))

    @contextlib.contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        """Refuse a transition while another is under way: if this one failed, it would end the engine under the other."""
        if not self._moving.acquire(blocking=False):
            raise GuardStateError(
                f"Another thread is moving this engine to another state; {what!r} was refused and changed nothing. Wait for "
                "that thread, then check the engine's state."
            )
        try:
            with self.answers.paused() if self.answers is not None else contextlib.nullcontext():
                yield
        finally:
            self._moving.release()

    @contextlib.contextmanager
    def _client(self, timeout_s: float) -> Iterator[httpx.Client]:
        with later.open_client(self.running_engine, port=self.deployment.port, timeout_s=timeout_s) as client:
            yield client

    @contextlib.contextmanager
    def _control(self) -> Iterator[GuardControl]:
        with self._client(CONTROL_TIMEOUT_S) as client:
            yield later.GuardControl(self.running_engine, client)

    @contextlib.contextmanager
    def _stage(self, stage: Stage, timeout_s: float | None = None) -> Iterator[None]:
        """Record a stage. At the deadline and on any failure, end the engine and raise an error that says what it did."""
        self.report.begin(stage)
        self._plugin_seconds = {}
        started = time.perf_counter()
        deadline = Deadline(self.engine, timeout_s)
        failure: BaseException | None = None
        try:
            with stops_on_failure(self._end_engine, unless=DrainTimeoutError):
                try:
                    with deadline:
                        yield
                    if self.engine is not None and self.engine.poll() is not None:
                        raise later.exited_error(self.engine, f"in stage {stage}")  # noqa: TRY301 - all failures end below
                except BaseException as error:
                    failure = later.explained(error, self.engine, stage, deadline)
                    if failure is error:
                        raise
                    raise failure from error
        finally:
            self._record(stage, time.perf_counter() - started, failure)
            if failure is not None and not isinstance(failure, DrainTimeoutError):
                self.telling.stopped(self.engine.poll() if self.engine is not None else None)

    def _record(self, stage: str, seconds: float, failure: BaseException | None) -> None:
        self._note(
            stage,
            seconds,
            failure,
            replica_id=self.engine.replica_id if self.engine else "",
            restore_count=self.restore_count,
            ended_at=time.time(),
            plugins=self._plugin_seconds,
        )

    def _note(
        self,
        stage: str,
        seconds: float,
        failure: BaseException | None,
        *,
        replica_id: str,
        restore_count: int,
        ended_at: float,
        plugins: dict[str, float] | None = None,
        compiled: dict[str, int] | None = None,
    ) -> None:
        record = StageRecord(
            stage=stage,
            seconds=seconds,
            boot=self._kind,
            replica_id=replica_id,
            restore_count=restore_count,
            ended_at=ended_at,
            ok=failure is None,
            error=described(failure),
            plugins=plugins or {},
            restarts=self.restarts,
            reason=self.reason,
            deployment=self.deployment.name,
            replica=self.replica,
            compiled=compiled or {},
            adapters=list(self.deployment.model.adapters) if stage in _ASKS_ADAPTERS else [],
        )
        self.report.end(record)
        self.telling.stage_ended(record, failure)

    def _note_compiled(self, found: Compiled) -> None:
        self._note(
            Stage.FIRST_REQUESTS,
            found.seconds,
            None,
            replica_id=self.running_engine.replica_id,
            restore_count=self.restore_count,
            ended_at=time.time(),
            compiled=found.as_record(),
        )

    def _note_plugin(self, hook: str, plugin: str, seconds: float) -> None:  # noqa: ARG002 - a stage runs one hook
        self._plugin_seconds[plugin] = self._plugin_seconds.get(plugin, 0.0) + seconds
