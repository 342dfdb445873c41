"""`SnapshotServer`: the base of an app's Modal class, which runs the lifecycle of a deployment.

Facts about the client are of version 1.6.4, seen by running it.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
import time
from dataclasses import replace
from inspect import getattr_static
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import modal
import modal.experimental
from modal.partial_function import PartialFunction

from torpor import runtime
from torpor.deployment import Deployment
from torpor.engine.failure import stops_on_failure
from torpor.engine.logs import LOG_VARIABLE
from torpor.errors import ConfigurationError
from torpor.platforms.modal.checks import check_for_modal
from torpor.platforms.modal.gpus import container_gpus
from torpor.platforms.modal.log_lines import AFTER_SNAPSHOT
from torpor.runtime.supervision import WAKE_FAILED, watch_engine
from torpor.telemetry.events import LOG_FORMAT_VARIABLE, log
from torpor.values.addresses import EVERYWHERE
from torpor.values.modal_options import ModalOptions

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from torpor.runtime.boot import Boot

__all__ = ["SnapshotServer"]

_CONTAINER_ENDS_S = 20.0
_MODULE_LEVEL = "<module>"
_CONTAINER_VARIABLE = "MODAL_TASK_ID"  # changes with a restore; client 1.6.4, seen by running it


class SnapshotServer:
    """Base of the app's Modal class: cold start and sleep, the snapshot, wake, serve.

        @app.cls(**cls_options(deployment))
        @modal.concurrent(**concurrency(deployment))
        class Server(SnapshotServer, deployment=deployment):
            ...

    Modal finds its methods by markers, which the class statement puts on them. `start` runs before the snapshot, `wake`
    after it and after every restore. Then `serve` tells Modal the port, and `stop` runs at the end. The class statement
    refuses what Modal would accept silently and what would then fail in the container.

    A replica that does not wake starts cold in the same container (`Deployment.cold_start_on_failed_wake`). Otherwise Modal
    would restore the same snapshot again and again: it counts a restore as done as soon as the process runs. When an engine
    ends while it serves, its container ends too, and Modal starts another one.

    Attributes:
        deployment: what to serve.

    Raises:
        ConfigurationError: in the class statement, for a class that can be deployed but would not work.
    """

    deployment: ClassVar[Deployment]
    _marked: ClassVar[dict[str, object]] = {}
    _boot: Boot | None = None
    _captured: tuple[str, float] | None = None  # container and Unix time
    _stopping: threading.Event | None = None  # of the thread that watches the serving engine

    def __init_subclass__(cls, *, deployment: Deployment | None = None) -> None:
        super().__init_subclass__()
        if deployment is not None:
            cls.deployment = deployment
        _check_class(cls, sys._getframe(1))  # noqa: SLF001 - the frame that runs the class statement
        check_for_modal(cls.deployment)
        cls._marked = dict(cls._marked)
        for name, marker in _markers(cls.deployment).items():
            if getattr_static(cls, name) in (vars(SnapshotServer)[name], cls._marked.get(name)):
                cls._marked[name] = marker(vars(SnapshotServer)[name])
                setattr(cls, name, cls._marked[name])

    def start(self) -> None:
        """Start the engine cold and warm it up, then put it to sleep for the snapshot.

        Raises:
            SnapshotError: a secret would be in the snapshot (see `Deployment.secrets_in_snapshot`).
            TorporError: the start failed; the engine was ended.
        """
        _set_environment()
        boot = self._boot = _new_boot(in_container(self.deployment))
        if self.deployment.snapshot:
            _check_secrets(boot)
        # After a failed enter method Modal runs no exit method. Its process ends with exit code 0, and the engine would live on.
        with stops_on_failure(boot.stop):
            boot.cold_start()
            if self.deployment.snapshot:
                boot.sleep()
                self._captured = (os.environ.get(_CONTAINER_VARIABLE, ""), time.time())
            else:
                boot.serve()
                self._watch(boot)

    def wake(self) -> None:
        """Wake the engine, in the container that took the snapshot and in every restored one; a failed wake starts it cold.

        A half-woken engine is not woken again: a second resume ends SGLang. `Boot.wake` itself tries twice if the engine
        did not see the first call.

        Raises:
            TorporError: the wake failed, and the deployment forbids a cold start then, or the cold start failed too.
        """
        if self._boot is None:
            raise ConfigurationError(f"{type(self).__name__}.wake ran without start; Modal calls it after start.")
        if self.deployment.snapshot:
            try:
                with stops_on_failure(self._boot.stop):
                    _find_gpus_meanwhile(self._boot)
                    self._boot.wake(new_replica_id=self._log_kind_of_start(self._boot))
            except Exception as error:
                if not self.deployment.cold_start_on_failed_wake:
                    raise
                self._start_cold(self._boot, error)
            self._watch(self._boot)

    def serve(self) -> None:
        """Nothing to do: the engine listens, and Modal sends requests to its port."""

    def stop(self) -> None:
        """End the engine's whole process tree."""
        if self._stopping is not None:
            self._stopping.set()
        if self._boot is not None:
            self._boot.stop()

    def _start_cold(self, failed: Boot, error: Exception) -> None:
        """Serve after a failed wake. No call inside a container makes Modal drop the container's snapshot."""
        log(
            "error",
            "wake_failed_starting_cold",
            replica_id=failed.running_engine.replica_id,
            error=f"{type(error).__name__}: {error}",
            next_step="Other replicas of this snapshot may fail too: deploy again (`modal deploy`), and Modal takes a new one.",
        )
        boot = self._boot = _new_boot(in_container(self.deployment), failed=failed)
        with stops_on_failure(boot.stop):
            boot.cold_start()
            boot.serve()

    def _watch(self, boot: Boot) -> None:
        """End the container together with its engine. Otherwise it stays, with a dead port, until the next request fails."""
        stopping = self._stopping = threading.Event()
        watch_engine(
            boot.running_engine,
            name=self.deployment.name,
            stopping=stopping,
            on_end=lambda: _end_container(stopping),
        )

    def _log_kind_of_start(self, boot: Boot) -> str | None:
        """Log for `torpor boots` whether this replica is restored or woken; return a new replica id for a restored one.

        A restored replica wakes in another container than the one that went to sleep. All replicas of one snapshot would
        share its replica id, so each gets a new one: callers tell replicas apart by it alone.
        """
        here = os.environ.get(_CONTAINER_VARIABLE, "")
        there, captured_at = self._captured or ("", 0.0)
        restored = here != there
        old = boot.running_engine.replica_id
        new = secrets.token_hex(8) if restored else None
        log(
            "info",
            AFTER_SNAPSHOT,
            restored=restored,
            replica_id=new or old,
            captured_replica_id=old,
            captured_at=round(captured_at, 3),
            captured_in=there,
            restored_in=here,
            restore_count=boot.restore_count + 1,
        )
        return new


