"""Renews the samplers' random state when memory is resumed: until then every replica of a snapshot has the same state."""

from __future__ import annotations

import os

from torpor.launcher import Patch, renew_random_state
from torpor_sglang.patches.handlers import RESUME, around_handler

__all__ = ["PATCH", "reseed"]

_SEED_BYTES = 4  # numpy takes no larger seed


def reseed(scheduler: object) -> None:
    """Seed from the kernel. All tensor-parallel ranks get the same seed, because each samples for itself.

    Args:
        scheduler: SGLang's object that resumes memory; it knows its group of ranks.
    """
    import torch.distributed  # noqa: PLC0415 - the engine's
    from sglang.srt.utils.common import set_random_seed  # noqa: PLC0415

    group = getattr(scheduler, "tp_cpu_group", None)
    seed = [int.from_bytes(os.urandom(_SEED_BYTES), "little")]
    if group is not None and torch.distributed.is_initialized() and torch.distributed.get_world_size(group) > 1:
        source = torch.distributed.get_global_rank(group, 0)
        torch.distributed.broadcast_object_list(seed, src=source, group=group)
    set_random_seed(seed[0])  # for everything else that SGLang seeds on its platform
    renew_random_state(seed=seed[0])


PATCH = Patch(
    name="reseed",
    reason=(
        "every replica of one snapshot has the same random state and would sample the same text; SGLang has no route for a "
        "new seed, so the patch sets one when memory is resumed"
    ),
    versions=("0.5.6.post2", "0.5.16", "0.5.18", "0.5.23"),
    applies=lambda: True,
    apply=lambda: around_handler(RESUME, after=reseed),
)
