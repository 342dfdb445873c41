"""Records the stages of a replica: as log events, as lines of JSON in a file, and on request as a Prometheus text file."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING

from torpor.telemetry.events import STAGE, log
from torpor.telemetry.metrics import write_metrics
from torpor.telemetry.observers import observers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torpor.telemetry.records import StageRecord
    from torpor.telemetry.stages import Stage

__all__ = ["METRICS_VARIABLE", "StageReport"]

METRICS_VARIABLE = "TORPOR_METRICS_FILE"
"""Path of a Prometheus text file with the latest run of every stage; each stage's end rewrites it."""

_appending = threading.Lock()


class StageReport:
    """All stages of one replica, in order. Several reports may share a file.

    Args:
        path: file that gets one line of JSON at the end of each stage; None keeps the records in memory only.
        on_begin: called with each stage when it begins.
        on_end: called with each stage's record when it ended.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        on_begin: Callable[[Stage], None] | None = None,
        on_end: Callable[[StageRecord], None] | None = None,
    ) -> None:
        self.path = path
        self.records: list[StageRecord] = []
        self._on_begin = on_begin
        self._on_end = on_end

    def begin(self, stage: Stage) -> None:
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
        for name in ("compiled", "adapters"):
            if not event[name]:
                del event[name]
        log("info" if record.ok else "error", STAGE, **{name: value for name, value in event.items() if value != ""})
        if self.path:
            self._append(record, self.path)
        if metrics := os.environ.get(METRICS_VARIABLE):
            write_metrics(record, metrics)
        for observer in observers():
            observer.stage_ended(record)
        if self._on_end:
            self._on_end(record)

    def seconds(self, stage: Stage) -> float:
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
                    file.write(json.dumps(record.as_json()).encode() + b"\n")
            except OSError as error:
                # Serving matters more than records: warn once, and go on without the file.
                self.path = None
                if whole_bytes is not None:
                    with contextlib.suppress(OSError):
                        os.truncate(path, whole_bytes)  # a full disk keeps half a line, which cannot be read back
                log("warning", "records_not_written", path=str(path), reason=error.strerror)
