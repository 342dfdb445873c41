"""A snapshot whose replicas do not wake is marked bad: `failures.json` in its folder says how often in a row, and why.

A replica's wake is tried twice; when both fail, that is one failure. A replica that wakes forgets those before it. After
`BAD_AFTER` failures in a row the snapshot is bad: `torpor snapshot restore` refuses it, `torpor up --snapshot` makes it anew.
The file goes with the folder: a new snapshot in its place begins without one.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from torpor.errors import SnapshotError
from torpor.snapshots.store.manifest import FAILURES, LAST_TIME_S
from torpor.snapshots.store.reading import opened_folder, read_json
from torpor.telemetry.events import log

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BAD_AFTER", "Failures", "bad_reason", "forget_failures", "note_failure", "read_failures"]

BAD_AFTER = 3
"""Failures in a row that make a snapshot bad."""

_MAX_BYTES = 64 * 1024
_MAX_TEXT = 2000


class Failures(NamedTuple):
    """Failures in a row.

    Attributes:
        in_a_row: how many.
        last_at: Unix time of the last one, seconds.
        last: what it said.
    """

    in_a_row: int
    last_at: float
    last: str


def read_failures(folder: Path) -> Failures | None:
    """What is noted of a snapshot; None where nothing is, or nothing that can be read: then it is tried."""
    try:
        folder_fd = opened_folder(folder)
        try:
            noted = read_json(folder, FAILURES, folder_fd, most=_MAX_BYTES)
        finally:
            os.close(folder_fd)
        return Failures(
            in_a_row=noted.whole("in_a_row"), last_at=noted.number("last_at", LAST_TIME_S), last=noted.text("last")
        )
    except (OSError, SnapshotError):
        return None


def bad_reason(folder: Path) -> str | None:
    """Why a snapshot is bad, as a sentence with what to do; None when it is not."""
    noted = read_failures(folder)
    if noted is None or noted.in_a_row < BAD_AFTER:
        return None
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(noted.last_at))
    return (
        f"it is marked bad: {noted.in_a_row} of its replicas in a row did not wake, the last at {at} ({noted.last}). Make it anew "
        "with torpor snapshot create, or try it all the same with torpor snapshot restore --even-if-bad"
    )


def note_failure(folder: Path, error: BaseException) -> Failures:
    """Count one more replica of a snapshot that did not wake; a folder that cannot be written is only logged."""
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
    """A replica woke: what was noted before counts no more."""
    try:
        os.unlink(folder / FAILURES)  # noqa: PTH108 - on the way of every restore
    except OSError:
        return
