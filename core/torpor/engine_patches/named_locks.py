"""Locks between processes that keep their names as long as anybody holds them."""

from __future__ import annotations

from torpor.engine_patches.patches import Patch

__all__ = ["named_locks"]


def _always() -> bool:
    return True


def _keep_names() -> None:
    """Leave the unlinking of a semaphore to Python's resource tracker, which does it when the processes have ended."""
    from multiprocessing.synchronize import SemLock  # noqa: PLC0415 - 6 ms of a restore

    SemLock._cleanup = staticmethod(lambda _name: None)  # type: ignore[attr-defined]  # noqa: SLF001 - CPython 3.11 to 3.13


def named_locks(versions: tuple[str, ...]) -> Patch:
    """Return the patch, for an engine's versions with which it was tested."""
    return Patch(
        name="named-locks",
        reason=(
            "a process makes a lock, hands it to its workers and forgets it, upon which Python unlinks the semaphore in /dev/shm; "
            "CRIU cannot dump the workers' mapping of it then without root (vLLM's engine core does so)"
        ),
        versions=versions,
        applies=_always,
        apply=_keep_names,
    )
