"""What every stage took: one structlog event, one JSON line and one table row per stage; on request a Prometheus text file."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from torpor.errors import ConfigurationError
from torpor.events import STAGE, log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["METRICS_VARIABLE", "BootKind", "StageRecord", "StageReport", "metrics_text", "read_records"]

BootKind = Literal["cold", "restored"]

METRICS_VARIABLE = "TORPOR_METRICS_FILE"
"""A file that holds the latest of every stage as Prometheus text, written anew at the end of each stage."""


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
        restarts: how often this replica was started again so far.
        reason: why this start is not a plain one, e.g. `wake failed`; empty for a plain one.
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
    restarts: int = 0
    reason: str = ""


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
        self._metrics_failed = False

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
            self._write_metrics(metrics)
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

    def _write_metrics(self, name: str) -> None:
        """Whole or not at all: a collector may read at any moment."""
        unfinished = (
            f"{name}.{os.getpid()}.{threading.get_ident()}"  # copies of a snapshot wake in threads of their own
        )
        try:
            with open(unfinished, "w", encoding="utf-8") as file:  # noqa: PTH123 - pathlib is not needed otherwise
                file.write(metrics_text(self.records))
            os.replace(unfinished, name)  # noqa: PTH105
        except OSError as error:
            if not self._metrics_failed:  # as below: said once
                log("warning", "metrics_not_written", path=name, reason=error.strerror)
            self._metrics_failed = True

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


def metrics_text(records: Sequence[StageRecord]) -> str:
    """The latest of every stage in Prometheus' text format (0.0.4), for a node exporter's textfile collector.

    `torpor_stage_seconds`, `torpor_stage_ok` and `torpor_stage_end_timestamp_seconds`, each with the labels stage and boot (cold,
    restored); `torpor_restores_total`; once there was a restart `torpor_restarts_total`, with the label reason.
    """
    latest = {(record.stage, record.boot): record for record in records}.values()
    lines = []
    for name, meaning, values in (
        ("seconds", "Wall time of the latest run of a stage.", [f"{record.seconds:.6f}" for record in latest]),
        ("ok", "Whether the latest run of a stage succeeded.", [f"{record.ok:d}" for record in latest]),
        ("end_timestamp_seconds", "When it ended, Unix time.", [f"{record.ended_at:.3f}" for record in latest]),
    ):
        lines += [f"# HELP torpor_stage_{name} {meaning}", f"# TYPE torpor_stage_{name} gauge"]
        lines += [
            f'torpor_stage_{name}{{stage="{record.stage}",boot="{record.boot}"}} {value}'
            for record, value in zip(latest, values, strict=True)
        ]
    restores = max((record.restore_count for record in records), default=0)
    lines += ["# HELP torpor_restores_total Wakes of this replica.", "# TYPE torpor_restores_total counter"]
    lines += [f"torpor_restores_total {restores}", *_restart_lines(records)]
    return "\n".join([*lines, ""])


def _restart_lines(records: Sequence[StageRecord]) -> list[str]:
    restarts = sorted({(record.reason, record.restarts) for record in records if record.restarts})
    if not restarts:
        return []
    reasons = [reason for reason, _ in restarts]
    return [
        "# HELP torpor_restarts_total Restarts of this replica.",
        "# TYPE torpor_restarts_total counter",
        *(f'torpor_restarts_total{{reason="{reason}"}} {reasons.count(reason)}' for reason in dict.fromkeys(reasons)),
    ]


def read_records(path: Path) -> list[StageRecord]:
    """Read a file of JSON lines back.

    Raises:
        ConfigurationError: a line is not a stage record; the message names file and line.
    """
    from torpor.given_files import read_given  # noqa: PLC0415 - a start only writes

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
