"""All metrics of a command as one text: what was counted, what is read now, and the engines' own metrics if they are asked for."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from torpor._version import __version__
from torpor.platforms.local.metrics.counted import Counted
from torpor.platforms.local.metrics.engines import engine_metrics
from torpor.platforms.local.metrics.figures import STATES, snapshot_of
from torpor.platforms.local.metrics.names import METRICS
from torpor.telemetry.observers import add_observer, remove_observer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

    from torpor.platforms.local.metrics.figures import Figures, Source

__all__ = ["CommandMetrics"]


class CommandMetrics:
    """The metrics of one command. It counts from its creation until `close`.

    Args:
        source: of the figures.
        engines: whether the engines' own metrics are passed on.
    """

    def __init__(self, source: Source, *, engines: bool = False) -> None:
        self._source = source
        self._engines = engines
        self._counted = Counted()
        self._one_scrape = threading.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        add_observer(self._counted)

    def close(self) -> None:
        """Count nothing more. Harmless to repeat."""
        remove_observer(self._counted)

    def text(self) -> bytes:
        """All metrics now, in Prometheus' text format (0.0.4). One scrape at a time. Not from the gateway's own thread."""
        with self._one_scrape:
            return generate_latest(self._counted.registry) + generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing: `prometheus_client` would otherwise read all figures when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What is read now, for `prometheus_client`."""
        told = list(self._source())
        gauges = {
            one.name: GaugeMetricFamily(one.name, one.meaning, labels=one.labels)
            for one in METRICS
            if one.kind == "gauge"
        }
        gauges["torpor_build_info"].add_metric([__version__], 1)
        for one in told:
            _add(gauges, one)
        if self._engines:
            boots = [(one.deployment, name, boot) for one in told for name, boot in one.boots if boot.serving]
            passed_on, read = engine_metrics(boots)
            for (deployment, replica), ok in read.items():
                gauges["torpor_engine_scrape_ok"].add_metric([deployment, replica], ok)
            yield from passed_on
        yield from (gauge for gauge in gauges.values() if gauge.samples)


def _add(gauges: dict[str, GaugeMetricFamily], one: Figures) -> None:
    """The samples of one deployment."""
    name = one.deployment
    for state in STATES:
        gauges["torpor_deployment_state"].add_metric([name, state], one.state == state)
        gauges["torpor_replicas"].add_metric([name, state], one.replicas.get(state, 0))
    gauges["torpor_requests_in_flight"].add_metric([name], one.in_flight)
    gauges["torpor_requests_waiting"].add_metric([name], one.waiting)
    for place, held in one.memory.items():
        gauges["torpor_memory_bytes"].add_metric([name, place], held)
    snapshot = snapshot_of(one.snapshot) if one.snapshot is not None else None
    if snapshot is not None:
        size, captured_at = snapshot
        gauges["torpor_snapshot_bytes"].add_metric([name], size)
        gauges["torpor_snapshot_age_seconds"].add_metric([name], max(0.0, time.time() - captured_at))
