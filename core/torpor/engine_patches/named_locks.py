"""Locks between processes keep their names while any process holds them."""

from __future__ import annotations

from torpor.engine_patches.patches import Patch

__all__ = ["named_locks"]


def _always() -> bool:
    return True


def _keep_names() -> None:
    """Leave unlinking a semaphore to Python's resource tracker, which does it after the processes have ended."""
    from multiprocessing.synchronize import SemLock  # noqa: PLC0415 - multiprocessing: 5 ms of each spawned process

    SemLock._cleanup = staticmethod(lambda _name: None)  # type: ignore[attr-defined]  # noqa: SLF001 - CPython 3.11 to 3.13


def named_locks(versions: tuple[str, ...]) -> Patch:
    """Return the patch; `versions` are those of the engine with which it was tested."""
    return Patch(
        name="named-locks",
        reason=(
            "Python unlinks a lock's semaphore in /dev/shm when the process that made it drops it, even if workers still map it "
            "(vLLM's engine core does so); without root CRIU cannot dump that mapping"
        ),
        versions=versions,
        applies=_always,
        apply=_keep_names,
    )
