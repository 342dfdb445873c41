"""Stages of all replicas of this process as one Prometheus text file, for a node exporter's textfile collector.

Every sample has the labels deployment and replica.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from torpor.telemetry.events import log
from torpor.telemetry.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torpor.telemetry.records import StageRecord

__all__ = ["MOST_REPLICAS", "Metrics", "metrics_text", "write_metrics"]

MOST_REPLICAS = 128
"""Most replicas with metrics of their own. A restarted one gets a new name; the oldest are counted together as `EARLIER`."""

EARLIER = "earlier"

_COUNTERS = {
    "cold_starts": "Cold starts whose engine answered.",
    "restores": "Restores from a snapshot whose replica served.",
    "wakes": "Wakes in place whose replica served.",
}
_CAME_TO_SERVE: dict[tuple[str, str], str] = {
    (Stage.CANARY, "cold"): "cold_starts",
    (Stage.SERVE, "restored"): "restores",
    (Stage.SERVE, "woken"): "wakes",
}
_GAUGES = (
    ("seconds", "Wall time of the latest run of a stage."),
    ("ok", "Whether the latest run of a stage succeeded."),
    ("end_timestamp_seconds", "When it ended, Unix time."),
)


class _Who(NamedTuple):
    deployment: str
    replica: str


class Metrics:
    """The latest run of every stage, and counters, for each replica. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._latest: dict[_Who, dict[tuple[str, str], StageRecord]] = {}
        self._counted: dict[_Who, Counter[str]] = {}
        self._failed: dict[_Who, Counter[tuple[str, str]]] = {}
        self._restarts: dict[_Who, Counter[str]] = {}
        self._restarts_seen: set[tuple[_Who, int]] = set()
        self._write_failed = False

    def note(self, record: StageRecord) -> None:
        """Count a stage that ended."""
        with self._lock:
            self._note(record)

    def text(self) -> str:
        """All metrics in Prometheus' text format (0.0.4)."""
        with self._lock:
            return "\n".join([*self._lines(), ""])

    def write(self, name: str) -> None:
        """Write the file as a whole or not at all: a collector may read it at any moment."""
        with self._lock:
            unfinished = f"{name}.{os.getpid()}"
            try:
                with open(unfinished, "w", encoding="utf-8") as file:  # noqa: PTH123 - pathlib is not needed otherwise
                    file.write("\n".join([*self._lines(), ""]))
                os.replace(unfinished, name)  # noqa: PTH105
            except OSError as error:
                if not self._write_failed:
                    log("warning", "metrics_not_written", path=name, reason=error.strerror)
                self._write_failed = True

    def _note(self, record: StageRecord) -> None:
        who = _Who(record.deployment, record.replica)
        if who not in self._latest:
            self._make_room()
        self._latest.setdefault(who, {})[record.stage, record.boot] = record
        counted = self._counted.setdefault(who, Counter())
        if not record.ok:
            self._failed.setdefault(who, Counter())[record.stage, record.boot] += 1
        elif what := _CAME_TO_SERVE.get((record.stage, record.boot)):
            counted[what] += 1
        if record.restarts and (who, record.restarts) not in self._restarts_seen:
            self._restarts_seen.add((who, record.restarts))
            self._restarts.setdefault(who, Counter())[record.reason] += 1

    def _make_room(self) -> None:
        """If there are too many replicas, count the oldest under `EARLIER`; the sums stay the same."""
        while sum(who.replica != EARLIER for who in self._latest) >= MOST_REPLICAS:
            oldest = next(who for who in self._latest if who.replica != EARLIER)
            rest = _Who(oldest.deployment, EARLIER)
            del self._latest[oldest]
            self._counted.setdefault(rest, Counter()).update(self._counted.pop(oldest, Counter()))
            self._failed.setdefault(rest, Counter()).update(self._failed.pop(oldest, Counter()))
            self._restarts.setdefault(rest, Counter()).update(self._restarts.pop(oldest, Counter()))
            self._restarts_seen = {(who, number) for who, number in self._restarts_seen if who != oldest}

    def _lines(self) -> Iterator[str]:
        latest = [(who, record) for who, stages in self._latest.items() for record in stages.values()]
        for name, meaning in _GAUGES:
            samples = [
                (_labels(who, stage=record.stage, boot=record.boot), _gauge(record, name)) for who, record in latest
            ]
            yield from _metric(f"torpor_stage_{name}", "gauge", meaning, samples)
        for name, meaning in _COUNTERS.items():
            counts = [(_labels(who), str(counted[name])) for who, counted in self._counted.items()]
            yield from _metric(f"torpor_{name}_total", "counter", meaning, counts)
        failures = [
            (_labels(who, stage=stage, boot=boot), str(count))
            for who, failed in self._failed.items()
            for (stage, boot), count in failed.items()
        ]
        yield from _metric("torpor_failures_total", "counter", "Stages that failed.", failures)
        restarts = [
            (_labels(who, reason=reason), str(count))
            for who, counted in self._restarts.items()
            for reason, count in counted.items()
        ]
        yield from _metric("torpor_restarts_total", "counter", "Restarts of this replica.", restarts)


_HERE = Metrics()


def write_metrics(record: StageRecord, name: str) -> None:
    """Count a stage of this process, and rewrite the file.

    Args:
        record: a stage that ended.
        name: the file's path.
    """
    _HERE.note(record)
    _HERE.write(name)


def metrics_text(records: Iterable[StageRecord]) -> str:
    """The text of the file after exactly these stages."""
    metrics = Metrics()
    for record in records:
        metrics.note(record)
    return metrics.text()


def _metric(name: str, kind: str, meaning: str, samples: Sequence[tuple[str, str]]) -> Iterator[str]:
    """One metric with its samples; nothing without samples."""
    if samples:
        yield f"# HELP {name} {meaning}"
        yield f"# TYPE {name} {kind}"
        yield from (f"{name}{{{labels}}} {value}" for labels, value in samples)


def _gauge(record: StageRecord, name: str) -> str:
    if name == "ok":
        return f"{record.ok:d}"
    return f"{record.seconds:.6f}" if name == "seconds" else f"{record.ended_at:.3f}"


def _labels(who: _Who, **more: str) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in {**who._asdict(), **more}.items())


def _escaped(value: str) -> str:
    """A label's value, with backslashes, quotes and line breaks escaped and lone surrogates replaced."""
    text = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return text.encode(errors="replace").decode()
