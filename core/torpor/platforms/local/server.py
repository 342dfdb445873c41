"""The local platform: the same lifecycle on this machine.

    server = LocalServer(deployment, backend=Standby())
    server.start()      # build steps, checks, cold start; with a backend that snapshots: sleep and wake, too
    ...
    server.stop()

What a container image gives on Modal is mapped here: environment variables are set for the engine, volumes and the
image's own disk become folders under a cache root, build steps run before the first start (and are skipped while their
outputs exist, whole), packages are checked and listed but never installed, and the GPU is checked.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.build_steps.command import run_step
from torpor.build_steps.outputs import making
from torpor.build_steps.relocation import relocate
from torpor.engine.child_process import run_child
from torpor.errors import ConfigurationError, DrainTimeoutError, SnapshotError, TorporError, TrialWakeError
from torpor.lifecycle import Lifecycle
from torpor.platforms.local.backends import (
    BACKENDS,
    STANDBY_WORKS,
    CriuBackend,
    NoSnapshot,
    SnapshotBackend,
    Standby,
)
from torpor.plugin_checks import tell_warnings
from torpor.recipe import Recipe, requirement_name
from torpor.runtime.boot import Boot
from torpor.runtime.readiness import exited_error
from torpor.runtime.supervision import ENGINE_ENDED, WAKE_FAILED, BackOff, ReplicaEvent
from torpor.snapshots.store.paths import CACHE_VARIABLE, cache_root, logs_folder
from torpor.telemetry.events import log
from torpor.values.gpu_names import gpu_model, is_this_gpu
from torpor.values.plain_text import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torpor.app_file import App
    from torpor.deployment import Deployment
    from torpor.platforms.local.replicas import Replicas
    from torpor.snapshots.store.manifest import Manifest, Mode
    from torpor.telemetry.stage_report import StageReport

__all__ = [
    "BACKENDS",
    "CACHE_VARIABLE",
    "CriuBackend",
    "LocalServer",
    "NoSnapshot",
    "SnapshotBackend",
    "Standby",
    "cache_root",
    "create_snapshot",
    "inspect_snapshot",
    "missing_packages",
    "remove_snapshot",
    "restore_snapshot",
]

_QUERY_TIMEOUT_S = 20.0
_TAIL_LINES = 20


class LocalServer:
    """One server of a deployment on this machine.

    Args:
        deployment: what to serve.
        lifecycle: of its plugins, where the caller has one; made from the deployment by default.
        backend: how to keep it asleep; `NoSnapshot()` serves right after the cold start.
        root: cache root; `cache_root()` by default.
        report: where stages are recorded.
        on_step: told the name of each build step before it runs.
        cold_on_failed_wake: whether it starts cold where a wake fails; the deployment may still forbid it. False shows the
            failure, for whoever tests or times wakes.
        on_event: told what happens to the engine by itself; by default that is logged.

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
    ) -> None:
        self.backend = backend or NoSnapshot()
        self.deployment = deployment = self.backend.placed(deployment)
        self.root = root or cache_root()
        tell_warnings(deployment)
        self.lifecycle = (lifecycle or Lifecycle(deployment)).bound(deployment)
        self.recipe = relocate(self.lifecycle.recipe(), self.root, deployment.name)
        if not self.backend.process_stays:
            from torpor.snapshots.before_capture.lasting_folders import check_lasting  # noqa: PLC0415 - only where a snapshot is written

            check_lasting(deployment, self.recipe, self.root)
        if reasons := self.backend.available(deployment):
            listed = "\n".join(f"  - {reason}" for reason in reasons)
            raise SnapshotError(f"The backend {self.backend.name!r} cannot be used here:\n{listed}\n{STANDBY_WORKS}")
        check_gpu(deployment)
        if not self.backend.process_stays:
            _check_model_folder(deployment, self.recipe)
        self._on_step = on_step
        self._cold_on_failed_wake = cold_on_failed_wake and deployment.cold_start_on_failed_wake
        self._tell = on_event or ReplicaEvent.log
        self._back_off = BackOff(deployment.max_restarts)
        self._has_snapshot = not self.backend.process_stays  # of this engine; another one may lie in the folder
        self.boot = Boot(deployment, lifecycle=self.lifecycle, recipe=self.recipe, report=report)
        self.boot.logs = logs_folder(deployment.name, root=self.root)

    @property
    def address(self) -> tuple[str, int]:
        """Where its clients find it: host and port that are listened on."""
        return self.backend.address(self.deployment)

    def build(self) -> None:
        """Run the recipe's build steps; a step whose outputs exist, made by a run that came to its end, is skipped.

        Raises:
            BuildStepError: a step failed; its last lines stand above.
        """
        run_build_steps(self.recipe, self.root, on_step=self._on_step)

    def cold_start(self) -> None:
        """Build and start cold, in the place that the backend gives; the guard stays shut."""
        self.boot.starter = self.backend.prepare(self.deployment)
        self.build()
        self.boot.cold_start(on_ready=_warn_of_held if isinstance(self.backend, CriuBackend) else None)

    def start(self) -> None:
        """Build, start cold, and with a backend that keeps servers: fall asleep and wake once; then serve."""
        with self._ended_on_failure():
            self.cold_start()
            if self.backend.name == "none":
                self.boot.serve()
            elif self._captured():
                self._woken_or_cold()
        self._back_off.serves()

    def _captured(self) -> bool:
        """Whether the new engine was put to sleep; where a trial of its snapshot did not wake it was started cold, and serves."""
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
            woken_by: what wakes it, e.g. `kill -USR2 17 on its machine`; whoever asks the sleeping server is told so.
        """
        self.boot.woken_by = woken_by
        self.backend.capture(self.boot)
        self._has_snapshot = not self.backend.process_stays

    def wake(self) -> None:
        """Wake the sleeping engine; it serves when this returns.

        A wake that fails is tried once more where the backend kept a snapshot; then the engine is started cold, unless
        `cold_on_failed_wake` or the deployment forbids it.

        Raises:
            TorporError: it did not wake, and there was no cold start, or that failed, too; nothing runs.
        """
        with self._ended_on_failure():
            self._woken_or_cold()
        self._back_off.serves()

    def drain(self, on_wait: Callable[[int], None] | None = None) -> int:
        """Before `stop`: refuse new requests, and let those in flight end until `drain_timeout_s` is over.

        Args:
            on_wait: told how many are in flight, where there are any.

        Returns:
            How many were cut off.
        """
        from torpor.runtime.draining import drain  # noqa: PLC0415 - once

        limit_s = self.deployment.drain_timeout_s
        return drain([self.boot], limit_s=limit_s, on_wait=on_wait, port=self.backend.drain)

    def start_again(self) -> None:
        """Start again after the engine ended by itself: from the snapshot where the backend keeps one, else cold.

        With pauses, and no more often in a row than `Deployment.max_restarts`; see `torpor.runtime.supervision`.
        The public port stays open meanwhile where the backend owns it (`criu`); with the others it is the engine's own.

        Raises:
            EngineExitedError: it ended too often; its last lines are in the message.
        """
        name, engine = self.deployment.name, self.boot.running_engine
        error = exited_error(engine, "while it was serving")
        last = engine.log_tail()[-_TAIL_LINES:]
        log_file = str(engine.log_path or "")
        self._tell(
            ReplicaEvent("replica_ended", name, exit_code=error.exit_code_seen, last_lines=last, log_file=log_file)
        )
        while (pause_s := self._back_off.ended()) is not None:
            time.sleep(pause_s)
            began = time.perf_counter()
            try:
                with self._ended_on_failure(keep_port=True):
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
        attempts = 2 if self._has_snapshot else 1  # what failed in its own process has ended
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
        """End what is left of the engine, and begin another boot in its place."""
        self.boot.stop()
        self.backend.clear()
        self.boot = Boot(
            self.deployment,
            lifecycle=self.lifecycle,
            recipe=self.recipe,
            report=self.boot.report,
            restarts=self._back_off.restarts,
            reason=reason,
        )
        self.boot.logs = logs_folder(self.deployment.name, root=self.root)

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
        """End the engine's whole tree and what the backend holds."""
        self.boot.stop()
        self.backend.close()

    @contextlib.contextmanager
    def _ended_on_failure(self, *, keep_port: bool = False) -> Iterator[None]:
        try:
            yield
        except DrainTimeoutError:
            raise  # the engine serves on
        except BaseException:
            self.boot.stop()
            self.backend.clear() if keep_port else self.backend.close()
            raise


