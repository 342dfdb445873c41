"""What every stage took: one structlog event, one JSON line and one table row per stage."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from torpor.errors import ConfigurationError
from torpor.events import STAGE, log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["BootKind", "StageRecord", "StageReport", "read_records"]

BootKind = Literal["cold", "restored"]


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One stage of one start or wake.

    Attributes:
        stage: preflight, launch, ready, warmup, canary, drain, pre_snapshot, post_restore, canary_check, serve, stop.
        seconds: wall time of the stage, monotonic clock.
        boot: `cold` for a started replica, `restored` for one that woke.
        boot_id: the engine's boot, 16 hex digits; empty before the launch.
        restore_count: wakes of this replica so far.
        ended_at: Unix time at the stage's end, seconds.
        ok: whether the stage succeeded.
        error: class and first line of what went wrong; empty when `ok`.
        plugins: seconds inside each plugin's hook.
    """

    stage: str
    seconds: float
    boot: BootKind
    boot_id: str
    restore_count: int
    ended_at: float
    ok: bool = True
    error: str = ""
    plugins: dict[str, float] = field(default_factory=dict)


class StageReport:
    """All stages of one boot, in order.

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
        log("info" if record.ok else "error", STAGE, **{name: value for name, value in event.items() if value != ""})
        if self.path:
            self._append(record, self.path)
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


def read_records(path: Path) -> list[StageRecord]:
    """Read a file of JSON lines back.

    Raises:
        ConfigurationError: a line is not a stage record; the message names file and line.
    """
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            records.append(StageRecord(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{path}:{number}: not a stage record ({error}); remove the line or the file."
            ) from error
    return records
