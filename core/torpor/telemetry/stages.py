"""The stages of a start: each name once, in the order of a start."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["FETCH_STAGES", "LIFECYCLE_STAGES", "RESTORE_STAGES", "Stage"]


class Stage(StrEnum):
    """A stage of a start, in the order of a start. The value is its name in records, logs, metrics and pages."""

    PROCESS = "process"  # `torpor bench`: from the start of the command to its first stage
    OPEN = "open"  # a snapshot of a store: its manifest is read, its signature checked
    COMPARE = "compare"  # this machine and its files are compared with that manifest
    PULL_WEIGHTS = "pull_weights"  # kept weights are fetched
    PULL = "pull"  # the snapshot is fetched
    VERIFY = "verify"  # `torpor bench`: the snapshot's files and this machine are compared with the manifest
    SANDBOX = "sandbox"
    SIDE_FILES = "side_files"
    CRIU = "criu"
    CUDA = "cuda"
    RESTORE = "restore"  # only of a restore that failed before there was an engine to wake
    IMPORTS = "imports"  # `torpor bench`: the import of the app file, as far as it took longer than CRIU
    PREFLIGHT = "preflight"
    LAUNCH = "launch"
    READY = "ready"
    WARMUP = "warmup"
    CANARY = "canary"
    DRAIN = "drain"
    PRE_SNAPSHOT = "pre_snapshot"
    POST_RESTORE = "post_restore"
    CANARY_CHECK = "canary_check"
    SERVE = "serve"
    FIRST_REQUESTS = (
        "first_requests"  # after a start: from its end to the 20th answer; says whether anything was compiled
    )
    FIRST_ANSWER = "first_answer"  # `torpor bench`: from the end of the last stage to the first token


RESTORE_STAGES = (Stage.SANDBOX, Stage.SIDE_FILES, Stage.CRIU, Stage.CUDA, Stage.RESTORE)
"""Stages of a local restore before the engine wakes; CUDA with a GPU only."""

FETCH_STAGES = (Stage.OPEN, Stage.COMPARE, Stage.PULL_WEIGHTS, Stage.PULL)
"""Stages that bring a snapshot from a store onto this machine."""

LIFECYCLE_STAGES = (
    Stage.PREFLIGHT,
    Stage.LAUNCH,
    Stage.READY,
    Stage.WARMUP,
    Stage.CANARY,
    Stage.DRAIN,
    Stage.PRE_SNAPSHOT,
    Stage.POST_RESTORE,
    Stage.CANARY_CHECK,
    Stage.SERVE,
)
"""Stages that `torpor.runtime.boot` takes an engine through, on every platform."""
