"""What a stage took, and reading such records back."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torpor.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "BOOT_KINDS",
    "RESTORE",
    "RESTORE_STAGES",
    "BootKind",
    "StageRecord",
    "described",
    "failed_restore",
    "read_records",
]

BootKind = Literal["cold", "woken", "restored"]
BOOT_KINDS: tuple[BootKind, ...] = ("cold", "woken", "restored")
"""The kinds of a start: from nothing, from a sleep in the same process, from a snapshot."""

RESTORE = "restore"
"""Stage of a restore that failed before there was an engine to wake."""

RESTORE_STAGES = ("sandbox", "side_files", "criu", "cuda", RESTORE)
"""What comes before the wake of a restored replica."""


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage of one start or wake.

    Attributes:
        stage: preflight, launch, ready, warmup, canary, drain, pre_snapshot, post_restore, canary_check or serve. Before the wake
            of a restored replica: sandbox, side_files, criu and (with a GPU) cuda, or restore where that failed.
        seconds: wall time of the stage, monotonic clock.
        boot: `cold` for a started replica, `woken` for one that slept and woke in the same process, `restored` for one that came
            out of a snapshot.
        replica_id: 16 hex digits, new at every restore; empty before the launch.
        restore_count: wakes of this replica so far.
        ended_at: Unix time at the stage's end, seconds.
        ok: whether the stage succeeded.
        error: class and first line of what went wrong; empty when `ok`.
        plugins: seconds inside each plugin's hook.
        restarts: how often this replica was started again so far.
        reason: why this start is not a plain one, e.g. `wake failed`; empty for a plain one.
        deployment: the deployment's name.
        replica: the replica's; several replicas of a snapshot have a name each.
    """

    stage: str
    seconds: float
    boot: BootKind
    replica_id: str
    restore_count: int
    ended_at: float
    ok: bool = True
    error: str = ""
    plugins: dict[str, float] = field(default_factory=dict)
    restarts: int = 0
    reason: str = ""
    deployment: str = ""
    replica: str = ""


def described(failure: BaseException | None) -> str:
    """A failure as a record has it: class and first line."""
    return "" if failure is None else f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"


def failed_restore(
    *, deployment: str, replica: str, seconds: float, error: BaseException, restarts: int
) -> StageRecord:
    """The record of a restore that failed before there was an engine to wake.

    Args:
        deployment: the deployment's name.
        replica: what the replica would be called.
        seconds: that it took.
        error: what was seen.
        restarts: how often this replica was started again before.
    """
    return StageRecord(
        stage=RESTORE,
        seconds=seconds,
        boot="restored",
        replica_id="",
        restore_count=1,
        ended_at=time.time(),
        ok=False,
        error=described(error),
        restarts=restarts,
        deployment=deployment,
        replica=replica,
    )


def read_records(path: Path) -> list[StageRecord]:
    """Read a file of JSON lines back.

    Raises:
        ConfigurationError: a line is not a stage record; the message names file and line.
    """
    from torpor.values.given_files import read_given  # noqa: PLC0415 - a start only writes

    records = []
    text = read_given(path, "Remove it, or name a file of stage records.").decode(errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            records.append(StageRecord(**json.loads(line)))
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigurationError(
                f"{path}:{number}: not a stage record ({error}); remove the line or the file."
            ) from error
    return records
