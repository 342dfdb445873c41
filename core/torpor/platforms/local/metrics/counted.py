"""Counts the starts and stages of this process. Label values are Torpor's own words and names of deployments, nothing else."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from torpor.platforms.local.metrics.names import METRICS
from torpor.runtime.supervision import ENGINE_ENDED, WAKE_FAILED
from torpor.telemetry.records import BOOT_KINDS
from torpor.telemetry.stages import RESTORE_STAGES, Stage

if TYPE_CHECKING:
    from torpor.telemetry.records import StageRecord

__all__ = ["OTHER", "Counted"]

OTHER = "other"
"""In place of a label's value that is none of Torpor's words: a record may come from a newer part of it."""

_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_LAST = {"cold": Stage.CANARY, "woken": Stage.SERVE, "restored": Stage.SERVE}
"""The stage whose end completes a start. After a cold start a replica may sleep before it serves."""

_OF_A_START = {
    "cold": (Stage.PREFLIGHT, Stage.LAUNCH, Stage.READY, Stage.WARMUP, Stage.CANARY),
    "woken": (Stage.POST_RESTORE, Stage.CANARY_CHECK, Stage.SERVE),
    "restored": (*RESTORE_STAGES, Stage.POST_RESTORE, Stage.CANARY_CHECK, Stage.SERVE),
}
_REASONS = (ENGINE_ENDED, WAKE_FAILED)
_REMEMBERED = 1000


class Counted:
    """Counters and histograms of `torpor.platforms.local.metrics.names`, as a `torpor.telemetry.observers.Observer`.

    Attributes:
        registry: what `prometheus_client` shows.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter, which nobody asks for
        self.registry = CollectorRegistry()
        about = {metric.name: (metric.name, metric.meaning, metric.labels) for metric in METRICS}
        self._starts = Counter(*about["torpor_starts"], registry=self.registry)
        self._seconds = Histogram(*about["torpor_stage_duration_seconds"], registry=self.registry, buckets=_BUCKETS_S)
        self._failures = Counter(*about["torpor_stage_failures"], registry=self.registry)
        self._replacements = Counter(*about["torpor_replacements"], registry=self.registry)
        self._listeners = Counter(*about["torpor_listener_failures"], registry=self.registry)
        self._replaced: deque[str] = deque(maxlen=_REMEMBERED)  # replica ids

    def stage_ended(self, record: StageRecord) -> None:
        """Count a stage."""
        kind = record.boot if record.boot in BOOT_KINDS else OTHER
        stage = record.stage if record.stage in tuple(Stage) else OTHER
        if record.ok:
            self._seconds.labels(record.deployment, kind, stage).observe(record.seconds)
            if stage == _LAST.get(kind):
                self._starts.labels(record.deployment, kind, "ok").inc()
            self._note_replacement(record)
            return
        self._failures.labels(record.deployment, kind, stage).inc()
        if stage in _OF_A_START.get(kind, ()):
            self._starts.labels(record.deployment, kind, "failed").inc()

    def listener_failed(self, deployment: str, plugin: str, what: str) -> None:
        """Count a listener's failure."""
        self._listeners.labels(deployment, plugin, what).inc()

    def _note_replacement(self, record: StageRecord) -> None:
        if record.stage != Stage.SERVE or not record.reason or record.replica_id in self._replaced:
            return
        self._replaced.append(record.replica_id)
        reason = record.reason if record.reason in _REASONS else OTHER
        self._replacements.labels(record.deployment, reason).inc()
