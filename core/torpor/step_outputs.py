"""Whether what a build step makes is there already: whole, half-made, or being made by another process.

A step that was killed leaves files that look like a result. So it is noted on the disk when a step begins, and the note
goes when the step has succeeded. The note is locked meanwhile: a second process waits and then finds the result.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from torpor.errors import BuildStepError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    from torpor.recipe import BuildStep

__all__ = ["making"]


@contextlib.contextmanager
def making(step: BuildStep, notes: Path) -> Iterator[bool]:
    """Whether the step has to run; run it inside the block.

    A step without outputs runs each time, and so does one with a cache, whose runner keeps a note of its own.

    Args:
        step: with outputs as they are called on this machine.
        notes: folder of the notes, one for all who make the same outputs.

    Raises:
        BuildStepError: no note can be made.
    """
    if not step.outputs or step.cache is not None:
        yield True
        return
    with contextlib.ExitStack() as stack:
        try:
            note = stack.enter_context(_locked(notes / _key(step.outputs)))
            needed = bool(note.read()) or not all(_filled(Path(path)) for path in step.outputs)
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
def _locked(file: Path) -> Iterator[IO[str]]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as note:
        fcntl.flock(note, fcntl.LOCK_EX)  # let go by the kernel, however this process ends
        note.seek(0)
        yield note


def _write(note: IO[str], text: str) -> None:
    note.truncate(0)
    note.write(text)
    note.flush()


def _key(outputs: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(sorted(outputs)).encode()).hexdigest()[:32]


def _filled(path: Path) -> bool:
    """Whether a file has content, or a folder a file."""
    if path.is_dir():
        return any(file.is_file() and file.stat().st_size > 0 for file in path.rglob("*"))
    return path.is_file() and path.stat().st_size > 0
