"""Which deployments need an NCCL that can suspend its communicators, which one they have, and the cure for an older one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torpor.deployment import plugin_name
from torpor.engine_patches.nccl_versions import LEAST_NCCL, can_suspend, nccl_of_text, nccl_text
from torpor.engine_plugins.nccl_settings import wants_nccl_suspended
from torpor.recipe import requirement_name

if TYPE_CHECKING:
    from torpor.deployment import Deployment
    from torpor.recipe import Recipe

__all__ = ["image_nccl", "is_for_cuda_12", "nccl_cure", "needs_suspend", "pip_nccl", "replaces_nccl"]

_CUDA_12 = re.compile(r"(?:cu|cuda-?)12")
_BOUND = re.compile(r"(?:==|>=|~=)\s*([0-9.]+)")
_PACKAGES = ("nvidia-nccl-cu12", "nvidia-nccl-cu13")
_REPLACEMENT = (
    "2.30.7"  # of torch 2.14, and of SGLang's own images for CUDA 13 with torch 2.13 (sgl-project/sglang#35756)
)


def needs_suspend(deployment: Deployment) -> bool:
    """Whether several ranks of this engine talk by NCCL, and go into one snapshot."""
    cuda = bool(deployment.engine.nccl_versions)
    return cuda and wants_nccl_suspended(deployment, device="cuda", gpus=deployment.gpu_count)


def image_nccl(deployment: Deployment, recipe: Recipe) -> tuple[int, int, int] | None:
    """The NCCL that the engine's image will hold, from values alone; None where they do not say.

    The recipe's own package counts first. An image for CUDA 12 may have an older NCCL than the engine's wheels for CUDA 13.
    """
    if replaced := pip_nccl(recipe):
        return replaced
    engine = deployment.engine
    version = nccl_of_text(dict(engine.nccl_versions).get(engine.engine_version, ""))
    return None if version and can_suspend(version) and is_for_cuda_12(recipe) else version


def is_for_cuda_12(recipe: Recipe) -> bool:
    """Whether the base image's name says CUDA 12."""
    return bool(_CUDA_12.search(recipe.image.base or ""))


def replaces_nccl(line: str) -> bool:
    """Whether a line for pip names NCCL, of which torch pins an exact version."""
    return requirement_name(line) in _PACKAGES


def pip_nccl(recipe: Recipe) -> tuple[int, int, int] | None:
    """The least NCCL that the recipe has pip install; None if none.

    A line without a version changes nothing: pip leaves the package that is there.
    """
    bounds = [_BOUND.search(line) for line in recipe.image.pip if replaces_nccl(line)]
    versions = [nccl_of_text(bound[1]) for bound in bounds if bound]
    return max((version for version in versions if version), default=None)


def nccl_cure(deployment: Deployment, recipe: Recipe) -> str:
    """What to do about an NCCL that is too old."""
    engine = deployment.engine
    newer = [of for of, version in engine.nccl_versions if can_suspend(nccl_of_text(version) or (0, 0, 0))]
    package = _PACKAGES[0] if is_for_cuda_12(recipe) else _PACKAGES[1]
    by_hand = f"pip install --no-deps '{package}>={nccl_text(LEAST_NCCL)}'"
    newer_engine = f"use {plugin_name(engine)} {' or '.join(newer)}, which brings a newer one, or " if newer else ""
    return (
        f"{newer_engine}install {package}=={_REPLACEMENT} over it (ImagePatch.pip; on a machine of your own `{by_hand}` in the "
        "engine's environment), or set Deployment.gpu_snapshot=False"
    )
