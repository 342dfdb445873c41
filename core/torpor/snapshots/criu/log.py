"""CRIU's log after a failure: the reasons in it, and advice for those that are known."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torpor.snapshots.sandbox.sandbox import Finished, Sandbox

__all__ = ["advice", "last_line", "reasons", "says_disk_full"]

_LOG_BYTES = 4 << 20
_REASONS = 6
_HARMLESS = re.compile(r"rlimit")


def reasons(log: Path, finished: Finished) -> list[str]:
    """The first errors of a log, without time and pid; later ones are their consequences."""
    errors = [line.partition("Error (")[2].partition("): ")[2] for line in _lines(log) if "Error (" in line]
    relevant = [error for error in errors if error and not _HARMLESS.search(error)]
    return relevant[:_REASONS] or finished.output.strip().splitlines()[-_REASONS:] or ["it gave no reason"]


_NO_SPACE = "No space left on device"
_ADVICE = {
    _NO_SPACE: "The disk is full: free some room or choose another folder.",
    "bad size": "A file that was open or mapped at the dump has changed since: take a new snapshot.",
    "seccomp": "The engine runs under a seccomp filter, which only root can dump and restore.",
    "Can't open file": "A file that was open at the dump is missing: look whether it was deleted or its disk is not mounted.",
    "Cannot allocate memory": "This machine has too little free memory.",
}


def advice(log: Path, sandbox: Sandbox) -> str:
    """Advice for the errors in the log; CRIU's message for an io_uring does not name it (`send_fds failed (-22)`)."""
    text = _errors(log)
    known = [cure for sign, cure in _ADVICE.items() if sign in text]
    if holders := _holders_of_rings(sandbox):
        known.append(
            f"CRIU cannot dump an io_uring; {', '.join(holders)} has one. Deny io_uring at launch: as root `spawn` does with "
            "filtered; rootless set UV_USE_IO_URING=0 and USE_LIBUV=0 in the engine's environment."
        )
    return "".join(f"{cure}\n" for cure in known)


def says_disk_full(log: Path) -> bool:
    """Whether CRIU met a full disk."""
    return _NO_SPACE in _errors(log)


def _holders_of_rings(sandbox: Sandbox) -> list[str]:
    holders = []
    for inside, pid in sandbox.host_pids().items():
        with contextlib.suppress(OSError):
            if any("io_uring" in str(held.readlink()) for held in Path(f"/proc/{pid}/fd").iterdir()):
                holders.append(f"pid {inside}")
    return holders


def last_line(log: Path) -> str:
    """The last line of a log, for messages."""
    lines = _lines(log)
    return lines[-1].strip() if lines else "none"


def _errors(log: Path) -> str:
    return "\n".join(line for line in _lines(log) if "Error (" in line)


def _lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as stream:
            return stream.read(_LOG_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []
