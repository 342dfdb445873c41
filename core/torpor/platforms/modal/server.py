"""Modal: a deployment as a container image, the options of a class, and the class that carries the lifecycle.

    app = modal.App(deployment.name)

    @app.cls(**cls_options(deployment))
    @modal.concurrent(**concurrency(deployment))
    class Server(SnapshotServer, deployment=deployment):
        ...

Everything here gives the same values on the laptop and in the container that imports the app: Modal matches the objects
of the two by their order. Facts about the client are of version 1.6.4, seen by running it.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import secrets
import signal
import sys
import threading
import time
from dataclasses import replace
from inspect import getattr_static
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypedDict

import modal
from modal.partial_function import PartialFunction

from torpor.build_steps.command import run_step, runner_file, script_file
from torpor.deployment import Deployment
from torpor.errors import ConfigurationError
from torpor.lifecycle import Lifecycle
from torpor.platforms.modal.account import deployed_url, web_url
from torpor.platforms.modal.checks import check_for_modal
from torpor.platforms.modal.container import (
    PYTHON_LINK,
    RUNNER,
    filling_steps,
    is_left_out,
    python_sources,
    requirements_line,
    script_path,
    step_line,
)
from torpor.platforms.modal.log import AFTER_SNAPSHOT
from torpor.telemetry.events import LOG_FORMAT_VARIABLE, log
from torpor.values.addresses import EVERYWHERE
from torpor.values.modal_options import ModalOptions
from torpor.values.start_limits import modal_start_limit_s, stage_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import PurePosixPath
    from types import FrameType

    from torpor.recipe import Recipe
    from torpor.runtime.boot import Boot

__all__ = [
    "ClsOptions",
    "Concurrency",
    "DownloadOptions",
    "ModalOptions",
    "SnapshotServer",
    "cls_options",
    "concurrency",
    "deployed_url",
    "download_options",
    "fill_volumes",
    "image",
    "web_url",
]

_MAX_SCALEDOWN_S = 3600
_MIN_TIMEOUT_S, _MAX_TIMEOUT_S = 10, 86_400  # https://modal.com/docs/guide/timeouts
_CONTAINER_ENDS_S = 20.0
_MODULE_LEVEL = "<module>"
_CONTAINER_VARIABLE = "MODAL_TASK_ID"  # another one after a restore; client 1.6.4, seen by running it

Volumes = dict["str | PurePosixPath", "modal.Volume | modal.CloudBucketMount"]


class ClsOptions(TypedDict):
    """Keyword arguments of `app.cls`.

    What is not here can be added: `@app.cls(**{**cls_options(deployment), "block_network": True})`.
    """

    image: modal.Image
    gpu: str | None
    volumes: Volumes
    timeout: int
    startup_timeout: int
    enable_memory_snapshot: bool
    experimental_options: dict[str, bool]
    min_containers: int
    max_containers: int | None
    buffer_containers: int
    scaledown_window: int
    region: str | None
    cloud: str | None
    routing_region: str | None
    nonpreemptible: bool
    cpu: float | None
    memory: int | None
    ephemeral_disk: int | None
    secrets: list[modal.Secret]


class Concurrency(TypedDict):
    """Keyword arguments of `modal.concurrent`, in requests."""

    target_inputs: int
    max_inputs: int


class DownloadOptions(TypedDict):
    """Keyword arguments of `app.function` for a function that calls `fill_volumes`."""

    image: modal.Image
    volumes: Volumes
    secrets: list[modal.Secret]
    timeout: int
    retries: int


# --- the image --------------------------------------------------------------------------------------------------------

_images: dict[int, tuple[Deployment, modal.Image]] = {}


def image(deployment: Deployment) -> modal.Image:
    """The deployment's container image, layer by layer: what changes most often comes last.

    base (with a `python` where it has `python3` alone), Debian packages, Python packages, Torpor's own needs, environment,
    build-step scripts, build steps by their order; at last, mounted and not copied, the Python sources of Torpor and of
    every plugin.

    Raises:
        ConfigurationError: no plugin names a base image, a source package is not on this machine, or a build step
            cannot be written as one shell line.
    """
    if id(deployment) not in _images:  # one object for all users: two would be sent, and built, twice
        _images[id(deployment)] = (deployment, _render(deployment, Lifecycle(deployment).recipe()))
    return _images[id(deployment)][1]


def _render(deployment: Deployment, recipe: Recipe) -> modal.Image:
    if recipe.image.base is None:
        raise ConfigurationError(
            f"Deployment {deployment.name!r} has no base image: no plugin's prepare_image names one. Set the engine plugin's "
            "`image` option to a registry reference of an image that holds the engine."
        )
    # Modal's own lines come right after FROM and may call `python`, so the link comes before them.
    first = [f"RUN {PYTHON_LINK}"] if recipe.image.python_link else []
    rendered = modal.Image.from_registry(recipe.image.base, setup_dockerfile_commands=first).entrypoint([])
    if recipe.image.apt:
        rendered = rendered.apt_install(*recipe.image.apt)
    if recipe.image.pip:
        rendered = rendered.pip_install(*recipe.image.pip)
    rendered = rendered.run_commands(requirements_line())
    if recipe.env:
        rendered = rendered.env(dict(recipe.env))
    rendered = rendered.add_local_file(runner_file(), RUNNER, copy=True)
    for script in dict.fromkeys(step.script for step in recipe.steps if step.script):
        rendered = rendered.add_local_file(script_file(script), script_path(script), copy=True)
    for step in recipe.steps:
        rendered = rendered.run_commands(
            step_line(step),
            gpu=deployment.gpu if step.gpu else None,
            volumes={path: _volume(name) for path, name in {**recipe.volumes, **step.volumes}.items()},
            secrets=[modal.Secret.from_name(name) for name in step.secrets],
            env=dict(step.env),
        )
    for package in python_sources(deployment, recipe):
        rendered = rendered.add_local_python_source(package, ignore=functools.partial(is_left_out, package))
    return rendered


_volumes: dict[str, modal.Volume] = {}


def _volume(name: str) -> modal.Volume:
    if name not in _volumes:
        _volumes[name] = modal.Volume.from_name(name, create_if_missing=True)
    return _volumes[name]


_read_only: dict[str, modal.Volume] = {}


def _serving_volume(name: str, options: ModalOptions) -> modal.Volume:
    """A volume as the serving container mounts it: nobody there writes to the weights, neither a fault nor an intruder."""
    if name in options.writable_volumes:
        return _volume(name)
    if name not in _read_only:
        _read_only[name] = _volume(name).with_mount_options(read_only=True)
    return _read_only[name]


def _options_of(deployment: Deployment) -> ModalOptions:
    return deployment.modal or ModalOptions()


# --- options of the class and of the download function ----------------------------------------------------------------


def cls_options(deployment: Deployment) -> ClsOptions:
    """Keyword arguments of `app.cls` for a `SnapshotServer`.

    Modal counts the enter methods against `startup_timeout`; a GPU snapshot is an experimental option that a typing
    error would switch off in silence. Volumes are mounted read-only: build steps and the download function fill them.

    Raises:
        ConfigurationError: see `image`; Modal does not allow the value of a field; or a plugin's check finds an error.
    """
    scaling = deployment.scaling
    if scaling.scaledown_window_s > _MAX_SCALEDOWN_S:
        raise ConfigurationError(
            f"Scaling.scaledown_window_s is {scaling.scaledown_window_s} seconds; Modal allows 2 to {_MAX_SCALEDOWN_S}."
        )
    check_for_modal(deployment)
    recipe, options = Lifecycle(deployment).recipe(), _options_of(deployment)
    _check_writable(options, recipe)
    return ClsOptions(
        image=image(deployment),
        gpu=deployment.gpu,
        volumes={path: _serving_volume(name, options) for path, name in recipe.volumes.items()},
        timeout=_within_modals(deployment.startup_timeout_s, "Deployment.startup_timeout_s is"),
        startup_timeout=start_limit_s(deployment, recipe),
        enable_memory_snapshot=deployment.snapshot,
        experimental_options={"enable_gpu_snapshot": True} if deployment.gpu_snapshot else {},
        min_containers=scaling.min_containers,
        max_containers=scaling.max_containers,
        buffer_containers=scaling.buffer_containers,
        scaledown_window=scaling.scaledown_window_s,
        region=deployment.region,
        cloud=options.cloud,
        routing_region=options.routing_region,
        nonpreemptible=options.nonpreemptible,
        cpu=options.cpu,
        memory=options.memory_mib,
        ephemeral_disk=options.ephemeral_disk_mib,
        secrets=[modal.Secret.from_name(name) for name in options.secrets],
    )


def _check_writable(options: ModalOptions, recipe: Recipe) -> None:
    mounted = tuple(recipe.volumes.values())
    if unknown := [name for name in options.writable_volumes if name not in mounted]:
        raise ConfigurationError(
            f"ModalOptions.writable_volumes names {unknown[0]!r}, which the serving container does not mount; it mounts "
            f"{', '.join(map(repr, mounted)) or 'no volume'}."
        )


def start_limit_s(deployment: Deployment, recipe: Recipe) -> int:
    """Seconds that Modal gives the enter methods; see `torpor.values.start_limits`.

    Raises:
        ConfigurationError: Modal does not allow as many.
    """
    limits = ", ".join(f"{stage} {seconds:g}" for stage, seconds in stage_limits(deployment, recipe).items())
    return _within_modals(
        modal_start_limit_s(deployment, recipe), f"The time-outs of the stages of a start ({limits}) add up to"
    )


def _within_modals(seconds: float, what: str) -> int:
    if seconds > _MAX_TIMEOUT_S:
        raise ConfigurationError(
            f"{what} {seconds:g} seconds; Modal allows {_MAX_TIMEOUT_S} (24 hours). Lower the deployment's time-outs."
        )
    return max(math.ceil(seconds), _MIN_TIMEOUT_S)


def concurrency(deployment: Deployment) -> Concurrency:
    """Keyword arguments of `modal.concurrent`, which goes on the class under `app.cls`."""
    scaling = deployment.scaling
    return Concurrency(target_inputs=scaling.target_concurrency, max_inputs=scaling.max_concurrency)


def download_options(deployment: Deployment) -> DownloadOptions:
    """Keyword arguments of `app.function` for a function that calls `fill_volumes(deployment)`.

    Raises:
        ConfigurationError: see `image`; or there is no build step to run again.
    """
    recipe = Lifecycle(deployment).recipe()
    steps = filling_steps(deployment, recipe)
    return DownloadOptions(
        image=image(deployment),
        volumes={path: _volume(name) for path, name in recipe.volumes.items()},
        secrets=[
            modal.Secret.from_name(name) for name in dict.fromkeys(name for step in steps for name in step.secrets)
        ],
        timeout=math.ceil(sum(step.timeout_s * (step.retries + 1) for step in steps)),
        retries=_options_of(deployment).retries,
    )


def fill_volumes(deployment: Deployment) -> None:
    """Run, in a container, the build steps that fill the serving volumes, and commit the volumes.

    The cure for a Volume that was emptied while the image stayed cached: Modal skips a build step whose image layer it
    has, whatever became of the Volume that the step wrote to.

    Raises:
        BuildStepError: a step failed; its output stands in the container's log.
    """
    recipe = Lifecycle(deployment).recipe()
    for step in filling_steps(deployment, recipe):
        run_step(step, recipe)
        for name in step.volumes.values():
            _volume(name).commit()


# --- the class --------------------------------------------------------------------------------------------------------


class SnapshotServer:
    """Base of the app's Modal class: cold start and sleep, the snapshot, wake, serve.

        @app.cls(**cls_options(deployment))
        @modal.concurrent(**concurrency(deployment))
        class Server(SnapshotServer, deployment=deployment):
            ...

    Modal finds its methods by markers on them, which the class statement puts there: `start` runs before the snapshot,
    `wake` after it and after every restore, then `serve` tells Modal the port, `stop` runs at the end. What Modal would
    take without a word and get wrong in the container is refused by the class statement.

    A replica that does not wake starts cold in the same container (`Deployment.cold_start_on_failed_wake`): Modal calls a
    snapshot restored as soon as the process runs, and would restore the same one for ever. An engine that ends while it
    serves ends its container, and Modal starts another one.

    Attributes:
        deployment: what to serve.

    Raises:
        ConfigurationError: in the class statement, for a class that could be deployed and would not work.
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
        from torpor.engine.process import LOG_VARIABLE  # noqa: PLC0415
        from torpor.runtime.boot import Boot  # noqa: PLC0415 - httpx and structlog: time that `torpor plan` need not pay
        from torpor.runtime.captured_secrets import check_environments  # noqa: PLC0415

        _make_importable()
        if not modal.is_local():  # `torpor boots` reads it
            os.environ.setdefault(LOG_FORMAT_VARIABLE, "json")
        os.environ.setdefault(LOG_VARIABLE, "-")  # the engine's output belongs into the container's log
        self._boot = Boot(in_container(self.deployment))
        if (
            self.deployment.snapshot
        ):  # now, not after minutes of a start; `Boot.sleep` looks again, at the engine's tree
            arguments = (*getattr(self.deployment.engine, "extra_args", ()), *self._boot.recipe.engine_args)
            check_environments(self.deployment, [{**os.environ, **self._boot.recipe.env}], command_lines=[arguments])
        with _ended_on_failure(self._boot):
            self._boot.cold_start()
            if self.deployment.snapshot:
                self._boot.sleep()
                self._captured = (os.environ.get(_CONTAINER_VARIABLE, ""), time.time())
            else:
                self._boot.serve()
                self._watch(self._boot)

    def wake(self) -> None:
        """Wake the engine, in the container that took the snapshot and in every restored one; a failed wake starts it cold.

        A half-woken engine is not woken again: a second resume ends SGLang. `Boot.wake` itself tries twice where the engine
        saw nothing of the first call.

        Raises:
            TorporError: the wake failed and the deployment wants no cold start then, or that failed, too.
        """
        if self._boot is None:
            raise ConfigurationError(f"{type(self).__name__}.wake ran without start; Modal calls it after start.")
        if self.deployment.snapshot:
            try:
                with _ended_on_failure(self._boot):
                    self._boot.wake(new_replica_id=self._tell_where(self._boot))
            except Exception as error:
                if not self.deployment.cold_start_on_failed_wake:
                    raise
                self._start_cold(self._boot, error)
            self._watch(self._boot)

    def _start_cold(self, failed: Boot, error: Exception) -> None:
        """Serve all the same after a wake that failed; nothing inside a container can take its snapshot away from Modal."""
        from torpor.runtime.boot import Boot  # noqa: PLC0415 - as in `start`
        from torpor.runtime.supervision import WAKE_FAILED  # noqa: PLC0415

        log(
            "error",
            "wake_failed_starting_cold",
            replica_id=failed.running_engine.replica_id,
            error=f"{type(error).__name__}: {error}",
            next_step="Every replica of this snapshot may pay this: deploy again (`modal deploy`), and Modal takes a new one.",
        )
        self._boot = Boot(
            in_container(self.deployment),
            recipe=failed.recipe,
            report=failed.report,
            restarts=1,
            reason=WAKE_FAILED,
        )
        with _ended_on_failure(self._boot):
            self._boot.cold_start()
            self._boot.serve()

    def _watch(self, boot: Boot) -> None:
        """Have the container end with its engine: behind a dead port it would stay until the next request fails on it."""
        from torpor.runtime.supervision import watch_engine  # noqa: PLC0415

        stopping = self._stopping = threading.Event()
        watch_engine(
            boot.running_engine,
            name=self.deployment.name,
            stopping=stopping,
            on_end=lambda: _end_container(stopping),
        )

    def _tell_where(self, boot: Boot) -> str | None:
        """Log this replica's own word for what its start is, for `torpor boots`; a new replica id for a copy.

        A copy wakes in another container than the one that went to sleep. Copies of one snapshot need names of their own:
        whoever counts replicas has nothing else.
        """
        here = os.environ.get(_CONTAINER_VARIABLE, "")
        there, captured_at = self._captured or ("", 0.0)
        copy = here != there
        old = boot.running_engine.replica_id
        new = secrets.token_hex(8) if copy else None
        log(
            "info",
            AFTER_SNAPSHOT,
            copy=copy,
            replica_id=new or old,
            captured_replica_id=old,
            captured_at=round(captured_at, 3),
            captured_in=there,
            restored_in=here,
            restore_count=boot.restore_count + 1,
        )
        return new

    def serve(self) -> None:
        """Nothing to do: the engine listens, and Modal sends requests to its port."""

    def stop(self) -> None:
        """End the engine's whole process tree."""
        if self._stopping is not None:
            self._stopping.set()
        if self._boot is not None:
            self._boot.stop()


