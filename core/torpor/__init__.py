"""Torpor: serve language models from engines that sleep in a memory snapshot and wake in seconds.

    build      prepare_image    what the container image holds: base, packages, env, volumes       returns values
               compile_kernels  what to compile or download once, ahead of any start               returns values
    start      launch           start the engine process; exactly one plugin does                  acts
               warmup           real requests until nothing is left to compile                     acts
               pre_snapshot     put the engine to sleep; after this nobody talks to it             acts
    -- snapshot (platform) --
    wake       post_restore     wake the engine, once per restored replica                         acts

Beside the values, the errors and `Lifecycle`, plugins use:

    hooks      `hookimpl` marks a hook; `override` is `typing.override`, on Python 3.11 too
    paths      `IMAGE_ROOT` is the folder of the image that plugins fill, `VOLUME_ROOT` the folder under which volumes are mounted
    options    `check_types`, `check_seconds`, `check_retries`, `check_volume`, `secret_value` refuse what cannot work;
               `shown` is a value as errors show it
    packages   `lazy_names` makes a package import its names when they are first used
    canary     `CanaryQuestion` and `CanaryAnswer`: what a plugin has compared after each wake
    questions  `plugin_name`, `gpu_model`, and `Deployment.engine`, an `EnginePlugin`
    drafts     `Draft` is what guesses ahead of a model, by one of `DRAFT_METHODS`, a `DraftMethod`
    tasks      `Task` is what a deployment serves, `TaskRoute` where an engine is asked for it

Engine plugins also use `torpor.engine_plugins`, `torpor.guard` and `torpor.launcher`, tests `torpor.testing`, apps `torpor.client`
and `torpor.platforms.local`, `torpor.platforms.modal` or `torpor.platforms.ray`. Everything else is core's own.

Each name is imported when it is first used (PEP 562): a container or an engine's process pays only for the names that it needs.
"""

from __future__ import annotations

from torpor._lazy import lazy_names
from torpor._version import __version__

TYPE_CHECKING = False  # what type checkers take for True; importing `typing` for it would be half of this import's time

if TYPE_CHECKING:
    from torpor._override import override
    from torpor.deployment import Deployment, Model, Scaling, plugin_name
    from torpor.engine.handle import Engine
    from torpor.engine.start import start_engine
    from torpor.errors import (
        BuildStepError,
        CanaryError,
        ConfigurationError,
        ConflictError,
        CriuError,
        DamagedSnapshotError,
        DrainTimeoutError,
        EngineError,
        EngineExitedError,
        EngineRequestError,
        EngineTimeoutError,
        ForeignServerError,
        GpuSnapshotError,
        GuardStateError,
        NoRoomError,
        PluginError,
        PortInUseError,
        PreflightError,
        SecretFoundError,
        ServerUnavailableError,
        SnapshotError,
        SnapshotMisfitError,
        StoreError,
        TorporError,
        TrialWakeError,
        UntrustedSnapshotError,
    )
    from torpor.hookspecs import EnginePlugin, Plugin, hookimpl
    from torpor.lifecycle import Lifecycle
    from torpor.recipe import (
        IMAGE_ROOT,
        VOLUME_ROOT,
        BuildPlan,
        BuildStep,
        Cache,
        ImagePatch,
        Preflight,
        Recipe,
    )
    from torpor.tasks.routes import Task, TaskRoute
    from torpor.values.adapters import Adapter
    from torpor.values.canary_answers import CanaryAnswer, CanaryQuestion
    from torpor.values.checks import check_retries, check_seconds, check_volume
    from torpor.values.drafts import DRAFT_METHODS, Draft, DraftMethod
    from torpor.values.field_types import check_types, shown
    from torpor.values.findings import Finding
    from torpor.values.gpu_names import gpu_model
    from torpor.values.modal_options import ModalOptions
    from torpor.values.ray_options import RayOptions
    from torpor.values.secret_shapes import secret_value

__all__ = [
    "DRAFT_METHODS",
    "IMAGE_ROOT",
    "VOLUME_ROOT",
    "Adapter",
    "BuildPlan",
    "BuildStep",
    "BuildStepError",
    "Cache",
    "CanaryAnswer",
    "CanaryError",
    "CanaryQuestion",
    "ConfigurationError",
    "ConflictError",
    "CriuError",
    "DamagedSnapshotError",
    "Deployment",
    "Draft",
    "DraftMethod",
    "DrainTimeoutError",
    "Engine",
    "EngineError",
    "EngineExitedError",
    "EnginePlugin",
    "EngineRequestError",
    "EngineTimeoutError",
    "Finding",
    "ForeignServerError",
    "GpuSnapshotError",
    "GuardStateError",
    "ImagePatch",
    "Lifecycle",
    "ModalOptions",
    "Model",
    "NoRoomError",
    "Plugin",
    "PluginError",
    "PortInUseError",
    "Preflight",
    "PreflightError",
    "RayOptions",
    "Recipe",
    "Scaling",
    "SecretFoundError",
    "ServerUnavailableError",
    "SnapshotError",
    "SnapshotMisfitError",
    "StoreError",
    "Task",
    "TaskRoute",
    "TorporError",
    "TrialWakeError",
    "UntrustedSnapshotError",
    "__version__",
    "check_retries",
    "check_seconds",
    "check_types",
    "check_volume",
    "gpu_model",
    "hookimpl",
    "lazy_names",
    "override",
    "plugin_name",
    "secret_value",
    "shown",
    "start_engine",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor._override": ("override",),
        "torpor.deployment": (
            "Deployment",
            "Model",
            "Scaling",
            "plugin_name",
        ),
        "torpor.engine.handle": ("Engine",),
        "torpor.engine.start": ("start_engine",),
        "torpor.errors": (
            "BuildStepError",
            "CanaryError",
            "ConfigurationError",
            "ConflictError",
            "CriuError",
            "DamagedSnapshotError",
            "DrainTimeoutError",
            "EngineError",
            "EngineExitedError",
            "EngineRequestError",
            "EngineTimeoutError",
            "ForeignServerError",
            "GpuSnapshotError",
            "GuardStateError",
            "NoRoomError",
            "PluginError",
            "PortInUseError",
            "PreflightError",
            "SecretFoundError",
            "ServerUnavailableError",
            "SnapshotError",
            "SnapshotMisfitError",
            "StoreError",
            "TorporError",
            "TrialWakeError",
            "UntrustedSnapshotError",
        ),
        "torpor.hookspecs": (
            "EnginePlugin",
            "Plugin",
            "hookimpl",
        ),
        "torpor.lifecycle": ("Lifecycle",),
        "torpor.recipe": (
            "BuildPlan",
            "BuildStep",
            "Cache",
            "IMAGE_ROOT",
            "ImagePatch",
            "Preflight",
            "Recipe",
            "VOLUME_ROOT",
        ),
        "torpor.tasks.routes": ("Task", "TaskRoute"),
        "torpor.values.adapters": ("Adapter",),
        "torpor.values.canary_answers": (
            "CanaryAnswer",
            "CanaryQuestion",
        ),
        "torpor.values.checks": ("check_retries", "check_seconds", "check_volume"),
        "torpor.values.drafts": (
            "DRAFT_METHODS",
            "Draft",
            "DraftMethod",
        ),
        "torpor.values.field_types": (
            "check_types",
            "shown",
        ),
        "torpor.values.findings": ("Finding",),
        "torpor.values.gpu_names": ("gpu_model",),
        "torpor.values.modal_options": ("ModalOptions",),
        "torpor.values.ray_options": ("RayOptions",),
        "torpor.values.secret_shapes": ("secret_value",),
    },
)
