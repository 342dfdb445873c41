"""Makes the samplers' random state new when memory is resumed: every replica of a snapshot has the same state until then."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from torpor_sglang.patches import Patch
from torpor_sglang.patches.after_import import after_import

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

__all__ = ["PATCH", "reseed_on_resume"]

_METHOD = "resume_memory_occupation"
_MODULES = (
    "sglang.srt.managers.scheduler_components.weight_updater",  # 0.5.16, 0.5.23
    "sglang.srt.managers.scheduler_update_weights_mixin",  # 0.5.6.post2
)
_SEED_BYTES = 4  # numpy takes no larger seed


def reseed_on_resume(module: ModuleType) -> None:
    """Wrap the scheduler's handler of a resume, in whatever class of the module it is."""
    for kind in list(vars(module).values()):
        if isinstance(kind, type) and kind.__module__ == module.__name__ and _METHOD in vars(kind):
            setattr(kind, _METHOD, _reseeding(vars(kind)[_METHOD]))


def _reseeding(resume: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(resume)
    def resume_and_reseed(scheduler: object, request: object) -> object:
        answer = resume(scheduler, request)
        _reseed(getattr(scheduler, "tp_cpu_group", None))
        return answer

    return resume_and_reseed


def _reseed(group: object) -> None:
    """Take a new seed from the kernel; all tensor-parallel ranks the same one, because each samples for itself."""
    import torch.distributed  # noqa: PLC0415 - the engine's
    from sglang.srt.utils.common import set_random_seed  # noqa: PLC0415

    seed = [int.from_bytes(os.urandom(_SEED_BYTES), "little")]
    if group is not None and torch.distributed.is_initialized() and torch.distributed.get_world_size(group) > 1:
        source = torch.distributed.get_global_rank(group, 0)
        torch.distributed.broadcast_object_list(seed, src=source, group=group)
    set_random_seed(seed[0])


def _apply() -> None:
    for name in _MODULES:
        after_import(name, reseed_on_resume)


PATCH = Patch(
    name="reseed",
    reason=(
        "every replica of one snapshot has the same random state and would sample the same text; SGLang has no route to "
        "seed anew, so it is done when memory is resumed"
    ),
    versions=("0.5.6.post2", "0.5.16", "0.5.23"),
    applies=lambda: True,
    apply=_apply,
)
