"""Mark a snapshot bad if its replicas do not wake: `failures.json` in its folder counts the failures in a row.

A wake is tried twice; if both fail, that is one failure. A replica that wakes resets the count. After `BAD_AFTER` failures in a
row the snapshot is bad: `torpor snapshot restore` refuses it, `torpor up --snapshot` replaces it. A new snapshot in the same
place starts without the file.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import SnapshotError
from torpor.snapshots.store.manifest import FAILURES, LAST_TIME_S
from torpor.snapshots.store.reading import read_part
from torpor.telemetry.events import log

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BAD_AFTER", "Failures", "bad_reason", "forget_failures", "note_failure", "read_failures"]

BAD_AFTER = 3
"""So many failures in a row make a snapshot bad."""

_MAX_BYTES = 64 * 1024
_MAX_TEXT = 2000


class Failures(NamedTuple):
    """Failures in a row.

    Attributes:
        in_a_row: how many.
        last_at: Unix time of the last failure, seconds.
        last: its error.
    """

    in_a_row: int
    last_at: float
    last: str


def read_failures(folder: Path) -> Failures | None:
    """The failures of a snapshot; None if there are none, or the file cannot be read: then the snapshot is tried."""
    try:
        noted = read_part(folder, FAILURES, most=_MAX_BYTES)
        return Failures(
            in_a_row=noted.whole("in_a_row"), last_at=noted.number("last_at", LAST_TIME_S), last=noted.text("last")
        )
    except (OSError, SnapshotError):
        return None


def bad_reason(folder: Path) -> str | None:
    """Why a snapshot is marked bad, with what to do; None if it is not."""
    noted = read_failures(folder)
    if noted is None or noted.in_a_row < BAD_AFTER:
        return None
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(noted.last_at))
    return (
        f"it is marked bad: {noted.in_a_row} of its replicas in a row did not wake, the last at {at} ({noted.last}). Take a "
        "new snapshot with torpor snapshot create, or try this one with torpor snapshot restore --even-if-bad"
    )


def note_failure(folder: Path, error: BaseException) -> Failures:
    """Count one more failed wake; if the folder cannot be written, only log that."""
    before = read_failures(folder)
    said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:_MAX_TEXT]
    noted = Failures(in_a_row=(before.in_a_row if before else 0) + 1, last_at=time.time(), last=said)
    unfinished = folder / f".{FAILURES}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(noted._asdict(), file)
        unfinished.replace(folder / FAILURES)
    except OSError as failed:
        unfinished.unlink(missing_ok=True)
        log("warning", "failed_wake_not_noted", folder=str(folder), reason=failed.strerror)
    return noted


def forget_failures(folder: Path) -> None:
    """A replica woke: reset the count."""
    try:
        os.unlink(folder / FAILURES)  # noqa: PTH108 - every restore does this
    except OSError:
        return