def in_container(deployment: Deployment) -> Deployment:
    """The deployment as it is started in a container: Modal's proxy comes from outside, on the container's network card."""
    return replace(deployment, host=EVERYWHERE)


def _markers(deployment: Deployment) -> dict[str, Callable[[Callable[[SnapshotServer], None]], object]]:
    options = _options_of(deployment)
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


@contextlib.contextmanager
def _ended_on_failure(boot: Boot) -> Iterator[None]:
    """End the engine on any exception.

    Modal runs no exit method after a failed enter method, and its process ends with exit code 0 while the engine's
    processes live on.
    """
    try:
        yield
    except BaseException:
        boot.stop()
        raise


def _end_container(stopping: threading.Event) -> None:
    """Ask Modal to send no more requests and end this container; end it ourselves where that leads nowhere in time.

    The call is the one by which Modal's own proxy ends a container whose port is dead (`modal._runtime.asgi`, client 1.6.4).
    The kill switch that it brings about, and SIGINT, run the exit method, which sets `stopping`.
    """
    from modal.experimental import stop_fetching_inputs  # noqa: PLC0415 - for the container alone

    try:
        stop_fetching_inputs()
    except Exception as error:
        log("error", "container_not_stopped_by_modal", error=f"{type(error).__name__}: {error}")
    else:
        if stopping.wait(_CONTAINER_ENDS_S):
            return
    os.kill(os.getpid(), signal.SIGINT)
    if not stopping.wait(_CONTAINER_ENDS_S):
        os._exit(1)


