"""What blocks a snapshot of several GPUs: the NCCL of the engine, and what Modal and the driver cannot do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.deployment import plugin_name
from torpor.engine_patches.nccl_versions import LEAST_NCCL, can_suspend, nccl_text, too_old_text
from torpor.engine_plugins.nccl_needed import image_nccl, is_for_cuda_12, nccl_cure, needs_suspend
from torpor.platforms.local.installed_nccl import installed_nccl
from torpor.platforms.modal.checks import several_gpus_refusal
from torpor.values.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.deployment import Deployment
    from torpor.recipe import Recipe

__all__ = ["found_here", "known_of_image"]


def known_of_image(deployment: Deployment, recipe: Recipe, *, on_modal: bool) -> Iterator[Finding]:
    """What the app's values alone tell: the NCCL of the engine's image, and the platform's limits.

    Args:
        deployment: what is to be captured.
        recipe: what its plugins ask for.
        on_modal: whether the image is used; a machine of one's own has an interpreter in its place.
    """
    if on_modal and (refusal := several_gpus_refusal(deployment)):
        yield Finding(
            level="error",
            what="GPUs",
            seen=refusal,
            cure="set Deployment.snapshot=False for Modal, take one GPU, or run the app on a machine of your own (`torpor up`)",
        )
    if not needs_suspend(deployment):
        return
    engine, version = deployment.engine, image_nccl(deployment, recipe)
    if version is None and is_for_cuda_12(recipe):
        yield Finding(
            level="warning",
            what="NCCL",
            seen=f"the image {recipe.image.base} is for CUDA 12, and torch's wheels for it bring an older NCCL (2.29.3 up to torch "
            f"2.14) than those for CUDA 13; a snapshot of several GPUs wants {nccl_text(LEAST_NCCL)} or newer",
            cure=nccl_cure(deployment, recipe),
        )
    elif version is not None and not can_suspend(version):
        whose = f"{plugin_name(engine)} {engine.engine_version} brings it"
        here = (
            "" if on_modal else "; on a machine of your own its environment decides: `torpor doctor APP` reads it there"
        )
        yield Finding(
            level="error" if on_modal else "warning",
            what="NCCL",
            seen=f"{too_old_text(version)} ({whose}{here})",
            cure=nccl_cure(deployment, recipe),
        )


def found_here(deployment: Deployment, recipe: Recipe) -> Iterator[Finding]:
    """The NCCL that the engine's interpreter on this machine would load.

    Args:
        deployment: what is to be captured.
        recipe: with the paths of this machine.
    """
    if not needs_suspend(deployment):
        return
    found = installed_nccl(deployment.engine.engine_python, recipe)
    if found.version is None:
        yield Finding(
            level="warning",
            what="NCCL",
            seen=f"unknown: {found.against}. A snapshot of several GPUs wants {nccl_text(LEAST_NCCL)} or newer",
            cure="install the engine for the interpreter that the plugin names (`python`), and ask again",
        )
    elif can_suspend(found.version):
        yield Finding(
            level="ok",
            what="NCCL",
            seen=f"{nccl_text(found.version)}, which can suspend its communicators: {found.file}",
        )
    else:
        seen = f"{too_old_text(found.version)}: {found.file}"
        yield Finding(level="error", what="NCCL", seen=seen, cure=nccl_cure(deployment, recipe))
