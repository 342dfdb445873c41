"""Spawned processes end with the launcher from their first moment on."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from torpor_sglang.patches import Patch

__all__ = ["PATCH", "end_with"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PARENT_VARIABLE = "TORPOR_PARENT_PID"  # set by each process for those that it spawns


def end_with(parent_pid: int) -> None:
    """Have this process end with its parent; at once, if that has ended already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)


def _is_linux() -> bool:
    return sys.platform == "linux"


def _end_with_parent() -> None:
    # multiprocessing.parent_process() is still None while a spawned process imports the main module again.
    if "--multiprocessing-fork" in sys.orig_argv:
        end_with(int(os.environ.get(_PARENT_VARIABLE, "0")))
    _name_parent()
    os.register_at_fork(after_in_child=_name_parent)


def _name_parent() -> None:
    os.environ[_PARENT_VARIABLE] = str(os.getpid())


PATCH = Patch(
    name="orphans",
    reason=(
        "SGLang asks for the signal that ends a child with its parent only after about ten seconds of imports; until "
        "then a killed launcher would leave its scheduler behind"
    ),
    versions=("0.5.6.post2", "0.5.16", "0.5.23"),
    applies=_is_linux,
    apply=_end_with_parent,
)
