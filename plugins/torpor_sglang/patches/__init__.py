"""The patches that the launcher applies to SGLang, in order (see `torpor.launcher`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torpor.launcher import apply_patches, http_limits, orphans, process_identity, published_files, tqdm_lock
from torpor_sglang.patches import (
    classifier_bias,
    cpu_kernels,
    cpu_seconds,
    detokenizer_thread,
    finished_streams,
    forked_scheduler,
    freed_memory,
    kept_memory,
    nccl_communicators,
    public_requests,
    reseed,
    tile_permission,
    torchvision_schemas,
    watched_children,
    weight_sums,
)
from torpor_sglang.versions import SUPPORTED_VERSIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torpor.launcher import Patch, PatchReport

__all__ = ["all_patches", "apply_all"]


def all_patches() -> tuple[Patch, ...]:
    """Return all patches, in the order of their application."""
    return (
        orphans(SUPPORTED_VERSIONS),
        process_identity(SUPPORTED_VERSIONS),
        tqdm_lock(SUPPORTED_VERSIONS),
        published_files(SUPPORTED_VERSIONS),
        http_limits(SUPPORTED_VERSIONS),
        public_requests.PATCH,
        finished_streams.PATCH,
        cpu_kernels.PATCH,
        torchvision_schemas.PATCH,
        cpu_seconds.PATCH,
        classifier_bias.PATCH,
        detokenizer_thread.PATCH,
        forked_scheduler.PATCH,
        kept_memory.PATCH,
        weight_sums.PATCH,
        freed_memory.PATCH,
        tile_permission.PATCH,
        reseed.PATCH,
        watched_children.PATCH,
        nccl_communicators.PATCH,  # last: its part of a sleep comes after the others', its part of a wake before them
    )


def apply_all(environ: Mapping[str, str]) -> PatchReport:
    """Apply every patch that this process needs and that the environment does not switch off."""
    return apply_patches(environ, all_patches())
