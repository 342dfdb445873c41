"""The local platform: the same lifecycle on this machine.

    server = LocalServer(deployment, backend=Standby())
    server.start()      # build steps, checks, cold start; with a backend that keeps servers also sleep and wake
    ...
    server.stop()

On Modal a container image provides what an engine needs. Here the recipe is mapped to the machine: the engine gets
the environment variables, and volumes and the image's own disk become folders below a cache root. Build steps run before the
first start, and are skipped while their complete outputs exist. Packages and GPUs are checked; nothing is installed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from torpor import snapshots
from torpor.build_steps.local import run_build_steps
from torpor.build_steps.relocation import relocate
from torpor.engine.failure import stops_on_failure
from torpor.errors import DrainTimeoutError, SnapshotError, TorporError, TrialWakeError
from torpor.lifecycle import Lifecycle
from torpor.platforms.local.backends import STANDBY_WORKS, NoSnapshot
from torpor.platforms.local.cold_gpus import ColdGpus
from torpor.platforms.local.installed_nccl import check_nccl
from torpor.platforms.local.requirements import check_gpu
from torpor.plugin_checks import tell_warnings
from torpor.runtime import later
from torpor.runtime.answering import AnswerWatch
from torpor.runtime.boot import Boot
from torpor.runtime.draining import drain
from torpor.runtime.supervision import ENGINE_ENDED, WAKE_FAILED, BackOff, ReplicaEvent
from torpor.snapshots.before_capture.lasting_folders import check_lasting
from torpor.snapshots.before_capture.outside_files import model_files
from torpor.snapshots.gpu.placement import only_gpus
from torpor.snapshots.store.paths import cache_root, logs_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torpor.deployment import Deployment
    from torpor.platforms.local.backends import SnapshotBackend
    from torpor.recipe import Recipe
    from torpor.snapshots.gpu.placement import GpuPlace
    from torpor.telemetry.stage_report import StageReport

__all__ = ["LocalServer", "check_model_folder"]

_TAIL_LINES = 20


class LocalServer:
    """One server of a deployment on this machine.

    Args:
        deployment: what to serve.
        lifecycle: of its plugins, if the caller has one; a new one by default.
        backend: how the sleeping engine is kept; `NoSnapshot()` serves right after the cold start.
        root: cache root; `cache_root()` by default.
        report: where stages are recorded.
        on_step: called with the name of each build step before it runs.
        cold_on_failed_wake: whether a failed wake is followed by a cold start; the deployment may still forbid it. False raises
            the failure, for tests and for timing wakes.
        on_event: called with what happens to the engine by itself; logged by default.
        gpus: the GPUs that the engine may use at a cold start; by default CUDA chooses (its first ones), unless
            another command has those.

    Raises:
        ConfigurationError: the deployment cannot run here (no such GPU, ...), or a plugin's check finds an error in it.
        SnapshotError: the backend cannot be used here; every reason is listed.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        lifecycle: Lifecycle | None = None,
        backend: SnapshotBackend | None = None,
        root: Path | None = None,
        report: StageReport | None = None,
        on_step: Callable[[str], None] | None = None,
        cold_on_failed_wake: bool = True,
        on_event: Callable[[ReplicaEvent], None] | None = None,
        gpus: Sequence[GpuPlace] = (),
    ) -> None:
        self.backend = backend or NoSnapshot()
        self.deployment = deployment = self.backend.placed(deployment)
        self.root = root or cache_root()
        tell_warnings(deployment)
        self.lifecycle = (lifecycle or Lifecycle(deployment)).bound(deployment)
        self.recipe = relocate(self.lifecycle.recipe(), self.root, deployment.name)
        if not self.backend.process_stays:
            check_lasting(deployment, self.recipe, self.root)
        if reasons := self.backend.available(deployment):
            listed = "\n".join(f"  - {reason}" for reason in reasons)
            raise SnapshotError(f"The backend {self.backend.name!r} cannot be used here:\n{listed}\n{STANDBY_WORKS}")
        check_gpu(deployment)
        self._gpus = ColdGpus(deployment, gpus)
        if self.backend.name != NoSnapshot.name:
            check_nccl(deployment, self.recipe)
        if not self.backend.process_stays:
            check_model_folder(deployment, self.recipe)
        self._on_step = on_step
        self._cold_on_failed_wake = cold_on_failed_wake and deployment.cold_start_on_failed_wake
        self._tell = on_event or ReplicaEvent.log
        self._back_off = BackOff(deployment.max_restarts)
        self._has_snapshot = not self.backend.process_stays  # of this engine; another one may lie in the folder
        self.boot = self._placed(Boot(deployment, lifecycle=self.lifecycle, recipe=self.recipe, report=report))

    @property
    def address(self) -> tuple[str, int]:
        """The host and port on which clients reach it."""
        return self.backend.address(self.deployment)

    def build(self) -> None:
        """Run the recipe's build steps. A step whose outputs a completed run has made is skipped.

        Raises:
            BuildStepError: a step failed; its output was printed before.
        """
        run_build_steps(self.recipe, self.root, on_step=self._on_step)

    def cold_start(self) -> None:
        """Build and start cold, in the place that the backend prepares; the guard stays closed."""
        self.boot.starter = self.backend.prepare(self.deployment)
        self.build()
        self._gpus.take()
        self._placed(self.boot)
        self.boot.cold_start(
            on_ready=None if self.backend.process_stays else snapshots.warn_of_held,
            sleeps=self.backend.name != NoSnapshot.name,
        )

    def start(self) -> None:
        """Build, start cold and serve; with a backend that keeps servers, sleep and wake once in between."""
        with self._ends_on_failure():
            self.cold_start()
            if self.backend.name == "none":
                self.boot.serve()
            elif self._captured():
                self._woken_or_cold()
        self._back_off.serves()

    def _captured(self) -> bool:
        """Whether the new engine sleeps. If its snapshot failed the trial, the engine was started cold again and serves."""
        began = time.perf_counter()
        try:
            self.backend.capture(self.boot)
        except TrialWakeError as error:
            if not self._cold_on_failed_wake:
                raise
            self._has_snapshot = False
            self._tell_failure("wake_failed", error)
            self._renew(WAKE_FAILED)
            self._cold_instead(began)
            return False
        return True

    def sleep(self, *, woken_by: str = "") -> None:
        """Put the serving engine to sleep.

        Args:
            woken_by: what wakes it, e.g. `kill -USR2 17 on its machine`; clients of the sleeping server are told so.
        """
        self.boot.woken_by = woken_by
        self.backend.capture(self.boot)
        self._has_snapshot = not self.backend.process_stays

    def wake(self) -> None:
        """Wake the sleeping engine; it serves when this returns.

        If the backend kept a snapshot, a failed wake is tried once more. After that the engine starts cold, unless
        `cold_on_failed_wake` or the deployment forbids it.

        Raises:
            TorporError: the wake failed, and the cold start failed as well or was forbidden; nothing runs.
        """
        with self._ends_on_failure():
            self._woken_or_cold()
        self._back_off.serves()

    def drain(self, on_wait: Callable[[int], None] | None = None) -> int:
        """Before `stop`: refuse new requests, and wait up to `drain_timeout_s` for those in flight.

        Args:
            on_wait: called with how many are in flight, if any.

        Returns:
            How many were cut off.
        """
        limit_s = self.deployment.drain_timeout_s
        return drain([self.boot], limit_s=limit_s, on_wait=on_wait, port=self.backend.drain)

    def start_again(self) -> None:
        """Start again after the engine ended by itself: from the snapshot if the backend keeps one, else cold.

        Restarts have pauses, and at most `Deployment.max_restarts` follow each other (`torpor.runtime.supervision`). The gateway of
        the backend `criu` stays open meanwhile; with other backends the public port is the engine's own.

        Raises:
            EngineExitedError: it ended too often; its last lines are in the message.
        """
        name, engine = self.deployment.name, self.boot.running_engine
        error = later.exited_error(engine, "while it was serving")
        last = engine.log_tail()[-_TAIL_LINES:]
        log_file = str(engine.log_path or "")
        self._tell(
            ReplicaEvent("replica_ended", name, exit_code=error.exit_code_seen, last_lines=last, log_file=log_file)
        )
        while (pause_s := self._back_off.ended()) is not None:
            time.sleep(pause_s)
            began = time.perf_counter()
            try:
                with self._ends_on_failure(keep_port=True):
                    self._restarted(ENGINE_ENDED)
            except TorporError as failed:
                said = f"{type(failed).__name__}: {failed}"
                self._tell(ReplicaEvent("restart_failed", name, restart=self._back_off.restarts, error=said))
            else:
                self._back_off.serves()
                self._tell_restarted(began)
                return
        self._tell(ReplicaEvent("replica_given_up", name, restart=self._back_off.restarts))
        raise error

    def _restarted(self, reason: str) -> None:
        self._renew(reason)
        if self._has_snapshot:
            try:
                self.backend.restore(self.boot)
            except TorporError as error:
                self._tell_failure("restore_failed", error)
                self._renew(reason)
            else:
                return
        self.cold_start()
        self.boot.serve()

    def _woken_or_cold(self) -> None:
        attempts = (
            2 if self._has_snapshot else 1
        )  # without a snapshot the failed engine has ended, and nothing is left to try
        for attempt in range(1, attempts + 1):
            began = time.perf_counter()
            try:
                self.backend.restore(self.boot)
            except Exception as error:
                if isinstance(error, DrainTimeoutError) or not self._cold_on_failed_wake:
                    raise
                self._tell_failure("wake_failed", error)
                self._renew(WAKE_FAILED if attempt == attempts else "")
            else:
                return
        self._cold_instead(began)

    def _cold_instead(self, began: float) -> None:
        """Start cold after a wake that failed."""
        self._back_off.note_restart()
        self.boot.restarts = self._back_off.restarts
        self.cold_start()
        self.boot.serve()
        self._tell_restarted(began)

    def _renew(self, reason: str) -> None:
        """End what is left of the engine, and replace its boot by a new one."""
        self.boot.stop()
        self.backend.clear()
        renewed = Boot(
            self.deployment,
            lifecycle=self.lifecycle,
            recipe=self.recipe,
            report=self.boot.report,
            restarts=self._back_off.restarts,
            reason=reason,
        )
        self.boot = self._placed(renewed)

    def _placed(self, boot: Boot) -> Boot:
        """A boot that knows where its engine's output goes, and which GPUs the engine may use."""
        boot.answers = boot.answers or AnswerWatch(boot)
        boot.logs = logs_folder(self.deployment.name, root=self.root)
        boot.gpus = [gpu.number for gpu in self._gpus.gpus]
        if self.lifecycle.listeners is not None:
            boot.places = self._gpus.gpus or only_gpus(self.deployment.gpu_count)
        return boot

    def _tell_failure(self, event: str, error: Exception) -> None:
        self._tell(ReplicaEvent(event, self.deployment.name, error=f"{type(error).__name__}: {error}"))

    def _tell_restarted(self, began: float) -> None:
        self._tell(
            ReplicaEvent(
                "replica_restarted",
                self.deployment.name,
                boot=self.boot.kind,
                reason=self.boot.reason,
                restart=self._back_off.restarts,
                seconds=time.perf_counter() - began,
            )
        )

    def stop(self) -> None:
        """End the engine's whole process tree and what the backend holds."""
        self.boot.stop()
        self.backend.close()
        self._gpus.release()

    def _ends_on_failure(self, *, keep_port: bool = False) -> AbstractContextManager[None]:
        """End the engine and what the backend holds if the block fails; `_renew` may replace the engine meanwhile."""
        let_go = self.backend.clear if keep_port else self.backend.close
        return stops_on_failure(lambda: self.boot.stop(), let_go, unless=DrainTimeoutError)  # noqa: PLW0108 - the boot of then


def check_model_folder(deployment: Deployment, recipe: Recipe) -> None:
    """Refuse a model folder with other files in it before the start, not minutes later.

    Raises:
        SnapshotError: the folder holds more than a model.
    """
    for _ in model_files(deployment, recipe):
        pass
