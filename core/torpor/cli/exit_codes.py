"""The exit codes, and what they mean for each command: the one table, for commands, documentation and tests."""

from __future__ import annotations

from torpor.errors import ConfigurationError, TorporError

__all__ = ["EXIT_CODES", "FAILED", "INTERRUPTED", "OK", "WRONG_INPUT"]

OK = 0
FAILED = TorporError.exit_code
"""The command did not do what it was asked for: 1."""
WRONG_INPUT = ConfigurationError.exit_code
"""It was asked for something impossible, and did nothing: 2."""

INTERRUPTED = 130
"""Ctrl-C or SIGTERM before a command was done, or a second one while it finishes: 128 plus the number of SIGINT."""

_WRONG = "wrong input: an option, a file, the app; a port that is taken"
_NOT_SERVED = "no `torpor serve` here serves it"
_START = "the start failed, or the last replica was given up"

EXIT_CODES: dict[str, dict[int, str]] = {
    "plan": {OK: "printed, with or without differences", WRONG_INPUT: _WRONG},
    "up": {OK: "it served and was ended, or the question was answered", FAILED: _START, WRONG_INPUT: _WRONG},
    "serve": {
        OK: "it served and was ended, or `--check` found no error",
        WRONG_INPUT: f"{_WRONG}; a model that does not fit",
    },
    "wake": {OK: "the deployment starts, wakes or serves", FAILED: _NOT_SERVED, WRONG_INPUT: _WRONG},
    "sleep": {
        OK: "it falls once it is idle",
        FAILED: f"{_NOT_SERVED}, or it has `min_containers`",
        WRONG_INPUT: _WRONG,
    },
    "pin": {OK: "it is pinned, or no longer", FAILED: f"{_NOT_SERVED}, or others would not fit", WRONG_INPUT: _WRONG},
    "ray up": {
        OK: "they run: at zero, or with `min_containers`",
        FAILED: "there is no cluster, or not all run in time; what was deployed stays",
        WRONG_INPUT: f"{_WRONG}; Ray is not installed; nothing was deployed",
    },
    "ray status": {OK: "printed", FAILED: "there is no cluster", WRONG_INPUT: _WRONG},
    "ray down": {
        OK: "removed, or nothing was there",
        FAILED: "there is no cluster, or something is still there after a minute",
        WRONG_INPUT: "wrong input, or no such deployment; nothing was removed",
    },
    "ray plan": {
        OK: "printed; Ray can serve all of it",
        WRONG_INPUT: "printed, and Ray cannot serve all of it; or wrong input",
    },
    "ray manifest": {OK: "printed", WRONG_INPUT: f"{_WRONG}; a deployment that Ray cannot serve"},
    "status": {
        OK: "printed; with NAME: one server of that name serves with all its replicas",
        FAILED: "with NAME: no server does",
        WRONG_INPUT: _WRONG,
    },
    "logs": {
        OK: "printed",
        FAILED: "there is no log yet, or it cannot be read",
        WRONG_INPUT: "wrong input, or no log of that name",
    },
    "doctor": {OK: "no problems", FAILED: "warnings", WRONG_INPUT: "errors, or wrong input"},
    "plugins": {OK: "printed", FAILED: "a plugin cannot be listed", WRONG_INPUT: _WRONG},
    "new": {OK: "the project is complete", WRONG_INPUT: "wrong input, or a folder that is in use; nothing was written"},
    "key new": {OK: "printed", WRONG_INPUT: _WRONG},
    "key signing": {
        OK: "both keys are written",
        WRONG_INPUT: "wrong input, or a file that exists; nothing was overwritten",
    },
    "key encryption": {OK: "the identity is written", WRONG_INPUT: "wrong input, or a file that exists"},
    "snapshot create": {
        OK: "the snapshot is in its place",
        FAILED: "the start or the capture failed; an older snapshot is still there",
        WRONG_INPUT: _WRONG,
    },
    "snapshot inspect": {
        OK: "it fits here and now",
        FAILED: "it does not fit; every reason is listed",
        WRONG_INPUT: "there is no usable snapshot, or wrong input",
    },
    "snapshot restore": {
        OK: "it served and was ended",
        FAILED: "it does not fit, does not wake, or the last replica was given up",
        WRONG_INPUT: _WRONG,
    },
    "snapshot list": {OK: "printed, damaged ones too", WRONG_INPUT: _WRONG},
    "snapshot prune": {OK: "done, or nothing to do", FAILED: "a snapshot cannot be removed", WRONG_INPUT: _WRONG},
    "snapshot rm": {
        OK: "removed; chunks of a store may have to stay for now",
        FAILED: "one is not a snapshot of this user, or not in the store; those before it were removed",
        WRONG_INPUT: _WRONG,
    },
    "snapshot weights": {OK: "printed", FAILED: "weights cannot be read or deleted", WRONG_INPUT: _WRONG},
    "snapshot setup": {
        OK: "CRIU is installed and works",
        FAILED: "CRIU cannot be downloaded, or does not work here",
        WRONG_INPUT: _WRONG,
    },
    "snapshot push": {
        OK: "the snapshot is in the store",
        FAILED: "it is damaged, or the store cannot be written; an older one of that name is still there",
        WRONG_INPUT: _WRONG,
    },
    "snapshot pull": {
        OK: "the snapshot is in its place",
        FAILED: "it is not trusted or damaged, or the store or the disk failed; an older snapshot is still there",
        WRONG_INPUT: _WRONG,
    },
    "snapshot ls": {
        OK: "printed, damaged ones too",
        FAILED: "there is no store, or it cannot be read",
        WRONG_INPUT: _WRONG,
    },
    "snapshot gc": {
        OK: "done, or nothing to do",
        FAILED: "a push is at work, a manifest is damaged, or the store failed; chunks that are needed are there",
        WRONG_INPUT: _WRONG,
    },
    "snapshot compare": {OK: "measured", FAILED: "a start, the capture or a restore failed", WRONG_INPUT: _WRONG},
    "bench": {OK: "measured", FAILED: "a start failed", WRONG_INPUT: _WRONG},
    "report": {OK: "the page is written", WRONG_INPUT: "wrong input: a file that is neither a bench nor stage records"},
    "boots": {OK: "printed", FAILED: "the log cannot be fetched", WRONG_INPUT: _WRONG},
    "probe": {OK: "it answered", FAILED: "no answer in time, or a refusal", WRONG_INPUT: _WRONG},
    "prewarm": {OK: "a restored start was seen", FAILED: "it gave up", WRONG_INPUT: _WRONG},
}
"""By command: what 0, 1 and 2 mean. A missing code does not occur. A full or closed standard output is 1 everywhere."""
