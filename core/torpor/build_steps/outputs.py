"""Whether a build step has to run, or its outputs are complete.

A step that was killed leaves files that look like a result. So a step is noted on the disk when it begins, and the note is
emptied when it succeeds. The note is locked meanwhile: a second process waits and then finds the result.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import BuildStepError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torpor.recipe import BuildStep

__all__ = ["making"]

_LOCK_POLL_S = 0.1
_OTHERS_END_S = 60.0
"""Seconds that another process gets in addition to its step's time limits: to end processes, and to be slow."""


@contextlib.contextmanager
def making(step: BuildStep, notes: Path) -> Iterator[bool]:
    """Whether the step has to run. Run it inside the block.

    A step without outputs always runs. So does one with a cache: its runner keeps a note of its own.

    Args:
        step: relocated, so that its outputs are paths of this machine.
        notes: folder of the notes; processes that make the same outputs have to share it.

    Raises:
        BuildStepError: no note can be written.
    """
    if not step.outputs or step.cache is not None:
        yield True
        return
    deadline = time.monotonic() + step.timeout_s * (step.retries + 1) + _OTHERS_END_S
    with contextlib.ExitStack() as stack:
        try:
            note = stack.enter_context(_locked(notes / _key(step.outputs), step, deadline))
            needed = os.fstat(note).st_size > 0 or not all(_filled(Path(path)) for path in step.outputs)
            if needed:
                _write(note, f"{step.name}\n" + "\n".join(step.outputs))
        except OSError as error:
            raise BuildStepError(
                f"Build step {step.name!r} was not begun: no note of it can be made in {notes} ({error.strerror}), and without "
                "one a half-made result could be taken for a whole one. Free some room there, or choose another TORPOR_CACHE."
            ) from error
        yield needed
        _write(note, "")


@contextlib.contextmanager
def _locked(file: Path, step: BuildStep, deadline: float) -> Iterator[int]:
    """A locked note's descriptor. It is checked to be a regular file, not a link or a pipe.

    Raises:
        OSError: it cannot be created.
        BuildStepError: another process had it until the deadline.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    note = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(note).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(file))
        while not _lock(note):  # the kernel releases the lock, however this process ends
            if time.monotonic() > deadline:
                raise BuildStepError(
                    f"Build step {step.name!r} was not begun: another process is still at it, longer than all its attempts may "
                    f"take. Wait for that process or end it (it holds {file})."
                )
            time.sleep(_LOCK_POLL_S)
        yield note
    finally:
        os.close(note)


def _lock(note: int) -> bool:
    try:
        fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(note: int, text: str) -> None:
    os.ftruncate(note, 0)
    os.pwrite(note, text.encode(), 0)


def _key(outputs: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(sorted(outputs)).encode()).hexdigest()[:32]


def _filled(path: Path) -> bool:
    """Whether a file has content, or a folder has a file with content."""
    if path.is_dir():
        return any(file.is_file() and file.stat().st_size > 0 for file in path.rglob("*"))
    return path.is_file() and path.stat().st_size > 0
