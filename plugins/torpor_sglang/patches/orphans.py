"""Spawned processes end with the launcher from their first moment on."""

from __future__ import annotations

import ctypes
import signal
import sys

from torpor_sglang.patches import Patch

__all__ = ["PATCH"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _is_spawned_child() -> bool:
    # multiprocessing.parent_process() is still None while the main module is imported again.
    return sys.platform == "linux" and "--multiprocessing-fork" in sys.orig_argv


def _end_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


PATCH = Patch(
    name="orphans",
    reason=(
        "SGLang asks for the signal that ends a child with its parent only after about ten seconds of imports; until "
        "then a killed launcher would leave its scheduler behind"
    ),
    versions=("0.5.6.post2", "0.5.16", "0.5.23"),
    applies=_is_spawned_child,
    apply=_end_with_parent,
)
