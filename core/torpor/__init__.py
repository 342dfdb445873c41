"""Torpor: serve language models from engines that sleep in a memory snapshot and wake in seconds.

    build      prepare_image    what the container image holds: base, packages, env, volumes       returns values
               compile_kernels  what to compile or download once, ahead of any start               returns values
    start      launch           start the engine process; exactly one plugin does                  acts
               warmup           real requests until nothing is left to compile                     acts
               pre_snapshot     put the engine to sleep; after this nobody talks to it             acts
    -- snapshot (platform) --
    wake       post_restore     wake the engine, once per restored replica                         acts

The names below are the whole public surface; each is imported when it is first used (PEP 562), so that a container or
an engine process that needs one of them pays for one of them.
"""

from __future__ import annotations

from torpor._lazy import lazy_names
from torpor._version import __version__

TYPE_CHECKING = False  # what type checkers take for True; importing `typing` for it would be half of this import's time

if TYPE_CHECKING:
    from torpor.deployment import Deployment, Model, Scaling
    from torpor.engine.handle import Engine
    from torpor.engine.start import start_engine
    from torpor.errors import (
        BuildStepError,
        CanaryError,
        ConfigurationError,
        ConflictError,
        DrainTimeoutError,
        EngineError,
        EngineExitedError,
        EngineRequestError,
        EngineTimeoutError,
        ForeignServerError,
        GuardStateError,
        PluginError,
        PortInUseError,
        PreflightError,
        ServerUnavailableError,
        SnapshotError,
        TorporError,
    )
    from torpor.hookspecs import EnginePlugin, Plugin, hookimpl
    from torpor.lifecycle import Lifecycle
    from torpor.recipe import BuildPlan, BuildStep, Cache, ImagePatch, Preflight, Recipe
    from torpor.values.field_types import check_types
    from torpor.values.findings import Finding
    from torpor.values.modal_options import ModalOptions

__all__ = [
    "BuildPlan",
    "BuildStep",
    "BuildStepError",
    "Cache",
    "CanaryError",
    "ConfigurationError",
    "ConflictError",
    "Deployment",
    "DrainTimeoutError",
    "Engine",
    "EngineError",
    "EngineExitedError",
    "EnginePlugin",
    "EngineRequestError",
    "EngineTimeoutError",
    "Finding",
    "ForeignServerError",
    "GuardStateError",
    "ImagePatch",
    "Lifecycle",
    "ModalOptions",
    "Model",
    "Plugin",
    "PluginError",
    "PortInUseError",
    "Preflight",
    "PreflightError",
    "Recipe",
    "Scaling",
    "ServerUnavailableError",
    "SnapshotError",
    "TorporError",
    "__version__",
    "check_types",
    "hookimpl",
    "start_engine",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "torpor.deployment": ("Deployment", "Model", "Scaling"),
        "torpor.engine.handle": ("Engine",),
        "torpor.engine.start": ("start_engine",),
        "torpor.errors": (
            "BuildStepError",
            "CanaryError",
            "ConfigurationError",
            "ConflictError",
            "DrainTimeoutError",
            "EngineError",
            "EngineExitedError",
            "EngineRequestError",
            "EngineTimeoutError",
            "ForeignServerError",
            "GuardStateError",
            "PluginError",
            "PortInUseError",
            "PreflightError",
            "ServerUnavailableError",
            "SnapshotError",
            "TorporError",
        ),
        "torpor.hookspecs": ("EnginePlugin", "Plugin", "hookimpl"),
        "torpor.lifecycle": ("Lifecycle",),
        "torpor.recipe": ("BuildPlan", "BuildStep", "Cache", "ImagePatch", "Preflight", "Recipe"),
        "torpor.values.field_types": ("check_types",),
        "torpor.values.findings": ("Finding",),
        "torpor.values.modal_options": ("ModalOptions",),
    },
)