def in_container(deployment: Deployment) -> Deployment:
    """The deployment as a container starts it: listening on all addresses, because Modal's proxy comes over the network."""
    return replace(deployment, host=EVERYWHERE)


def _set_environment() -> None:
    """Set what the engine's process and the container's log need."""
    folder = str(Path(__file__).parents[3])  # Torpor and the plugins lie side by side in it
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, known), folder])
    if not modal.is_local():
        os.environ.setdefault(LOG_FORMAT_VARIABLE, "json")  # `torpor boots` reads it
    os.environ.setdefault(LOG_VARIABLE, "-")  # the engine's output belongs into the container's log


def _new_boot(deployment: Deployment, *, failed: Boot | None = None) -> Boot:
    """A new start of the deployment; with `failed`, one that replaces a replica which did not wake."""
    if failed is None:
        boot = runtime.Boot(deployment)
    else:
        boot = runtime.Boot(
            deployment,
            lifecycle=failed.lifecycle,
            recipe=failed.recipe,
            report=failed.report,
            restarts=1,
            reason=WAKE_FAILED,
        )
    _find_gpus(boot)
    return boot


def _find_gpus(boot: Boot) -> None:
    """The GPUs of this container, if listeners are told of them."""
    if boot.lifecycle.listeners is not None and boot.deployment.gpu is not None:
        boot.places = container_gpus()