def create_snapshot(
    app: App | str | Path,
    folder: Path,
    *,
    mode: Mode | None = None,
    copy_memory: bool = False,
    prove: bool | None = None,
    report: StageReport | None = None,
    on_step: Callable[[str], None] | None = None,
) -> Manifest:
    """Start an app cold, put it to sleep, keep it in a folder and end it.

    Args:
        app: the app, or the path of its file; a restore imports the file again.
        folder: where the snapshot goes; one that is there is replaced when the new one is whole.
        mode: root or rootless; by default what works here, rootless first (with a GPU: root).
        copy_memory: see `CriuBackend`.
        prove: see `CriuBackend`.
        report: where stages are recorded.
        on_step: told the name of each build step before it runs.

    Raises:
        SnapshotError: it cannot be made here, every reason is listed; nothing is left on the disk and nothing running.
        TorporError: the start failed.
    """
    from torpor.app_file import App, load_app  # noqa: PLC0415 - app files import this module
    from torpor.snapshots.targets import check_target  # noqa: PLC0415

    check_target(folder)
    loaded = app if isinstance(app, App) else load_app(str(app))
    backend = CriuBackend(
        folder=folder, app_file=loaded.file, mode=mode, public=False, copy_memory=copy_memory, prove=prove
    )
    server = LocalServer(loaded.deployment, lifecycle=loaded.lifecycle, backend=backend, report=report, on_step=on_step)
    try:
        server.cold_start()
        return backend.capture(server.boot)
    finally:
        server.stop()


