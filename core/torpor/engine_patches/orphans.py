"""Spawned processes end with the launcher, from the start."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from torpor.engine_patches.patches import Patch

__all__ = ["end_with", "orphans"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PARENT_VARIABLE = "TORPOR_PARENT_PID"
"""Set by each process of an engine for those that it spawns: they end with it."""


def end_with(parent_pid: int) -> None:
    """Let the kernel end this process with its parent; end it now if the parent has already ended."""
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


def orphans(versions: tuple[str, ...]) -> Patch:
    """Return the patch; `versions` are those of the engine with which it was tested."""
    return Patch(
        name="orphans",
        reason=(
            "engines request the parent-death signal only after about ten seconds of imports, or never; until then a killed "
            "launcher would leave its children behind"
        ),
        versions=versions,
        applies=_is_linux,
        apply=_end_with_parent,
    )