def _find_gpus_meanwhile(boot: Boot) -> None:
    """The same for a wake, which does not wait: `nvidia-smi` takes a second. Until then no event names the captured one's GPUs."""
    boot.places = ()
    threading.Thread(target=_find_gpus, args=(boot,), name="torpor-gpus", daemon=True).start()


def _check_secrets(boot: Boot) -> None:
    """Look for secrets before minutes of a cold start; `Boot.sleep` looks again, at the engine's processes."""
    from torpor.runtime.captured_secrets import check_environments  # noqa: PLC0415 - psutil: 9 ms of `torpor plan`

    arguments = (*getattr(boot.deployment.engine, "extra_args", ()), *boot.recipe.engine_args)
    check_environments(boot.deployment, [{**os.environ, **boot.recipe.env}], command_lines=[arguments])


def _markers(deployment: Deployment) -> dict[str, Callable[[Callable[[SnapshotServer], None]], object]]:
    options = deployment.modal or ModalOptions()
    return {
        "start": modal.enter(snap=deployment.snapshot),
        "wake": modal.enter(snap=False),
        "serve": modal.web_server(
            deployment.port,
            startup_timeout=deployment.startup_timeout_s,
            label=options.label,
            custom_domains=options.custom_domains or None,
            requires_proxy_auth=options.requires_proxy_auth,
        ),
        "stop": modal.exit(),
    }


def _end_container(stopping: threading.Event) -> None:
    """Ask Modal to send no more requests and to end this container; end it ourselves if Modal does not in time.

    Modal's own proxy ends a container with a dead port by the same call (`modal._runtime.asgi`, client 1.6.4). It triggers
    Modal's kill switch. That and SIGINT run the exit method, which sets `stopping`.
    """
    try:
        modal.experimental.stop_fetching_inputs()
    except Exception as error:
        log("error", "container_not_stopped_by_modal", error=f"{type(error).__name__}: {error}")
    else:
        if stopping.wait(_CONTAINER_ENDS_S):
            return
    os.kill(os.getpid(), signal.SIGINT)
    if not stopping.wait(_CONTAINER_ENDS_S):
        os._exit(1)


def _check_class(cls: type[SnapshotServer], frame: FrameType | None) -> None:
    """Refuse a class that can be deployed but would not work.

    Args:
        cls: the class.
        frame: the frame that runs its class statement.
    """
    name = cls.__name__
    if not isinstance(getattr(cls, "deployment", None), Deployment):
        raise ConfigurationError(f"Class {name} has no deployment: write class {name}(SnapshotServer, deployment=...).")
    _check_methods(cls)
    if cls.__init__ is not object.__init__:
        raise ConfigurationError(
            f"{name} has an __init__, its own or an inherited one; Modal makes the object itself and refuses that. Put options "
            "into the deployment, and work into a plugin's hooks."
        )
    if not _is_at_top_level(cls, frame):
        raise ConfigurationError(
            f"{name} (module {cls.__module__!r}) is not made by a class statement at the top level of its module. The container "
            f"imports that module and looks for {name!r} there, and would not find it. Write `class {name}(SnapshotServer, "
            "deployment=deployment)` in the app file itself."
        )


def _check_methods(cls: type[SnapshotServer]) -> None:
    for method, marker in {"start": "enter", "wake": "enter", "serve": "web_server", "stop": "exit"}.items():
        own = getattr_static(cls, method)
        if own is not vars(SnapshotServer)[method] and not isinstance(own, PartialFunction):
            raise ConfigurationError(
                f"{cls.__name__}.{method} overrides SnapshotServer.{method} without a decorator; Modal would run the base's "
                f"method and never this one. Rename it, or decorate it with @modal.{marker}(...) and call super().{method}()."
            )


def _is_at_top_level(cls: type, frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_name in ("__init_subclass__", "__new__"):  # a metaclass has a __new__
        frame = frame.f_back
    if frame is None:
        return False
    code, module = frame.f_code, frame.f_globals.get("__name__")
    return module == cls.__module__ and code.co_name == _MODULE_LEVEL and cls.__name__ in code.co_names
