"""Keyword arguments for Modal's decorators: of the serving class, its concurrency, and the download function."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypedDict

import modal

from torpor.build_steps.command import run_step
from torpor.errors import ConfigurationError
from torpor.lifecycle import Lifecycle
from torpor.platforms.modal.checks import check_for_modal
from torpor.platforms.modal.container_image import image, serving_volume, volume
from torpor.runtime.start_limits import modal_start_limit_s, stage_limits
from torpor.values.modal_options import ModalOptions

if TYPE_CHECKING:
    from pathlib import PurePosixPath

    from torpor.deployment import Deployment
    from torpor.recipe import BuildStep, Recipe

__all__ = [
    "ClsOptions",
    "Concurrency",
    "DownloadOptions",
    "cls_options",
    "concurrency",
    "download_options",
    "fill_volumes",
]

_MAX_SCALEDOWN_S = 3600
_MIN_TIMEOUT_S, _MAX_TIMEOUT_S = 10, 86_400  # https://modal.com/docs/guide/timeouts

Volumes = dict["str | PurePosixPath", "modal.Volume | modal.CloudBucketMount"]


class ClsOptions(TypedDict):
    """Keyword arguments of `app.cls`.

    Add what is missing here: `@app.cls(**{**cls_options(deployment), "block_network": True})`.
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


def cls_options(deployment: Deployment) -> ClsOptions:
    """Keyword arguments of `app.cls` for a `SnapshotServer`.

    Modal counts the enter methods against `startup_timeout`. A GPU snapshot is an experimental option, which a misspelt
    key would switch off silently. Volumes are mounted read-only; build steps and the download function fill them.

    Raises:
        ConfigurationError: see `image`; Modal does not allow the value of a field; or a plugin's check finds an error.
    """
    _check_scaledown(deployment)
    check_for_modal(deployment)
    recipe, options, scaling = Lifecycle(deployment).recipe(), deployment.modal or ModalOptions(), deployment.scaling
    _check_writable(options, recipe)
    return ClsOptions(
        image=image(deployment),
        gpu=deployment.gpu,
        volumes={
            path: serving_volume(name, writable=name in options.writable_volumes)
            for path, name in recipe.volumes.items()
        },
        timeout=_allowed_s(deployment.startup_timeout_s, "Deployment.startup_timeout_s is"),
        startup_timeout=_start_limit_s(deployment, recipe),
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
    steps = _filling_steps(deployment, recipe)
    return DownloadOptions(
        image=image(deployment),
        volumes={path: volume(name) for path, name in recipe.volumes.items()},
        secrets=[
            modal.Secret.from_name(name) for name in dict.fromkeys(name for step in steps for name in step.secrets)
        ],
        timeout=math.ceil(sum(step.timeout_s * (step.retries + 1) for step in steps)),
        retries=(deployment.modal or ModalOptions()).retries,
    )


def fill_volumes(deployment: Deployment) -> None:
    """Run, in a container, the build steps that fill the serving volumes, and commit the volumes.

    Use it when a volume was emptied while the image stayed cached: Modal skips a build step whose image layer it has,
    even if the volume that the step filled is empty.

    Raises:
        BuildStepError: a step failed; its output is in the container's log.
    """
    recipe = Lifecycle(deployment).recipe()
    for step in _filling_steps(deployment, recipe):
        run_step(step, recipe)
        for name in step.volumes.values():
            volume(name).commit()


def _filling_steps(deployment: Deployment, recipe: Recipe) -> tuple[BuildStep, ...]:
    """The build steps that fill volumes of the serving container; not those that only fill a compile cache.

    Raises:
        ConfigurationError: there are none.
    """
    steps = tuple(step for step in recipe.steps if step.volumes and step.volumes.items() <= recipe.volumes.items())
    if not steps:
        raise ConfigurationError(
            f"Deployment {deployment.name!r} has no build step that fills a volume of the serving class, so there is nothing to "
            "download: drop the download function, or add a plugin that downloads (torpor_hf_cache.HFCache)."
        )
    return steps


def _check_scaledown(deployment: Deployment) -> None:
    window_s = deployment.scaling.scaledown_window_s
    if window_s > _MAX_SCALEDOWN_S:
        raise ConfigurationError(
            f"Scaling.scaledown_window_s is {window_s} seconds; Modal allows 2 to {_MAX_SCALEDOWN_S}."
        )


def _check_writable(options: ModalOptions, recipe: Recipe) -> None:
    mounted = tuple(recipe.volumes.values())
    if unknown := [name for name in options.writable_volumes if name not in mounted]:
        raise ConfigurationError(
            f"ModalOptions.writable_volumes names {unknown[0]!r}, which the serving container does not mount; it mounts "
            f"{', '.join(map(repr, mounted)) or 'no volume'}."
        )


def _start_limit_s(deployment: Deployment, recipe: Recipe) -> int:
    """Seconds that Modal gives the enter methods; see `torpor.runtime.start_limits`.

    Raises:
        ConfigurationError: Modal does not allow as many.
    """
    limits = ", ".join(f"{stage} {seconds:g}" for stage, seconds in stage_limits(deployment, recipe).items())
    return _allowed_s(
        modal_start_limit_s(deployment, recipe), f"The time-outs of the stages of a start ({limits}) add up to"
    )


def _allowed_s(seconds: float, what: str) -> int:
    """Whole seconds that Modal takes as a time-out.

    Raises:
        ConfigurationError: Modal does not allow as many; the message begins with `what`.
    """
    if seconds > _MAX_TIMEOUT_S:
        raise ConfigurationError(
            f"{what} {seconds:g} seconds; Modal allows {_MAX_TIMEOUT_S} (24 hours). Lower the deployment's time-outs."
        )
    return max(math.ceil(seconds), _MIN_TIMEOUT_S)