def restore_snapshot(
    folder: Path, *, replicas: int = 1, port: int | None = None, host: str | None = None, full: bool = False
) -> Replicas:
    """Restore copies of a snapshot behind one port; they serve until `stop` of what is returned.

    One that ends by itself is restored again; see `torpor.runtime.supervision` for how often.

    Args:
        folder: the snapshot.
        replicas: how many copies.
        port: public port; the deployment's by default.
        host: address of the public port; the deployment's by default.
        full: compare the hash of every file before.

    Raises:
        PortInUseError: somebody else has the port; nothing was restored.
        SnapshotError: it does not fit; every reason is listed, nothing is left running.
        TorporError: a copy did not wake; nothing is left running.
    """
    from torpor.platforms.local.replicas import Replicas  # noqa: PLC0415

    copies = Replicas(folder, port=port, host=host, full=full, supervised=True)
    copies.start(replicas)
    return copies


def inspect_snapshot(folder: Path) -> Manifest:
    """What a snapshot is.

    Raises:
        SnapshotError: there is none, it is open to others, damaged, or of another version.
    """
    from torpor.snapshots.store.stored import inspect  # noqa: PLC0415

    return inspect(folder)


def remove_snapshot(folder: Path) -> None:
    """Delete a snapshot; copies that run go on.

    Args:
        folder: a symbolic link stands for what it leads to; the link stays.

    Raises:
        SnapshotError: it is no snapshot that Torpor wrote for this user; the message says what it is, and nothing is deleted.
    """
    from torpor.snapshots.store.index import remove  # noqa: PLC0415

    remove(folder)


def run_build_steps(recipe: Recipe, root: Path, *, on_step: Callable[[str], None] | None = None) -> None:
    """Run the build steps of a relocated recipe; a step whose outputs exist, made by a run that came to its end, is skipped.

    Args:
        recipe: from `relocate`.
        root: the cache root.
        on_step: told the name of each build step before it runs.

    Raises:
        BuildStepError: a step failed; its last lines stand above.
    """
    for volume in recipe.volumes:
        Path(volume).mkdir(parents=True, exist_ok=True)
    for step in recipe.steps:
        with making(step, root / "steps") as needed:
            if needed:
                if on_step:
                    on_step(step.name)
                for mount in step.volumes:
                    Path(mount).mkdir(parents=True, exist_ok=True)
                run_step(step, recipe)


def _warn_of_held(boot: Boot) -> None:
    from torpor.snapshots.foresight import warn_of_held  # noqa: PLC0415 - only where a snapshot is written

    warn_of_held(boot)


