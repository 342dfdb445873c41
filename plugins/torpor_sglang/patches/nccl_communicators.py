"""Suspends the NCCL communicators of every scheduler while SGLang's memory is released; see `torpor.launcher.NcclCommunicators`.

    release    check settings and communicators on all ranks -> SGLang's handler, kept memory -> suspend
    resume     resume -> SGLang's handler, kept memory, new random state

So nothing uses NCCL while it is suspended: SGLang's handlers and the new random state use their CPU group (gloo).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from torpor.engine_plugins import nccl_refusals
from torpor.launcher import NcclCommunicators, Patch
from torpor_sglang.patches.handlers import RELEASE, RESUME, around_handler
from torpor_sglang.several_gpus import SUSPEND_VARIABLE, seconds_for_ranks, wrong_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PATCH", "named_communicators", "refusals"]

_SHARE_OF_A_CALL = 0.4  # two of them fit into the wait of the other ranks


def named_communicators() -> dict[str, object]:
    """SGLang's PyNccl objects by the name of their group, which all ranks share (parallel_state.py of 0.5.16 to 0.5.23)."""
    state = sys.modules["sglang.srt.distributed.parallel_state"]
    groups = {name: reference() for name, reference in state._groups.items()}  # noqa: SLF001 - it has no public name
    found = {name: getattr(group, "pynccl_comm", None) for name, group in groups.items() if group is not None}
    return {name: one for name, one in found.items() if one is not None}


def refusals() -> Iterator[str]:
    """What this scheduler has otherwise than a snapshot of several GPUs needs."""
    yield from nccl_refusals(os.environ)
    yield from wrong_settings(sys.modules["sglang.srt.runtime_context"].get_server_args())


def _tell(line: str) -> None:
    print(f"torpor_sglang: {line}", file=sys.stderr, flush=True)


def _apply() -> None:
    wait_s = seconds_for_ranks(os.environ)
    ranks = NcclCommunicators(
        named=named_communicators, refusals=refusals, tell=_tell, arrival_s=wait_s, call_s=wait_s * _SHARE_OF_A_CALL
    )
    around_handler(RELEASE, before=lambda _: ranks.check(), after=lambda _: ranks.suspend())
    around_handler(RESUME, before=lambda _: ranks.resume())


PATCH = Patch(
    name="nccl-communicators",
    reason=(
        "the schedulers of an engine on several GPUs map each other's GPU memory through NCCL: a checkpoint of them succeeds, "
        "and its restore fails. NCCL can let go of that memory and take it back at the same addresses"
    ),
    versions=("0.5.16",),
    applies=lambda: SUSPEND_VARIABLE in os.environ,
    apply=_apply,
)
