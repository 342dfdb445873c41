"""What every stage took: one structlog event, one JSON line and one table row per stage; on request a Prometheus text file."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from torpor.errors import ConfigurationError
from torpor.telemetry.events import STAGE, log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "BOOT_KINDS",
    "METRICS_VARIABLE",
    "RESTORE",
    "RESTORE_STAGES",
    "BootKind",
    "StageRecord",
    "StageReport",
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

_appending = threading.Lock()

METRICS_VARIABLE = "TORPOR_METRICS_FILE"
"""A file that holds the latest of every stage as Prometheus text, written anew at the end of each stage.

See `torpor.telemetry.metrics`."""


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage of one start or wake.

    Attributes:
        stage: preflight, launch, ready, warmup, canary, drain, pre_snapshot, post_restore, canary_check, serve; before the wake of
            a restored replica sandbox, side_files, criu and (with a GPU) cuda, or restore where that failed.
        seconds: wall time of the stage, monotonic clock.
        boot: `cold` for a started replica, `woken` for one that slept and woke in the same process, `restored` for one that came
            out of a snapshot.
        replica_id: the engine's boot, 16 hex digits; empty before the launch.
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


class StageReport:
    """All stages of one replica, in order. Several may share a file.

    Args:
        path: file that gets one JSON line per stage, as soon as the stage ended; None keeps them in memory only.
        on_begin: called with a stage's name when it begins.
        on_end: called with the record when it ended.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        on_begin: Callable[[str], None] | None = None,
        on_end: Callable[[StageRecord], None] | None = None,
    ) -> None:
        self.path = path
        self.records: list[StageRecord] = []
        self._on_begin = on_begin
        self._on_end = on_end

    def begin(self, stage: str) -> None:
        """Announce a stage, for progress displays."""
        if self._on_begin:
            self._on_begin(stage)

    def end(self, record: StageRecord) -> None:
        """Keep a finished stage, log it and append it to the file."""
        self.records.append(record)
        event = {**asdict(record), "seconds": round(record.seconds, 4)}
        if not event.pop("plugins"):
            event.pop("error" if record.ok else "", None)
        if not record.restarts:
            del event["restarts"]
        log("info" if record.ok else "error", STAGE, **{name: value for name, value in event.items() if value != ""})
        if self.path:
            self._append(record, self.path)
        if metrics := os.environ.get(METRICS_VARIABLE):
            from torpor.telemetry.metrics import write_metrics  # noqa: PLC0415 - only where somebody wants them

            write_metrics(record, metrics)
        if self._on_end:
            self._on_end(record)

    def seconds(self, stage: str) -> float:
        """Seconds of the latest stage of that name.

        Raises:
            KeyError: there was none.
        """
        for record in reversed(self.records):
            if record.stage == stage:
                return record.seconds
        raise KeyError(stage)

    def _append(self, record: StageRecord, path: Path) -> None:
        whole_bytes: int | None = None
        with _appending:  # replicas that wake side by side share the file
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    whole_bytes = file.tell()
                    file.write(json.dumps(asdict(record)).encode() + b"\n")
            except OSError as error:
                # A record is not worth a replica: say so once and serve on without the file.
                self.path = None
                if whole_bytes is not None:
                    with contextlib.suppress(OSError):
                        os.truncate(path, whole_bytes)  # a full disk takes half a line, which nobody could read back
                log("warning", "records_not_written", path=str(path), reason=error.strerror)


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
