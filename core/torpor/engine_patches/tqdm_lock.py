"""Progress bars that leave no semaphore behind."""

from __future__ import annotations

import importlib.util
import threading

from torpor.engine_patches.patches import Patch

__all__ = ["tqdm_lock"]


def _has_tqdm() -> bool:
    return importlib.util.find_spec("tqdm") is not None


def _use_thread_lock() -> None:
    from tqdm import tqdm  # noqa: PLC0415 - only where the engine has it

    tqdm.set_lock(threading.RLock())


def tqdm_lock(versions: tuple[str, ...]) -> Patch:
    """Return the patch; `versions` are those of the engine with which it was tested."""
    return Patch(
        name="tqdm-lock",
        reason=(
            "tqdm's first bar creates a lock for several processes: an unlinked POSIX semaphore in /dev/shm, which CRIU cannot "
            "dump without root. The engine's bars need only a lock for the threads of one process"
        ),
        versions=versions,
        applies=_has_tqdm,
        apply=_use_thread_lock,
    )
