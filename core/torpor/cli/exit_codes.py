"""What each command's exit codes mean: the one table, for the documentation and for tests."""

from __future__ import annotations

__all__ = ["EXIT_CODES", "INTERRUPTED"]

INTERRUPTED = 130
"""Ctrl-C or SIGTERM before a command was done, and a second one while it finishes: 128 and the number of SIGINT."""

_WRONG = "wrong input: an option, a file, the app; a port that is taken"
_START = "the start failed, or the last replica was given up"

EXIT_CODES: dict[str, dict[int, str]] = {
    "plan": {0: "printed, with or without differences", 2: _WRONG},
    "up": {0: "it served and was ended, or the question was answered", 1: _START, 2: _WRONG},
    "status": {
        0: "printed; with NAME: one server of that name serves with all its replicas",
        1: "with NAME: none does",
        2: _WRONG,
    },
    "logs": {0: "printed", 1: "a log cannot be read", 2: "wrong input, or nothing of that name"},
    "doctor": {0: "no problems", 1: "warnings", 2: "errors, or wrong input"},
    "plugins": {0: "printed", 1: "a plugin cannot be listed", 2: _WRONG},
    "new": {0: "the project is made, whole", 2: "wrong input, or a folder that is in use; nothing was made"},
    "key new": {0: "printed", 2: _WRONG},
    "snapshot create": {
        0: "the snapshot is in its place",
        1: "the start or the capture failed; an older snapshot is still there",
        2: _WRONG,
    },
    "snapshot inspect": {
        0: "it fits here and now",
        1: "it does not fit; every reason is listed",
        2: "there is no snapshot that can be used, or wrong input",
    },
    "snapshot restore": {
        0: "it served and was ended",
        1: "it does not fit, does not wake, or the last replica was given up",
        2: _WRONG,
    },
    "snapshot list": {0: "printed, damaged ones too", 2: _WRONG},
    "snapshot prune": {0: "done, or nothing to do", 1: "a snapshot cannot be removed", 2: _WRONG},
    "snapshot rm": {0: "removed", 1: "it is no snapshot of this user; nothing was removed", 2: _WRONG},
    "snapshot weights": {0: "printed", 1: "weights cannot be read or deleted", 2: _WRONG},
    "snapshot setup": {0: "CRIU is there and works", 1: "it cannot be fetched, or does not work here", 2: _WRONG},
    "snapshot compare": {0: "measured", 1: "a start, the capture or a restore failed", 2: _WRONG},
    "bench": {0: "measured", 1: "a start failed", 2: _WRONG},
    "report": {0: "the page is written", 2: "wrong input: a file that is neither a bench nor stage records"},
    "boots": {0: "printed", 1: "the log cannot be fetched", 2: _WRONG},
    "probe": {0: "it answered", 1: "no answer in time, or a refusal", 2: _WRONG},
    "prewarm": {0: "a restored start was seen", 1: "it gave up", 2: _WRONG},
}
"""By command: what 0, 1 and 2 mean. A code that is missing does not occur; a full or closed standard output is 1 everywhere."""