def _make_importable() -> None:
    """Let the engine's process import Torpor and the plugins too: they lie side by side in the container."""
    folder = str(Path(__file__).parents[3])
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, known), folder])


def _check_class(cls: type[SnapshotServer], frame: FrameType | None) -> None:
    name = cls.__name__
    if not isinstance(getattr(cls, "deployment", None), Deployment):
        raise ConfigurationError(f"Class {name} has no deployment: write class {name}(SnapshotServer, deployment=...).")
    for method, marker in {"start": "enter", "wake": "enter", "serve": "web_server", "stop": "exit"}.items():
        own = getattr_static(cls, method)
        if own is not vars(SnapshotServer)[method] and not isinstance(own, PartialFunction):
            raise ConfigurationError(
                f"{name}.{method} overrides SnapshotServer.{method} without a decorator; Modal would run the base's method "
                f"and never this one. Rename it, or decorate it with @modal.{marker}(...) and call super().{method}()."
            )
    if cls.__init__ is not object.__init__:
        raise ConfigurationError(
            f"{name} has an __init__, its own or an inherited one; Modal makes the object itself and refuses that. Put options "
            "into the deployment, and work into a plugin's hooks."
        )
    while frame is not None and frame.f_code.co_name in ("__init_subclass__", "__new__"):  # a metaclass has a __new__
        frame = frame.f_back
    here = None if frame is None else (frame.f_globals.get("__name__"), frame.f_code)
    if here is None or here[0] != cls.__module__ or here[1].co_name != _MODULE_LEVEL or name not in here[1].co_names:
        raise ConfigurationError(
            f"{name} (module {cls.__module__!r}) is not made by a class statement at the top level of its module. The container "
            f"imports that module and looks for {name!r} there, and would not find it. Write `class {name}(SnapshotServer, "
            "deployment=deployment)` in the app file itself."
        )