def check_before_start(lifecycle: Lifecycle, folder: Path) -> None:
    """What stands against a snapshot and is known before anything is built or started.

    Args:
        lifecycle: of what is to be snapshotted.
        folder: where the snapshot is to go.

    Raises:
        SnapshotError: the target does not do, the engine needs files in a folder that does not last, or the model's folder holds
            more than a model.
    """
    from torpor.snapshots.before_capture.lasting_folders import check_lasting  # noqa: PLC0415 - only where a snapshot is written
    from torpor.snapshots.targets import check_target, check_writable  # noqa: PLC0415

    check_target(folder)
    check_writable(folder)
    deployment = lifecycle.deployment
    recipe = relocate(lifecycle.recipe(), cache_root(), deployment.name)
    check_lasting(deployment, recipe)
    _check_model_folder(deployment, recipe)


def _check_model_folder(deployment: Deployment, recipe: Recipe) -> None:
    """Refuse a folder of anything before a start, not after it."""
    from torpor.snapshots.before_capture.outside_files import model_files  # noqa: PLC0415 - only where a snapshot is written

    for _ in model_files(deployment, recipe):
        pass


@contextlib.contextmanager
def stops_on_failure(boot: Boot) -> Iterator[None]:
    """End the engine on any exception, Ctrl-C between two stages included."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, DrainTimeoutError):
            boot.stop()
        raise


def check_gpu(deployment: Deployment) -> None:
    """Make sure that this machine has the GPU that the deployment names.

    Raises:
        ConfigurationError: it has not; the message says what was seen.
    """
    if deployment.gpu is None:
        return
    wanted = gpu_model(deployment.gpu)
    seen = _gpu_names()
    fitting = [name for name in seen if is_this_gpu(wanted, name)]
    if len(fitting) < deployment.gpu_count:
        raise ConfigurationError(
            f"Deployment {deployment.name!r} needs {deployment.gpu_count} x {wanted}; this machine has "
            f"{', '.join(seen) or 'no NVIDIA GPU (neither NVML nor nvidia-smi lists one)'}. Run it on a machine with that GPU "
            "or on Modal (`modal deploy`), or set Deployment.gpu to what is here (None for an engine on the CPU, as in "
            "apps/tiny_cpu.py)."
        )


def missing_packages(deployment: Deployment, recipe: Recipe) -> dict[str, str]:
    """Packages that the recipe wants and this machine lacks, with the plugin that wants each.

    Python packages are looked up in the engine's own interpreter, Debian packages by dpkg where there is one that answers.
    Nothing is installed: on this platform the machine is its owner's.

    Raises:
        ConfigurationError: the interpreter does not answer.
    """
    missing: dict[str, str] = {}
    wanted = {
        requirement_name(line): recipe.origins.get(f"pip:{requirement_name(line)}", "?") for line in recipe.image.pip
    }
    if wanted:
        here = _installed(deployment.engine.engine_python)
        missing |= {f"pip:{name}": plugin for name, plugin in wanted.items() if name not in here}
    if recipe.image.apt and shutil.which("dpkg-query"):
        for name in recipe.image.apt:
            try:
                found = run_child(["dpkg-query", "-W", name], timeout_s=_QUERY_TIMEOUT_S)
            except (OSError, subprocess.SubprocessError) as error:
                log("warning", "debian_packages_unknown", package=name, reason=plain(str(error)))
                break
            if found.returncode != 0:
                missing[f"apt:{name}"] = recipe.origins.get(f"apt:{name}", "?")
    return missing


def _installed(python: str) -> set[str]:
    code = "import importlib.metadata as m; print(*{d.name for d in m.distributions() if d.name}, sep='\\n')"
    try:
        listed = run_child([python, "-c", code], timeout_s=_QUERY_TIMEOUT_S)
        listed.check_returncode()
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"The engine's interpreter {python!r} cannot be asked for its packages: {error}."
        ) from error
    return {requirement_name(line) for line in listed.stdout.decode(errors="replace").split()}


def _gpu_names() -> list[str]:
    from torpor.snapshots.gpu.driver import look  # noqa: PLC0415 - only a deployment with a GPU asks

    return [gpu.name for gpu in look().gpus]
